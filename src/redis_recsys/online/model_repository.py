"""Model repository of the recommender, generated from the declared columns of a partition's models.

An ensemble joins several models; a tensor has its column's name, so the ensemble needs no wiring other than
names. An alias, for clients of the public multi-stage example, is an ensemble around the outermost model; see
``triton_alias``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import TritonSettings
from ..errors import ServingError
from ..triton.repository import TYPES, step, tensor, write_models
from ..triton.tensors import Field

if TYPE_CHECKING:
    from .partition import Model

RECOMMENDER = "recommender"
RUNNER = "redis_recsys.online.runner:Runner"
MODEL = "redis_recsys.online.recommender_model:TritonPythonModel"  # imported by ``model.py``
ALIAS_REQUEST, ALIAS_ANSWER = "redis_recsys.online.triton_alias:Request", "redis_recsys.online.triton_alias:Answer"


def write(
    folder: Path,
    models: Sequence[Model],
    settings: TritonSettings,
    outward: Collection[str] = (),
    runner: str = RUNNER,
) -> None:
    """Write the repository of ``models``, whole or not at all.

    Args:
        folder: folder of the repository; replaced if it exists.
        models: models in the order of the flow; a single one must be called ``recommender``, several get an ensemble
            of that name around them.
        settings: instances, batching and cache.
        outward: columns that the client gets although models read them.
        runner: ``module:name`` of the runner, called with a model's stages and the settings, and then with columns.

    Raises:
        ServingError: the models do not fit together, or the alias does not fit them.
        DataError: the folder cannot be written.
    """
    configs = {model.name: _python_model(model, settings, runner, cached=len(models) == 1) for model in models}
    if list(configs) != [RECOMMENDER]:
        if RECOMMENDER in configs:
            raise ServingError(f"none of several models may be called {RECOMMENDER!r}, the name of their ensemble")
        configs[RECOMMENDER] = _ensemble(models, outward, settings)
    modules = {name: MODEL for name, config in configs.items() if "backend" in config}
    if settings.alias is not None:
        added = _alias(settings.alias, configs[RECOMMENDER], settings)
        if taken := configs.keys() & added:
            raise ServingError(f"RECSYS_TRITON_ALIAS is {settings.alias!r}, a name that {min(taken)!r} has already")
        configs |= added
        modules |= {f"{settings.alias}-request": ALIAS_REQUEST, f"{settings.alias}-answer": ALIAS_ANSWER}
    write_models(folder, configs, modules)


def _python_model(model: Model, settings: TritonSettings, runner: str, cached: bool) -> dict[str, Any]:
    return {
        "name": model.name,
        "backend": "python",
        "max_batch_size": settings.max_batch,
        "input": [
            tensor(field) | ({"allow_ragged_batch": True} if -1 in field.shape else {}) for field in model.inputs
        ],
        "output": [tensor(field) for field in model.outputs],
        "instance_group": [{"kind": "KIND_CPU", "count": settings.instances}],
        # No queue policy: with a limit of its length or a time limit, one instance of Triton 2.51 was measured to pause
        # repeatedly for half a second while requests waited. The deadline that clients send bounds the waiting: Triton
        # drops a request whose client has given up.
        "dynamic_batching": {"max_queue_delay_microseconds": settings.queue_delay},
        "response_cache": {"enable": settings.cache and cached},
        "parameters": {
            "stages": {"string_value": ",".join(model.stages)},
            "runner": {"string_value": runner},
        },
    }


def _ensemble(models: Sequence[Model], outward: Collection[str], settings: TritonSettings) -> dict[str, Any]:
    """The models joined by the names of their columns.

    The client sends the columns that a model reads and no earlier one produces. It gets those that no model reads
    afterwards, and the ``outward`` ones. The last model wins for a column that several produce; since only one may
    produce a tensor of an ensemble, the earlier ones get their own names.
    """
    last = {field.name: model.name for model in models for field in model.outputs}
    sent: dict[str, Field] = {}
    produced: dict[str, Field] = {}
    tensors: dict[str, str] = {}  # column -> name of its tensor at this point of the flow
    read: set[str] = set()
    steps = []
    for model in models:
        for field in model.inputs:
            declared = produced.get(field.name) or sent.setdefault(field.name, field)
            if (declared.dtype, declared.shape) != (field.dtype, field.shape):
                raise ServingError(f"model {model.name!r} reads {field}, but that column is {declared}")
        inputs = {field.name: tensors.get(field.name, field.name) for field in model.inputs}
        read.update(inputs.values())
        for field in model.outputs:
            produced[field.name] = field
            own = field.name if last[field.name] == model.name else f"{field.name}.{model.name}"
            if field.name in sent and own == field.name:
                raise ServingError(f"model {model.name!r} makes column {field.name!r}, which the client sends")
            tensors[field.name] = own
        outputs = {field.name: tensors[field.name] for field in model.outputs}
        steps.append(step(model.name, inputs, outputs))
    return {
        "name": RECOMMENDER,
        "platform": "ensemble",
        "max_batch_size": settings.max_batch,
        "input": [tensor(field) for field in sent.values()],
        "output": [tensor(field) for name, field in produced.items() if name not in read or name in outward],
        "response_cache": {"enable": settings.cache},
        "ensemble_scheduling": {"step": steps},
    }


def _alias(name: str, recommender: dict[str, Any], settings: TritonSettings) -> dict[str, dict[str, Any]]:
    """Configurations of the public multi-stage example's ensemble, by name; without batching, as there."""
    tensors = {declared["name"]: declared for declared in (*recommender["input"], *recommender["output"])}
    if any(tensors[column]["data_type"] == TYPES["object"] for column in ("user_id", "item_ids")):
        raise ServingError(
            "RECSYS_TRITON_ALIAS is for ids that are whole numbers, and those of this deployment are text: unset it, "
            "and let clients ask the model 'recommender'"
        )
    old_in, old_out = tensor(Field("user_id_raw", "int32", (-1, 1))), tensor(Field("ordered_ids", "int32", (-1, -1)))
    new_in, *new_out = (
        tensors[column] | {"dims": [-1, *tensors[column]["dims"]]} for column in ("user_id", "item_ids", "scores")
    )
    request, answer = f"{name}-request", f"{name}-answer"
    whole = {"name": name, "platform": "ensemble", "max_batch_size": 0, "input": [old_in], "output": [old_out]}
    outputs = {output["name"]: output["name"] for output in new_out}
    steps = [
        step(request, {"user_id_raw": "user_id_raw"}, {"user_id": "user_id"}),
        step(RECOMMENDER, {"user_id": "user_id"}, outputs),
        step(answer, outputs, {"ordered_ids": "ordered_ids"}),
    ]
    python = {"backend": "python", "max_batch_size": 0}
    instances = {"instance_group": [{"kind": "KIND_CPU", "count": settings.instances}]}
    return {
        request: {"name": request, **python, "input": [old_in], "output": [new_in], **instances},
        answer: {"name": answer, **python, "input": new_out, "output": [old_out], **instances},
        name: whole | {"ensemble_scheduling": {"step": steps}},
    }
