"""Base class of models that run in Triton's Python backend.

Each instance is a separate process, where Triton provides ``triton_python_backend_utils``.
"""

from __future__ import annotations

import gc
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import triton_python_backend_utils as pb

from ..errors import RecsysError, one_line


class PythonBackendModel(ABC):
    """Base class of Triton models: start-up, and isolation of failing requests within a batch."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the model with the settings of the server's environment."""
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        try:
            self.open(config, parameters)
        except RecsysError as error:
            raise pb.TritonModelException(f"{error}") from None  # only the line, without a stack trace
        gc.collect()
        gc.freeze()  # loaded objects stay: later collections, which delay requests, need not scan them again

    @abstractmethod
    def open(self, config: dict[str, Any], parameters: dict[str, str]) -> None:
        """Prepare to answer.

        Args:
            config: configuration of the model.
            parameters: its parameters, name -> value.
        """

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer all requests of a batch, together if possible."""
        try:
            return self.answer(requests)
        except Exception as error:
            if len(requests) == 1:
                return [pb.InferenceResponse(error=pb.TritonError(one_line(error) or repr(error)))]
            return [self.execute([request])[0] for request in requests]

    @abstractmethod
    def answer(self, requests: Sequence[Any]) -> list[Any]:
        """Return the responses to a batch of requests."""
