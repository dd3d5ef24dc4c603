"""Example 3 from end to end on made-up clicks, as ``make demo-large`` runs it."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..config import DlrmSettings, Settings
from ..data.criteo.dataset import CriteoDataset
from ..data.criteo.generate import generate
from ..dlrm.configure import TABLE, Place, configure
from ..dlrm.dlrm_client import DlrmClient
from ..dlrm.dlrm_serving import reached, serving
from ..embedded.redis_cluster import EmbeddedCluster
from ..embedded.triton_server import own_triton
from ..errors import ServingError
from ..hugectr import network
from ..parameter_server.remote import Remote
from ..utils.output_kinds import NETWORK
from ..utils.progress import step
from .observer import Observer, Phase, requests_of

ROWS = 300_000
BATCH = 64
REQUESTS = 150  # per phase
UPDATE_SECONDS = 5.0
TOLERANCE = 1e-5
TRAINING: dict[str, Any] = {"epochs": 2}  # enough for a demonstration; the user's settings win


@dataclass(frozen=True)
class DemoReport:
    """Report of the demonstration.

    Attributes:
        report: report of the training.
        compared, difference: number of rows compared, and the largest difference from the trained model's probability.
        phases: requests with a cold cache, with a warm cache, and while a node was dead.
        before, after: a sample's probability before its rows were changed and while they were; then they are restored.
        update_ms: milliseconds from publishing new rows to the first answer that used them.
    """

    report: dict[str, Any]
    compared: int
    difference: float
    phases: list[Phase]
    before: float
    after: float
    update_ms: float


def demo(settings: Settings) -> DemoReport:
    """Generate clicks, train on two processes, export, fill a cluster, serve, infer, update, and kill a node.

    Args:
        settings: data folder and more; explicit training settings win over the demonstration's own. Redis, RocksDB and
            Triton are started for it, in its own folder and at free ports, and stopped again.
    """
    from ..trainers.torchrec.launch import train

    folder = settings.data / "demo-large"
    model = folder / "dlrm"
    settings = own_triton(settings, folder / "triton")
    training = DlrmSettings(**TRAINING | settings.dlrm.model_dump(exclude_unset=True))
    with step(f"1/6  {ROWS:,} made-up clicks in Criteo's form"):
        generate(folder / "criteo", ROWS)
    with step(f"2/6  train on {training.processes} processes, tables sharded; export"):
        report = train(folder / "criteo", model, training)
    with ExitStack() as opened:
        with step("3/6  configure; a Redis Cluster of three nodes; load; serve with Triton"):
            cluster = opened.enter_context(EmbeddedCluster(folder / "cluster"))
            settings = reached(settings, cluster)
            path = configure(model, Place(rocksdb="../rocksdb"))
            triton = opened.enter_context(serving(path, settings, again=True))
            client = opened.enter_context(DlrmClient(settings.triton))
        requests = requests_of(CriteoDataset(folder / "criteo"), network.read(model / NETWORK), BATCH)
        observer = Observer(client, (triton.host, triton.metrics_port), TABLE)
        with step("4/6  compare with the trained model"):
            sample = np.load(model / "sample.npz")
            probability = client.predict(sample["dense"], sample["keys"])
            difference = float(np.abs(probability - sample["probability"]).max())
            if not difference <= TOLERANCE:
                raise ServingError(f"Triton's probabilities differ from the trained model's by up to {difference:.1e}")
        with step("5/6  requests; new rows"):
            phases = [observer.phase(name, requests, REQUESTS) for name in ("cold cache", "warm cache")]
            dense, keys = sample["dense"][:1], sample["keys"][:1]
            before = float(client.predict(dense, keys)[0])
            with Remote.open(path, settings) as remote:
                rows = np.random.default_rng().standard_normal((keys.size, remote.tables[TABLE].dim))
                with remote.changed(TABLE, keys.ravel(), rows):
                    after, update_ms = _changed(client, dense, keys, before)
        with step("6/6  kill a node of the cluster, go on, start it again"):
            cluster.kill(1)
            phases.append(observer.phase("a node is dead", requests, REQUESTS))
            cluster.restart(1)
    return DemoReport(report, len(probability), difference, phases, before, after, update_ms)


def _changed(client: DlrmClient, dense: np.ndarray, keys: np.ndarray, before: float) -> tuple[float, float]:
    """First changed probability of a sample, and the milliseconds until it came."""
    started = time.perf_counter()
    while (after := float(client.predict(dense, keys)[0])) == before:
        if time.perf_counter() - started > UPDATE_SECONDS:
            raise ServingError(f"published rows were not used within {UPDATE_SECONDS:.0f} s")
    return after, (time.perf_counter() - started) * 1000
