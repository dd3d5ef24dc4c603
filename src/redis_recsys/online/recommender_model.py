"""The Triton side of a model: requests of a batch become columns, the runner's columns become responses.

Runs in a process of the Python backend, one per instance, where Triton provides ``triton_python_backend_utils``. This
is the path of every request: the requests of a batch are joined into one array per column, the runner is called once,
and only outputs that a request asks for become tensors.
"""

from __future__ import annotations

import gc
import importlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb

from ..config import load_settings
from ..errors import RecsysError
from ..triton.counters import of_stages
from .stages.stage import stack

Columns = dict[str, np.ndarray]


class Batches(ABC):
    """What models have in common: how they start, and that a request that fails takes no other of its batch with it."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the model, with the settings of the server's environment."""
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        try:
            self.open(config, parameters)
        except RecsysError as error:
            raise pb.TritonModelException(f"{error}") from None  # the line alone, without a stack trace
        gc.collect()
        gc.freeze()  # what is loaded now stays: later collections, which hold up requests, need not look at it again

    @abstractmethod
    def open(self, config: dict[str, Any], parameters: dict[str, str]) -> None:
        """Get ready to answer.

        Args:
            config: of the model.
            parameters: in it, name -> value.
        """

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer all requests of a batch, together if possible."""
        try:
            return self.answer(requests)
        except Exception as error:
            if len(requests) == 1:
                return [pb.InferenceResponse(error=pb.TritonError(" ".join(f"{error}".split()) or repr(error)))]
            return [self.execute([request])[0] for request in requests]

    @abstractmethod
    def answer(self, requests: Sequence[Any]) -> list[Any]:
        """The responses to a batch of requests."""


class TritonPythonModel(Batches):
    """What the Python backend looks for in ``model.py``."""

    def open(self, config: dict[str, Any], parameters: dict[str, str]) -> None:
        """Make the runner of this model's stages."""
        module, name = parameters["runner"].split(":")
        make: Callable[..., Any] = getattr(importlib.import_module(module), name)
        self.runner = make(tuple(parameters["stages"].split(",")), load_settings())
        self.inputs = tuple(field["name"] for field in config["input"])
        self.exporter = of_stages(self.runner.timings, pb.MetricFamily)

    def finalize(self) -> None:
        """Send the last counts and let go of connections."""
        self.exporter.close()
        self.runner.close()

    def answer(self, requests: Sequence[Any]) -> list[Any]:
        """One run of the stages for all requests."""
        tensor, response, find = pb.Tensor, pb.InferenceResponse, pb.get_input_tensor_by_name
        columns: Columns = {}
        parts: list[np.ndarray] = []
        for name in self.inputs:
            parts = [find(request, name).as_numpy() for request in requests]
            columns[name] = stack(parts)
        made = self.runner(columns)
        responses = []
        end = 0
        for request, part in zip(requests, parts, strict=True):
            start, end = end, end + len(part)
            wanted = request.requested_output_names()
            responses.append(response([tensor(name, made[name][start:end]) for name in wanted if name in made]))
        return responses
