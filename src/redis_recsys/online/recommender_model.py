"""The Triton side of a model: requests of a batch become columns, the runner's columns become responses.

Runs in a process of the Python backend, one per instance, where Triton provides ``triton_python_backend_utils``. This
is the path of every request: the requests of a batch are joined into one array per column, the runner is called once,
and only outputs that a request asks for become tensors.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb

from ..config import load_settings
from ..triton.python_backend import PythonBackendModel
from ..triton.tensors import stack
from .stage_metrics import send_stage_metrics

Columns = dict[str, np.ndarray]


class TritonPythonModel(PythonBackendModel):
    """Class that the Python backend looks for in ``model.py``."""

    def open(self, config: dict[str, Any], parameters: dict[str, str]) -> None:
        """Create the runner of this model's stages."""
        module, name = parameters["runner"].split(":")
        make: Callable[..., Any] = getattr(importlib.import_module(module), name)
        self.runner = make(tuple(parameters["stages"].split(",")), load_settings())
        self.inputs = tuple(field["name"] for field in config["input"])
        self.exporter = send_stage_metrics(self.runner.metrics, pb.MetricFamily)

    def finalize(self) -> None:
        """Send the last counts and close connections."""
        self.exporter.close()
        self.runner.close()

    def answer(self, requests: Sequence[Any]) -> list[Any]:
        """Run the stages once for all requests."""
        tensor, response, find = pb.Tensor, pb.InferenceResponse, pb.get_input_tensor_by_name
        columns: Columns = {}
        parts: list[np.ndarray] = []
        for name in self.inputs:
            parts = [find(request, name).as_numpy() for request in requests]
            columns[name] = stack(parts)
        outputs = self.runner(columns)
        responses = []
        end = 0
        for request, rows in zip(requests, parts, strict=True):
            start, end = end, end + len(rows)
            names = request.requested_output_names()
            responses.append(response([tensor(name, outputs[name][start:end]) for name in names if name in outputs]))
        return responses
