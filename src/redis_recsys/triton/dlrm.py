"""The Triton side of the model ``dlrm``: HugeCTR's tensors in and out."""

from __future__ import annotations

import gc
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb

from ..config import load_settings
from ..dlrm.configure import INPUTS, OUTPUT
from ..dlrm.model import DlrmModel, Samples
from ..errors import RecsysError
from ..parameter_server.server import Counts, ParameterServer
from .metrics import of_tables
from .model import Batches

COUNTED = tuple(field.name for field in fields(Counts))


class TritonPythonModel(Batches):
    """What the Python backend looks for in ``model.py``."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the parameter server of the ``ps.json`` that the model's configuration names."""
        config = json.loads(args["model_config"])
        self._opened = ExitStack()
        try:
            path = Path(config["parameters"]["ps"]["string_value"])
            settings = load_settings()
            server = self._opened.enter_context(ParameterServer.open(path, settings))
            self._model = DlrmModel(server, config["name"], settings.lookup.threads)
        except RecsysError as error:
            self._opened.close()
            raise pb.TritonModelException(f"{error}") from None  # the line alone, without a stack trace
        self._server = server
        self._exporter = of_tables(list(server.tables), COUNTED, self._counted, pb.MetricFamily)
        gc.collect()
        gc.freeze()  # what is loaded now stays: later collections, which hold up requests, need not look at it again

    def finalize(self) -> None:
        """Send the last counts and close the tiers."""
        self._exporter.close()
        self._opened.close()

    def answer(self, requests: Sequence[Any]) -> list[Any]:
        """One lookup and one run of the dense part for all requests."""
        samples, rows = [], []
        for request in requests:
            tensors = [pb.get_input_tensor_by_name(request, name).as_numpy() for name, _ in INPUTS]
            rows.append(len(tensors[0]))
            samples += [Samples(*row) for row in zip(*tensors, strict=True)]
        chances = iter(self._model.predict(samples))
        return [
            pb.InferenceResponse([pb.Tensor(OUTPUT, _joined([next(chances) for _ in range(count)]))]) for count in rows
        ]

    def _counted(self) -> dict[tuple[str, ...], float]:
        return {
            (name, table): getattr(counts, name)
            for table, counts in self._server.statistics().items()
            for name in COUNTED
        }


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """Probabilities of a request, in one line, as HugeCTR answers."""
    return np.concatenate(parts) if len(parts) != 1 else parts[0]
