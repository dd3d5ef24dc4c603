"""Real Tritons with trivial models, and requests to them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as grpc

from redis_recsys.config import TritonSettings
from redis_recsys.embedded.triton_server import EmbeddedTriton
from redis_recsys.online.model_repository import write
from redis_recsys.online.partition import Model
from redis_recsys.triton.metrics_page import scrape
from redis_recsys.triton.tensors import Field
from tests.support.paths import ROOT

USER = Field("user_id", "int64")
ANSWER = (Field("item_ids", "int64", (20,)), Field("scores", "float32", (20,)))
STATUS = (Field("degraded", "bool"), Field("generation", "int64"))
COUNTS = (Field("rows", "int64"), Field("pid", "int64"))
CANDIDATES = Field("candidates", "int32", (-1,))
WHOLE = [Model("recommender", ("whole",), (USER,), (*ANSWER, *STATUS, *COUNTS))]


def three(ids: str) -> list[Model]:
    """A partition in which models make, read, and remake a column."""
    user, items = Field("user_id", ids), Field("item_ids", ids, (20,))
    degraded, generation = STATUS
    return [
        Model("first", ("first",), (user,), (CANDIDATES, degraded, generation)),
        Model(
            "middle", ("middle",), (CANDIDATES, degraded), (Field("size", "int64"), Field("width", "int64"), degraded)
        ),
        Model("last", ("last",), (user, generation), (items, ANSWER[1], COUNTS[0])),
    ]


def settings_in(folder: Path, **changes: Any) -> TritonSettings:
    """Settings of a Triton on free ports with its files in ``folder``."""
    ports = {"grpc_port": 0, "http_port": 0, "metrics_port": 0}
    return TritonSettings.model_validate(
        {"repository": folder, "environment": ROOT / ".venv-serving", "instances": 1, **ports, **changes}
    )


def triton_of(
    settings: TritonSettings, models: list[Model], alter: Callable[[Path], None] = lambda _: None, **variables: str
) -> EmbeddedTriton:
    """A Triton, not yet started, of models whose stages are doubles.

    Args:
        alter: function that changes the written model repository.
        variables: variables of the server's environment.
    """

    def write_models(folder: Path) -> None:
        write(folder, models, settings, outward=("generation", "candidates"), runner="doubles:Runner")
        for model in models:  # the Python backend looks for modules beside model.py
            shutil.copy(Path(__file__).with_name("doubles.py"), folder / model.name / "1")
        alter(folder)

    return EmbeddedTriton(settings, write_models, variables)


def infer(server: EmbeddedTriton, users: list[int], *names: str, timeout: float = 10) -> dict[str, np.ndarray]:
    """Outputs by name, those that the answer has; without names: all."""
    with grpc.InferenceServerClient(f"{server.host}:{server.grpc_port}") as client:
        request = grpc.InferInput("user_id", [len(users), 1], "INT64")
        request.set_data_from_numpy(np.array(users, np.int64)[:, None])
        outputs = [grpc.InferRequestedOutput(name) for name in names] or None
        answer = client.infer("recommender", [request], outputs=outputs, client_timeout=timeout)
        return {output.name: answer.as_numpy(output.name) for output in answer.get_response().outputs}


def metric(server: EmbeddedTriton, name: str, **labels: str) -> float:
    """Sum of a metric's samples that have these labels."""
    samples = scrape(server.host, server.metrics_port)
    return sum(each.value for each in samples if each.name == name and labels.items() <= each.labels.items())
