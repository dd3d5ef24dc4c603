"""Model repository of the recommender, generated from the declared columns of a partition's models.

Several models are joined by an ensemble; a tensor has its column's name, so the ensemble needs no other wiring than
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
MODEL = "redis_recsys.online.recommender_model:TritonPythonModel"  # what ``model.py`` imports
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
        folder: of the repository; replaced if it is there.
        models: in the order of the flow; one alone must be called ``recommender``, several get an ensemble of that
            name around them.
        settings: instances, batching and cache.
        outward: columns that the client gets although models read them, too.
        runner: ``module:name`` of what is called with a model's stages and the settings, and then with columns.

    Raises:
        ServingError: the models do not fit together, or the alias does not fit them.
        DataError: the folder cannot be written.
    """
    configs = {model.name: _python_model(model, settings, runner, cached=len(models) == 1) for model in models}
    if list(configs) != [RECOMMENDER]:
        if RECOMMENDER in configs:
            raise ServingError(f"of several models none may be called {RECOMMENDER!r}, the name of their ensemble")
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
        # for half a second again and again beside waiting requests. What bounds waiting is the deadline that clients
        # send: Triton drops a request whose client has given up.
        "dynamic_batching": {"max_queue_delay_microseconds": settings.queue_delay},
        "response_cache": {"enable": settings.cache and cached},
        "parameters": {
            "stages": {"string_value": ",".join(model.stages)},
            "runner": {"string_value": runner},
        },
    }


def _ensemble(models: Sequence[Model], outward: Collection[str], settings: TritonSettings) -> dict[str, Any]:
    """The models joined by the names of their columns.

    What the client sends is what a model reads and none before it makes. What it gets is what no model reads
    further, and what is ``outward``. A column that several models make is what the latest made of it; since a tensor of
    an ensemble has one maker, the earlier ones get names of their own.
    """
    last = {field.name: model.name for model in models for field in model.outputs}
    sent: dict[str, Field] = {}
    made: dict[str, Field] = {}
    tensors: dict[str, str] = {}  # what a column is called at this point of the flow
    read: set[str] = set()
    steps = []
    for model in models:
        for field in model.inputs:
            known = made.get(field.name) or sent.setdefault(field.name, field)
            if (known.dtype, known.shape) != (field.dtype, field.shape):
                raise ServingError(f"model {model.name!r} reads {field}, but that column is {known}")
        inputs = {field.name: tensors.get(field.name, field.name) for field in model.inputs}
        read.update(inputs.values())
        for field in model.outputs:
            made[field.name] = field
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
        "output": [tensor(field) for name, field in made.items() if name not in read or name in outward],
        "response_cache": {"enable": settings.cache},
        "ensemble_scheduling": {"step": steps},
    }


def _alias(name: str, recommender: dict[str, Any], settings: TritonSettings) -> dict[str, dict[str, Any]]:
    """Configurations of the public multi-stage example's ensemble, by name: without batching, as it was."""
    tensors = {each["name"]: each for each in (*recommender["input"], *recommender["output"])}
    if any(tensors[each]["data_type"] == TYPES["object"] for each in ("user_id", "item_ids")):
        raise ServingError(
            "RECSYS_TRITON_ALIAS is for ids that are whole numbers, and those of this deployment are text: unset it, "
            "and let clients ask the model 'recommender'"
        )
    old_in, old_out = tensor(Field("user_id_raw", "int32", (-1, 1))), tensor(Field("ordered_ids", "int32", (-1, -1)))
    new_in, *new_out = (
        tensors[each] | {"dims": [-1, *tensors[each]["dims"]]} for each in ("user_id", "item_ids", "scores")
    )
    request, answer = f"{name}-request", f"{name}-answer"
    whole = {"name": name, "platform": "ensemble", "max_batch_size": 0, "input": [old_in], "output": [old_out]}
    made = {each["name"]: each["name"] for each in new_out}
    steps = [
        step(request, {"user_id_raw": "user_id_raw"}, {"user_id": "user_id"}),
        step(RECOMMENDER, {"user_id": "user_id"}, made),
        step(answer, made, {"ordered_ids": "ordered_ids"}),
    ]
    python = {"backend": "python", "max_batch_size": 0}
    instances = {"instance_group": [{"kind": "KIND_CPU", "count": settings.instances}]}
    return {
        request: {"name": request, **python, "input": [old_in], "output": [new_in], **instances},
        answer: {"name": answer, **python, "input": new_out, "output": [old_out], **instances},
        name: whole | {"ensemble_scheduling": {"step": steps}},
    }
