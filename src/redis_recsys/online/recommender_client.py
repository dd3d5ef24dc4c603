"""Client that asks a Triton for recommendations, over gRPC."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..errors import ServingError
from ..triton.grpc_connection import Connection
from .model_repository import RECOMMENDER
from .stages.funnel import funnel
from .stages.sources.merge import sources_of

ANSWER = ("item_ids", "scores", "degraded", "generation")
US = "us_"  # prefix of the columns of stage times


@dataclass(frozen=True)
class Explanation:
    """Explanation of one shown item's position.

    Attributes:
        item: raw id.
        position: position among the shown items, from 1.
        sources: candidate sources that found it: nearest, similar (to the item viewed last), popular.
        similarity: cosine of its embedding with the user's.
        candidate: its rank among the candidates by similarity, from 1.
        ranked: its rank among the candidates by score, from 1.
        score: the ranker's score, between 0 and 1.
    """

    item: int | str
    position: int
    sources: tuple[str, ...]
    similarity: float
    candidate: int
    ranked: int
    score: float


@dataclass(frozen=True)
class Answer:
    """Recommendations for one user.

    Attributes:
        items, scores: raw ids, best first, and the ranker's scores between 0 and 1; click counts if degraded.
        degraded: whether these are popular items because Redis or a model failed.
        generation: generation of the deployment that answered.
        explanations: one per item; empty if degraded or not asked for.
        funnel: number of candidates per source, after merging and after the filter, and of shown items; empty if
            degraded or not asked for (see :func:`redis_recsys.online.stages.funnel.funnel`).
        stage_us: microseconds that the user's batch spent in each stage; empty if not asked for.
    """

    user: int | str
    items: list[int | str]
    scores: list[float]
    degraded: bool
    generation: int
    explanations: list[Explanation] = field(default_factory=list)
    funnel: dict[str, int] = field(default_factory=dict)
    stage_us: dict[str, float] = field(default_factory=dict)


class Client(Connection):
    """A connection to the model ``recommender``; may be used by several threads.

    Example:
        >>> with Client(load_settings().triton) as client:  # doctest: +SKIP
        ...     client.recommend([405])[0].items
    """

    model = RECOMMENDER
    serves = "recsys serve"

    def recommend(self, users: Sequence[int | str], explain: bool = False) -> list[Answer]:
        """Recommend items for users, in their order; sends as many requests as the server's largest batch requires.

        Args:
            users: raw ids, of the bundle's type.
            explain: whether to ask for explanations and stage times, too.

        Raises:
            ServingError: the server cannot be reached, refuses, or answers too late.
        """
        config = self.model_config()
        largest = int(config["max_batch_size"])
        text = config["input"][0]["data_type"] == "TYPE_STRING"
        offered = [output["name"] for output in config["output"]]
        requested = offered if explain else [name for name in offered if name in ANSWER]
        if explain and "probability" not in offered:
            raise ServingError(
                f"Triton at {self.address} offers no explanations: serve with RECSYS_TRITON_EXPLAIN=true"
            )
        answers: list[Answer] = []
        for start in range(0, len(users), largest):
            block = users[start : start + largest]
            columns = self.infer({"user_id": _ids(block, text)}, requested)
            answers += [_answer(user, {name: column[row] for name, column in columns.items()})
                        for row, user in enumerate(block)]  # fmt: skip
        return answers


def _ids(users: Sequence[int | str], text: bool) -> np.ndarray:
    if text:
        return np.array([str(user).encode() for user in users], object)[:, None]
    try:
        return np.array([int(user) for user in users], np.int64)[:, None]
    except (ValueError, OverflowError):
        raise ServingError(
            f"users of this deployment are whole numbers of 64 bits, not {', '.join(map(str, users))[:100]}"
        ) from None


def _answer(user: int | str, row: Mapping[str, np.ndarray]) -> Answer:
    """One user's row of the columns."""
    shown = np.isfinite(row["scores"])
    ids = row["item_ids"][shown].tolist()
    items = [item.decode() if isinstance(item, bytes) else item for item in ids]
    scores = [round(score, 7) for score in row["scores"][shown].tolist()]
    degraded = bool(row["degraded"][0])
    explained = "candidates" in row and not degraded
    return Answer(
        user,
        items,
        scores,
        degraded,
        int(row["generation"][0]),
        _explanations(items, row) if explained else [],
        funnel(row) if explained else {},
        {name[len(US) :]: float(value[0]) for name, value in row.items() if name.startswith(US)},
    )


def _explanations(items: Sequence[int | str], row: Mapping[str, np.ndarray]) -> list[Explanation]:
    similarity, scores = row["similarity"], row["probability"]
    kept = row["items"] > 0
    nearness = np.where(row["candidates"] > 0, similarity, -np.inf)
    score = np.where(kept, scores, -np.inf)
    return [
        Explanation(
            item,
            position,
            sources_of(int(row["sources"][index])),
            float(similarity[index]),
            int((nearness > nearness[index]).sum()) + 1,
            int((score > score[index]).sum()) + 1,
            float(score[index]),
        )
        for position, (item, index) in enumerate(zip(items, row["position"].tolist(), strict=False), 1)
    ]
