"""Partitions of the online pipeline: its stages, and their division among Triton's models."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..config import OnlineSettings, Settings
from ..triton.tensors import Field
from .stages.candidates import Candidates, CandidatesWithFeatures
from .stages.feast_features import ItemFeaturesFromFeast, UserFeaturesFromFeast
from .stages.filter import Filter
from .stages.item_features import ItemFeatures, ItemFeaturesInMemory
from .stages.ordering import Ordering
from .stages.ranking import Ranking, RankingOfFeatures
from .stages.stage import Stage
from .stages.user_embedding import UserEmbedding
from .stages.user_features import UserFeatures

USERS: dict[str, type[Stage]] = {"packed": UserFeatures, "feast": UserFeaturesFromFeast}
ITEMS: dict[str, tuple[type[Stage], ...]] = {
    "memory": (Candidates, Filter, ItemFeaturesInMemory, Ranking),
    "packed": (Candidates, Filter, ItemFeatures, RankingOfFeatures),
    "feast": (Candidates, Filter, ItemFeaturesFromFeast, RankingOfFeatures),
    "attributes": (CandidatesWithFeatures, Filter, RankingOfFeatures),
}
CONSOLIDATED = ("candidates", "filter", "item_features")  # one model in the partition ``consolidated``
STATUS = (Field("degraded", "bool"), Field("generation", "int64"))
OUTWARD = ("item_ids", "scores")
EXPLAINING = ("candidates", "similarity", "sources", "items", "probability", "position")


@dataclass(frozen=True)
class Model:
    """One part of a partition: stages that run in one process.

    Attributes:
        name: name of the model; the outermost is ``recommender``.
        stages: names of the stages, in order.
        inputs, outputs: columns that come from and go to other models or the client.
    """

    name: str
    stages: tuple[str, ...]
    inputs: tuple[Field, ...]
    outputs: tuple[Field, ...]


def stages_of(settings: OnlineSettings) -> dict[str, type[Stage]]:
    """Stages by name, in order, in the alternatives that the settings choose."""
    stages: list[type[Stage]] = [USERS[settings.users], UserEmbedding, *ITEMS[settings.items], Ordering]
    return {stage.name: stage for stage in stages}


def models(settings: Settings, user_ids: str, item_ids: str) -> list[Model]:
    """Models that the stages are divided among, in order; the only or outermost one is ``recommender``.

    Every model after the first takes ``degraded`` and ``generation``, and every one passes ``degraded`` on.

    Args:
        settings: the partition, and the alternatives of the stages.
        user_ids, item_ids: type of the raw ids, ``int`` or ``str``.
    """
    stages = stages_of(settings.online)
    partition = settings.triton.partition
    if partition == "fused":
        groups = [("recommender", tuple(stages))]
    else:
        merged = CONSOLIDATED if partition == "consolidated" else ()
        groups = [
            (name, tuple(other for other in stages if other in merged) if name in merged else (name,))
            for name in stages
            if name not in merged[1:]
        ]
    ids = {"user": user_ids, "item": item_ids}
    outward = OUTWARD + (EXPLAINING if settings.triton.explain else ())
    result = []
    for index, (name, names) in enumerate(groups):
        own = [stages[stage_name] for stage_name in names]
        later = [stages[stage_name] for _, later_names in groups[index + 1 :] for stage_name in later_names]
        produced = {field.name: field for stage in own for field in stage.outputs}
        read = {field.name: field for stage in own for field in stage.inputs if field.name not in produced}
        needed = {field.name for stage in later for field in stage.inputs} | set(outward)
        timings = [Field(f"us_{stage_name}", "float32") for stage_name in names if settings.triton.explain]
        degraded, generation = STATUS
        inputs = [*read.values(), *(STATUS if index else ())]
        outputs = [*(field for field in produced.values() if field.name in needed), degraded, *timings]
        if not index:
            outputs.append(generation)
        result.append(Model(name, names, *(tuple(_typed(f, ids) for f in fields) for fields in (inputs, outputs))))
    return result


def _typed(field: Field, ids: dict[str, str]) -> Field:
    return replace(field, dtype={"int": "int64", "str": "object"}[ids[field.dtype]]) if field.dtype in ids else field
