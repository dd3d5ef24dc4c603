"""Load on the model ``dlrm`` in Triton, with its table in the tiers and with all of it in memory.

Both servers run at the same time and get the same samples in turns, so that a drift of the machine favours neither;
the other server idles.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
from pydantic import SecretStr
from tritonclient.grpc import service_pb2

from benchmarks.large_scale.tiers import BLOCK, DIM, SLOTS, draw
from benchmarks.measure import in_child
from benchmarks.online import load
from redis_recsys.config import LookupSettings, RedisSettings, Settings, TritonSettings, as_variables
from redis_recsys.data.criteo.generate import PUBLIC_SIZES, scaled
from redis_recsys.dlrm.configure import INPUTS, MODEL, OUTPUT, TABLE, Place, configure
from redis_recsys.dlrm.dlrm_client import DlrmClient
from redis_recsys.dlrm.dlrm_serving import SECTIONS, serving, write_repository
from redis_recsys.embedded.redis_cluster import EmbeddedCluster
from redis_recsys.embedded.triton_server import EmbeddedTriton
from redis_recsys.hugectr import dense, network, sparse
from redis_recsys.hugectr.network import DlrmShape
from redis_recsys.utils.output_kinds import DENSE, NETWORK, SPARSE

FEATURES, BOTTOM, TOP = 13, (512, 256, DIM), (1024, 1024, 512, 256, 1)  # the public shape
TIERS, MEMORY = "tiers", "memory"
LOADS = tuple(itertools.product((64, 1), (16, 1)))  # samples per request, concurrent requests; the hardest load first
MODULE = """import sys

sys.path.insert(0, {!r})

from benchmarks.large_scale.in_memory import TritonPythonModel

