"""The Triton side of the model ``dlrm``: HugeCTR's tensors in and out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb

from ..config import load_settings
from ..parameter_server.server import Counts, ParameterServer
from ..triton.python_backend import PythonBackendModel
from ..triton.tensors import stack
from .configure import INPUTS, OUTPUT
from .inference import DlrmModel, Samples
from .table_metrics import send_table_metrics

COUNTED = tuple(field.name for field in fields(Counts))


class TritonPythonModel(PythonBackendModel):
    """Class that the Python backend looks for in ``model.py``."""

    def initialize(self, args: dict[str, str]) -> None:
        """Note the facts that responses report about this instance, and open the model."""
        self.device = int(args["model_instance_device_id"])
        self.takes_parameters = takes_parameters(pb.InferenceResponse)
        super().initialize(args)

    def open(self, config: dict[str, Any], parameters: dict[str, str]) -> None:
        """Open the parameter server of the ``ps.json`` that the model's configuration names."""
        settings = load_settings()
        with ExitStack() as opened:
            self._server = opened.enter_context(ParameterServer.open(Path(parameters["ps"]), settings))
            self._model = DlrmModel(self._server, config["name"], settings.lookup.threads)
            self._exporter = send_table_metrics(list(self._server.tables), COUNTED, self._counted, pb.MetricFamily)
            self._opened = opened.pop_all()

    def finalize(self) -> None:
        """Send the last counts and close the tiers."""
        self._exporter.close()
        self._opened.close()

    def answer(self, requests: Sequence[Any]) -> list[Any]:
        """Answer all requests with one lookup and one run of the dense part."""
        samples, rows = [], []
        for request in requests:
            tensors = [pb.get_input_tensor_by_name(request, name).as_numpy() for name, _ in INPUTS]
            rows.append(len(tensors[0]))
            samples += [Samples(*row) for row in zip(*tensors, strict=True)]
        chances = iter(self._model.predict(samples))
        return [self.response(stack([next(chances) for _ in range(count)])) for count in rows]

    def response(self, chances: np.ndarray) -> Any:
        """A response, with the parameters that HugeCTR's backend added, if Triton supports them."""
        tensors = [pb.Tensor(OUTPUT, chances)]
        if not self.takes_parameters:
            return pb.InferenceResponse(tensors)
        return pb.InferenceResponse(tensors, parameters={"NumSample": len(chances), "DeviceID": self.device})

    def _counted(self) -> dict[tuple[str, ...], float]:
        return {
            (name, table): getattr(counts, name)
            for table, counts in self._server.statistics().items()
            for name in COUNTED
        }


def takes_parameters(response: Callable[..., Any]) -> bool:
    """Whether responses of this Triton can have parameters: from 25.02 on. nvidia-pytriton has 24.10 (2.51).

    Args:
        response: ``pb.InferenceResponse``.
    """
    try:
        response([], parameters={"NumSample": 0})
    except TypeError:
        return False
    return True
