"""Example 3 from end to end on made-up clicks, as ``make demo-large`` runs it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np

from ..config import DlrmSettings, Settings
from ..data.criteo import CriteoDataset
from ..data.criteo_synthetic import generate
from ..errors import ServingError
from ..hugectr import network
from ..parameter_server.remote import Remote
from ..parameter_server.server import Counts
from ..progress import step
from ..store.cluster import EmbeddedCluster
from .client import DlrmClient
from .configure import MODEL, NETWORK, Place, configure
from .serving import reached, serving
from .statistics import statistics

ROWS = 300_000
BATCH = 64
REQUESTS = 150  # of a phase
TABLE = f"{MODEL}.sparse_embedding0"
METRICS_SECONDS = 2.5  # after which the counts of a request are on Triton's metrics port
UPDATE_SECONDS = 5.0
TOLERANCE = 1e-5
TRAINING: dict[str, Any] = {"epochs": 2}  # enough for a demonstration; values that the user has set win


@dataclass(frozen=True)
class Phase:
    """Some requests, and where their rows came from.

    Attributes:
        name: what was going on.
        requests: of BATCH samples each.
        counts: of the tables' rows.
        p50_ms, p99_ms: that a request took.
    """

    name: str
    requests: int
    counts: Counts
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Shown:
    """What the demonstration did.

    Attributes:
        report: of the training.
        compared, difference: rows asked for, and the largest difference from the trained model's probability.
        phases: requests at first, with a warm cache, and while a node was dead.
        before, after: a sample's probability before and after its rows were changed.
        update_ms: from publishing new rows to the first answer that used them.
    """

    report: dict[str, Any]
    compared: int
    difference: float
    phases: list[Phase]
    before: float
    after: float
    update_ms: float


def demo(settings: Settings) -> Shown:
    """Generate clicks, train on two processes, export, fill a cluster, serve, infer, update, and kill a node.

    Args:
        settings: where data goes; training settings that were set win over the demonstration's own. Redis, RocksDB and
            Triton are started for it, in its own folder and at free ports, and stopped again.
    """
    from ..trainers.torchrec.launch import train

    folder = settings.data / "demo-large"
    model = folder / "dlrm"
    own = {"host": None, "grpc_port": 0, "http_port": 0, "metrics_port": 0, "repository": folder / "triton"}
    settings = settings.model_copy(update={"triton": settings.triton.model_copy(update=own)})
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
        requests = _requests(CriteoDataset(folder / "criteo"), network.read(model / NETWORK).offsets())
        where = triton.host, triton.metrics_port
        with step("4/6  compare with the trained model"):
            sample = np.load(model / "sample.npz")
            found = client.predict(sample["dense"], sample["keys"])
            difference = float(np.abs(found - sample["probability"]).max())
            if not difference <= TOLERANCE:
                raise ServingError(f"Triton's probabilities differ from the trained model's by up to {difference:.1e}")
        with step("5/6  requests; new rows"):
            phases = [_phase(name, client, requests, *where) for name in ("cold cache", "warm cache")]
            dense, keys = sample["dense"][:1], sample["keys"][:1]
            before = float(client.predict(dense, keys)[0])
            with Remote.open(path, settings) as remote:
                rows = np.random.default_rng().standard_normal((keys.size, remote.dims[TABLE]))
                remote.publish(TABLE, keys.ravel(), rows)
            after, update_ms = _changed(client, dense, keys, before)
        with step("6/6  kill a node of the cluster, go on, start it again"):
            cluster.kill(1)
            phases.append(_phase("a node is dead", client, requests, *where))
            cluster.restart(1)
    return Shown(report, len(found), difference, phases, before, after, update_ms)


def _requests(dataset: CriteoDataset, offsets: list[int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Test rows, again and again: dense float32[BATCH, 13], keys int64[BATCH, 26]."""
    while True:
        for rows in dataset.batches("test", BATCH):
            yield rows.dense, rows.ids + np.array(offsets)


def _phase(
    name: str, client: DlrmClient, requests: Iterator[tuple[np.ndarray, np.ndarray]], host: str, metrics_port: int
) -> Phase:
    """Send requests, and see where their rows came from."""
    before = statistics(host, metrics_port)[TABLE]
    seconds = []
    for dense, keys in islice(requests, REQUESTS):
        started = time.perf_counter()
        client.predict(dense, keys)
        seconds.append(time.perf_counter() - started)
    time.sleep(METRICS_SECONDS)
    after = statistics(host, metrics_port)[TABLE]
    counts = Counts(**{key: value - getattr(before, key) for key, value in asdict(after).items()})
    p50, p99 = np.quantile(seconds, [0.5, 0.99]) * 1000
    return Phase(name, REQUESTS, counts, float(p50), float(p99))


def _changed(client: DlrmClient, dense: np.ndarray, keys: np.ndarray, before: float) -> tuple[float, float]:
    """The first other probability of a sample, and after how many milliseconds it came."""
    started = time.perf_counter()
    while (after := float(client.predict(dense, keys)[0])) == before:
        if time.perf_counter() - started > UPDATE_SECONDS:
            raise ServingError(f"published rows were not used within {UPDATE_SECONDS:.0f} s")
    return after, (time.perf_counter() - started) * 1000
