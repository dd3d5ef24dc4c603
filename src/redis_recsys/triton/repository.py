"""Triton's model repositories: one folder per model, with ``config.pbtxt`` and, for Python models, ``1/model.py``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..utils.files import written_aside
from ..utils.output_kinds import REPOSITORY
from .tensors import Field

TYPES = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float32": "TYPE_FP32",
    "object": "TYPE_STRING",
}


def write_models(folder: Path, configs: Mapping[str, dict[str, Any]], modules: Mapping[str, str]) -> None:
    """Write a repository, completely or not at all.

    Args:
        folder: folder of the repository; replaced if this library wrote it.
        configs: name of each model -> fields of Triton's ``ModelConfig``.
        modules: name of each Python model -> ``module:class`` that its ``model.py`` imports.

    Raises:
        ConfigError: tritonclient is not installed.
        DataError: the folder cannot be written.
    """
    with written_aside(folder, REPOSITORY) as aside:
        for name, config in configs.items():
            version = aside / name / "1"
            version.mkdir(parents=True)
            (version.parent / "config.pbtxt").write_text(pbtxt(config))
            if name in modules:
                module, class_name = modules[name].split(":")
                (version / "model.py").write_text(
                    f"from {module} import {class_name} as TritonPythonModel  # noqa: F401\n"
                )


def tensor(field: Field) -> dict[str, Any]:
    """A column as an input or output of a model."""
    return {"name": field.name, "data_type": TYPES[field.dtype], "dims": list(field.shape)}


def step(model: str, inputs: dict[str, str], outputs: dict[str, str]) -> dict[str, Any]:
    """Step of an ensemble.

    Args:
        model: name of the model.
        inputs, outputs: tensor of the model -> tensor of the ensemble.
    """
    return {"model_name": model, "model_version": -1, "input_map": inputs, "output_map": outputs}


def pbtxt(config: dict[str, Any]) -> str:
    """A model's configuration in protobuf's text format.

    Args:
        config: fields of Triton's ``ModelConfig`` by name.

    Raises:
        ConfigError: tritonclient, which defines the fields, is not installed.
    """
    try:  # here and not above: it takes half a second and more, which clients need not spend
        from google.protobuf import json_format, text_format
        from tritonclient.grpc import model_config_pb2
    except ImportError as missing:
        raise ConfigError("configurations of Triton need tritonclient: pip install 'redis-recsys[online]'") from missing
    return str(text_format.MessageToString(json_format.ParseDict(config, model_config_pb2.ModelConfig())))