__all__ = ["TritonPythonModel"]
"""
POOL = 500_000  # distinct samples, which then repeat
ROUNDS = 4  # turns per server
WARM_UP = 1.5  # warm-up seconds of each load
FIRST = 10.0  # warm-up seconds of the first load, since the cache is empty
WEIGHT = 0.1  # standard deviation of the embeddings


@dataclass(frozen=True)
class Server:
    """Server under test.

    Attributes:
        address: gRPC address, ``host:port``.
        metrics: host and port of its metrics.
        groups: process groups whose CPU time counts.
    """

    address: str
    metrics: tuple[str, int]
    groups: tuple[int, ...]


class Client(load.Caller):
    """Workers that send samples instead of users."""

    def __init__(self, channel: grpc.aio.Channel, server: Server, workers: int, requests: Iterator[bytes]) -> None:
        super().__init__(channel, load.Load(server.address, users=0, topk=0, seconds=0.0, workers=workers))
        self._requests = requests


def measure(home: Path, cluster: EmbeddedCluster, rows: int, seconds: float) -> dict[str, Any]:
    """Write a model, serve it both ways, and measure all loads.

    Returns:
        Rows of the table, and for each load ``<samples>x<workers>`` the result of :func:`run`.
    """
    shape = write_model(home / "dlrm", rows)
    host, port = cluster.addresses[0]
    settings = Settings(
        data=home,
        redis=RedisSettings(host=host, port=port, password=SecretStr(cluster.password)),
        lookup=LookupSettings(device="cpu", timeout=5.0),
    )
    there = configure(home / "dlrm", Place(rocksdb="../dlrm-rocksdb"))
    with ExitStack() as stack:
        ports = {"grpc_port": 0, "http_port": 0, "metrics_port": 0}
        own = {name: TritonSettings(repository=home / f"triton-{name}", **ports) for name in (TIERS, MEMORY)}
        tiers = stack.enter_context(serving(there, settings.model_copy(update={"triton": own[TIERS]})))
        memory = stack.enter_context(in_memory(there, settings.model_copy(update={"triton": own[MEMORY]})))
        same_answers(shape, tiers, memory)
        redis = tuple(os.getpgid(pid) for pid in cluster.pids() if pid is not None)
        servers = {TIERS: _server(tiers, redis), MEMORY: _server(memory, ())}
        found: dict[str, Any] = {"rows": sum(shape.slot_sizes)}
        for number, (samples, workers) in enumerate(LOADS):
            warm_up = WARM_UP if number else FIRST
            result = in_child(run, servers, shape, samples, workers, seconds, warm_up)
            found[f"{samples}x{workers}"] = result
            figures = (f"{name} {result[name]['per_second']:,.0f}/s" for name in servers)
            print(f"  {samples} samples, {workers} at a time: {', '.join(figures)}", flush=True)
    return found


def write_model(folder: Path, rows: int) -> DlrmShape:
    """Write a DLRM with random weights in HugeCTR's files: the public shape, with slots scaled down to about
    ``rows`` rows altogether."""
    folder.mkdir()
    shape = DlrmShape(FEATURES, tuple(scaled(rows / sum(PUBLIC_SIZES))), DIM, BOTTOM, TOP)
    random = np.random.default_rng(0)
    layers = [
        (random.standard_normal(size, np.float32) * np.float32(np.sqrt(2 / size[0])), np.zeros(size[1], np.float32))
        for size in shape.layers()
    ]
    network.write(folder / NETWORK, shape)
    dense.write(folder / DENSE, layers)
    keys = np.array_split(np.arange(sum(shape.slot_sizes)), -(-rows // BLOCK))
    drawn = (np.float32(WEIGHT) * random.standard_normal((len(block), DIM), np.float32) for block in keys)
    sparse.write(folder / SPARSE, zip(keys, drawn, strict=True))
    return shape


def in_memory(path: Path, settings: Settings) -> EmbeddedTriton:
    """Run Triton with the model of ``benchmarks.large_scale.in_memory``."""

    def write(folder: Path) -> None:
        write_repository(folder, path, settings)
        (folder / MODEL / "1" / "model.py").write_text(MODULE.format(str(Path(__file__).absolute().parents[1])))

    return EmbeddedTriton(settings.triton, write, as_variables(settings, SECTIONS))


def same_answers(shape: DlrmShape, *tritons: EmbeddedTriton) -> None:
    """Check that all servers have the same model."""
    features, keys = draw_samples(shape, 64)
    answers = []
    for triton in tritons:
        with DlrmClient(TritonSettings(host=triton.host, grpc_port=triton.grpc_port)) as client:
            answers.append(client.predict(features, keys))
    np.testing.assert_allclose(answers[1:], [answers[0]] * (len(answers) - 1), rtol=1e-5)


def _server(triton: EmbeddedTriton, others: tuple[int, ...]) -> Server:
    return Server(
        f"{triton.host}:{triton.grpc_port}",
        (triton.host, triton.metrics_port),
        (triton.pid, *others),
    )


def draw_samples(shape: DlrmShape, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Dense features float32[count, 13], and keys int64[count, 26] that follow a power law in each slot."""
    random = np.random.default_rng(5)
    keys = [
        draw(random, count, size, skewed=True) + offset
        for size, offset in zip(shape.slot_sizes, shape.offsets(), strict=True)
    ]
    return random.random((count, FEATURES), np.float32), np.stack(keys, axis=1)


