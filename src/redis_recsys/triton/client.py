"""Asks a Triton for recommendations, over gRPC."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from ..config import TritonSettings
from ..errors import ServingError
from ..stages.stage import sources_of
from .repository import RECOMMENDER
from .server import STATE, TOKEN_HEADER

ANSWER = ("item_ids", "scores", "degraded", "generation")
US = "us_"  # columns of stage times begin so
# A server that was gone for long is found again within a second or two, not within gRPC's two minutes.
CHANNEL = [("grpc.max_reconnect_backoff_ms", 1000), ("grpc.max_receive_message_length", -1)]


@dataclass(frozen=True)
class Explanation:
    """How one shown item came to its place.

    Attributes:
        item: raw id.
        position: among the shown items, from 1.
        sources: that brought it as a candidate: nearest, similar (to the item viewed last), popular.
        similarity: cosine of its embedding with the user's.
        candidate: its rank among the candidates by similarity, from 1.
        ranked: its rank among the candidates by probability, from 1.
        probability: of a click, from the ranker.
    """

    item: int | str
    position: int
    sources: tuple[str, ...]
    similarity: float
    candidate: int
    ranked: int
    probability: float


@dataclass(frozen=True)
class Answer:
    """Recommendations for one user.

    Attributes:
        items, scores: raw ids, best first, and click probabilities.
        degraded: whether these are popular items because Redis or a model failed.
        generation: of the deployment that answered.
        explanations: one per item; none unless asked for, or if degraded.
        stage_us: microseconds that the user's batch spent in each stage; empty unless asked for.
    """

    user: int | str
    items: list[int | str]
    scores: list[float]
    degraded: bool
    generation: int
    explanations: list[Explanation] = field(default_factory=list)
    stage_us: dict[str, float] = field(default_factory=dict)


class Client:
    """A connection to the model ``recommender``; may be used by several threads.

    Example:
        >>> with Client(load_settings().triton) as client:  # doctest: +SKIP
        ...     client.recommend([405])[0].items
    """

    def __init__(self, settings: TritonSettings) -> None:
        """Find the server: the one that is set, else the one that ``recsys serve`` runs on this machine.

        Raises:
            ServingError: the certificate authority's file cannot be read, or gRPC does not take the address.
        """
        self.address = address(settings)
        self._timeout = settings.timeout
        token = settings.token
        self._headers = {TOKEN_HEADER: token.get_secret_value()} if token is not None else {}
        self._config: Mapping[str, Any] | None = None
        try:
            certificate = settings.tls_ca.read_bytes() if settings.tls and settings.tls_ca is not None else None
        except OSError as error:
            raise ServingError(f"RECSYS_TRITON_TLS_CA names {settings.tls_ca}: {error.strerror}") from error
        credentials = grpc.ssl_channel_credentials(certificate) if settings.tls else None
        self._client = triton.InferenceServerClient(self.address, creds=credentials, channel_args=CHANNEL)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def ready(self) -> bool:
        """Whether the server answers and has the model.

        Raises:
            ServingError: it refuses the token.
        """
        try:
            return bool(self._client.is_model_ready(RECOMMENDER, headers=self._headers, client_timeout=self._timeout))
        except InferenceServerException as error:
            if "UNAVAILABLE" in f"{error.status()}" or "DEADLINE" in f"{error.status()}":
                return False
            raise self._explained(error) from error

    def recommend(self, users: Sequence[int | str], explain: bool = False) -> list[Answer]:
        """Recommendations for users, in their order; as many requests as the server's largest batch makes necessary.

        Args:
            users: raw ids, of the type that the bundle has.
            explain: ask for explanations and stage times, too.

        Raises:
            ServingError: the server cannot be reached, refuses, or answers too late.
        """
        config = self._model()
        most = int(config["max_batch_size"])
        text = config["input"][0]["data_type"] == "TYPE_STRING"
        offered = [output["name"] for output in config["output"]]
        wanted = offered if explain else [name for name in offered if name in ANSWER]
        if explain and "candidates" not in offered:
            raise ServingError(
                f"Triton at {self.address} offers no explanations: serve with RECSYS_TRITON_EXPLAIN=true"
            )
        answers: list[Answer] = []
        for start in range(0, len(users), most):
            block = users[start : start + most]
            columns = self._infer(_ids(block, text), wanted)
            answers += [_answer(user, {name: column[row] for name, column in columns.items()})
                        for row, user in enumerate(block)]  # fmt: skip
        return answers

    def _model(self) -> Mapping[str, Any]:
        """Configuration of the model, read once."""
        if self._config is None:
            try:
                answer = self._client.get_model_config(
                    RECOMMENDER, headers=self._headers, as_json=True, client_timeout=self._timeout
                )
            except InferenceServerException as error:
                raise self._explained(error) from error
            self._config = answer["config"]
        return self._config

    def _infer(self, users: np.ndarray, wanted: Sequence[str]) -> dict[str, np.ndarray]:
        request = triton.InferInput("user_id", list(users.shape), "BYTES" if users.dtype == object else "INT64")
        request.set_data_from_numpy(users)
        try:
            answer = self._client.infer(
                RECOMMENDER,
                [request],
                outputs=[triton.InferRequestedOutput(name) for name in wanted],
                headers=self._headers,
                client_timeout=self._timeout,
            )
        except InferenceServerException as error:
            raise self._explained(error) from error
        return {name: answer.as_numpy(name) for name in wanted}

    def _explained(self, error: InferenceServerException) -> ServingError:
        status, reason = f"{error.status()}", " ".join(f"{error.message()}".split())
        where = f"Triton at {self.address}"
        if "DEADLINE_EXCEEDED" in status:
            return ServingError(
                f"{where} did not answer within {self._timeout} s: check its load and RECSYS_TRITON_TIMEOUT"
            )
        if "SSL" in reason or "certificate" in reason.lower() or "handshake" in reason.lower():
            return ServingError(
                f"{where} fails the TLS handshake ({reason[:200]}): check RECSYS_TRITON_TLS and RECSYS_TRITON_TLS_CA"
            )
        if "restricted" in reason:
            return ServingError(f"{where} refuses the call: set RECSYS_TRITON_TOKEN to the server's token")
        if "Request for unknown model" in reason:
            return ServingError(f"{where} has no model {RECOMMENDER!r}: start it with 'recsys serve'")
        if "UNAVAILABLE" in status and "connect" in reason.lower():
            return ServingError(
                f"cannot reach {where}: is 'recsys serve' running? Check RECSYS_TRITON_HOST, _GRPC_PORT and _TLS"
            )
        if "UNAVAILABLE" in status:
            return ServingError(f"{where} is overloaded, starting or stopping ({reason}): try again in a moment")
        return ServingError(f"{where} answered: {reason}")


def address(settings: TritonSettings) -> str:
    """``host:port`` of the server's gRPC: what is set, else what ``recsys serve`` wrote down, else this machine."""
    if settings.host is not None or ("grpc_port" in settings.model_fields_set and settings.grpc_port):
        return f"{settings.host or '127.0.0.1'}:{settings.grpc_port}"
    try:
        state = json.loads((Path(settings.repository) / STATE).read_text())
        return f"{state['host']}:{state['grpc_port']}"
    except (OSError, ValueError, KeyError):
        return f"127.0.0.1:{settings.grpc_port}"


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
    return Answer(
        user,
        items,
        scores,
        degraded,
        int(row["generation"][0]),
        _explanations(items, row) if "candidates" in row and not degraded else [],
        {name[len(US) :]: float(value[0]) for name, value in row.items() if name.startswith(US)},
    )


def _explanations(items: Sequence[int | str], row: Mapping[str, np.ndarray]) -> list[Explanation]:
    similarity, probability = row["similarity"], row["probability"]
    kept = row["items"] > 0
    nearness = np.where(row["candidates"] > 0, similarity, -np.inf)
    chance = np.where(kept, probability, -np.inf)
    return [
        Explanation(
            item,
            place,
            sources_of(int(row["sources"][at])),
            float(similarity[at]),
            int((nearness > nearness[at]).sum()) + 1,
            int((chance > chance[at]).sum()) + 1,
            float(probability[at]),
        )
        for place, (item, at) in enumerate(zip(items, row["position"].tolist(), strict=False), 1)
    ]