def requests(pool: tuple[np.ndarray, np.ndarray], samples: int) -> Iterator[bytes]:
    """Yield serialised requests for so many samples of a pool each, without end."""
    features, keys = pool
    pointers = np.arange(samples * SLOTS + 1, dtype=np.int32).tobytes()
    request = service_pb2.ModelInferRequest(model_name=MODEL)
    sizes = (samples * FEATURES * 4, samples * SLOTS * 8, len(pointers))
    heads = []
    for (name, kind), size, width in zip(INPUTS, sizes, (4, 8, 4), strict=True):
        request.inputs.add(name=name, datatype=kind.removeprefix("TYPE_"), shape=[1, size // width])
        alone = service_pb2.ModelInferRequest(raw_input_contents=[bytes(size)]).SerializeToString()
        heads.append(alone[:-size])
    request.outputs.add(name=OUTPUT)
    heads[0] = request.SerializeToString() + heads[0]  # raw contents are the field with the highest number
    for start in itertools.cycle(range(0, len(keys) - samples + 1, samples)):
        part = slice(start, start + samples)
        yield b"".join((heads[0], features[part].tobytes(), heads[1], keys[part].tobytes(), heads[2], pointers))


def run(
    servers: dict[str, Server], shape: DlrmShape, samples: int, workers: int, seconds: float, warm_up: float
) -> dict[str, Any]:
    """Put one load on all servers, in turns; run this in a separate process.

    Args:
        servers: servers by name.
        shape: shape of the model.
        samples: samples per request.
        workers: concurrent requests.
        seconds: seconds of load on each server, in ``ROUNDS`` turns.
        warm_up: preceding seconds of the same load, not measured.

    Returns:
        By server: requests, per_second, samples_per_s, p50_ms, p99_ms, errors (by kind), short (answers of the wrong
        length); cpu_us by process, microseconds of CPU per request; together, average number of requests that Triton
        computed at once; and hit_rate of the cache, if there is one.
    """
    return asyncio.run(_run(servers, shape, samples, workers, seconds, warm_up))


async def _run(
    servers: dict[str, Server], shape: DlrmShape, samples: int, workers: int, seconds: float, warm_up: float
) -> dict[str, Any]:
    pool = draw_samples(shape, POOL)
    answers = {name: load.Answers() for name in servers}
    used: dict[str, Counter[str]] = {name: Counter() for name in servers}
    async with AsyncExitStack() as stack:
        clients = {}
        for name, server in servers.items():
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(server.address))
            clients[name] = Client(channel, server, workers, requests(pool, samples))
        for client in clients.values():
            await client.ask(warm_up)
        await asyncio.sleep(load.SETTLE)
        before = {name: load.scrape(server.metrics) for name, server in servers.items()}
        for turn in range(ROUNDS):
            for name in list(servers)[:: -1 if turn % 2 else 1]:
                cpu = load.cpu_of(servers[name].groups)
                part = await clients[name].ask(seconds / ROUNDS)
                used[name].update(load.growth(cpu, load.cpu_of(servers[name].groups)))
                _add(answers[name], part)
        await asyncio.sleep(load.SETTLE)
        grown = {name: load.growth(before[name], load.scrape(server.metrics)) for name, server in servers.items()}
    return {name: _summary(answers[name], samples, used[name], grown[name]) for name in servers}


def _add(answers: load.Answers, part: load.Answers) -> None:
    answers.latencies += part.latencies
    answers.raw += part.raw
    answers.errors += part.errors
    answers.seconds += part.seconds


def _summary(answers: load.Answers, samples: int, used: Counter[str], grown: dict[str, float]) -> dict[str, Any]:
    found = [service_pb2.ModelInferResponse.FromString(raw).raw_output_contents for raw in answers.raw]
    count = max(len(found), 1)
    p50, p99 = np.percentile(np.array(answers.latencies or [np.nan]) * 1e3, [50, 99])
    keys = grown.get(f'recsys_table_keys_total{{table="{TABLE}"}}', 0.0)
    hits = grown.get(f'recsys_table_cache_total{{table="{TABLE}"}}', 0.0)
    runs = sum(value for name, value in grown.items() if name.startswith("nv_inference_exec_count"))
    return {
        "requests": len(found),
        "per_second": len(found) / answers.seconds,
        "samples_per_s": len(found) * samples / answers.seconds,
        "p50_ms": float(p50),
        "p99_ms": float(p99),
        "errors": dict(answers.errors),
        "short": sum(len(contents[0]) != 4 * samples for contents in found),
        "cpu_us": {name: seconds / count * 1e6 for name, seconds in used.items()},
        "together": len(found) / runs if runs else None,
        "hit_rate": hits / keys if keys else None,
    }
