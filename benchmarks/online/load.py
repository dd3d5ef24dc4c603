"""Load on a Triton server over gRPC, cheap enough to leave the machine to the server: about 80 µs per request.

Requests are bytes that differ only in the user, and answers stay bytes until the measurement is over. Users come in
random order and do not repeat, unless ``repeat`` is set. There are two kinds of load:

- closed: a number of workers, each of which asks again as soon as it gets an answer; measures throughput.
- open: requests come at random (Poisson) at a given rate, whether the server keeps up or not; latency counts from the
  time at which a request was due, so that a stall delays all requests behind it. The timer of the event loop is up to
  a millisecond late, which counts too.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

import grpc
import grpc.aio
import numpy as np
import psutil
from prometheus_client.samples import Sample
from tritonclient.grpc import service_pb2

from redis_recsys.triton import metrics_page

METHOD = "/inference.GRPCInferenceService/ModelInfer"
OUTPUTS = ("item_ids", "scores", "degraded", "generation")
TIMEOUT = 30.0  # seconds after which a request counts as an error
WAITING = 1000  # requests of an open load that may be pending
SETTLE = 2.5  # seconds after which the server's metrics are complete


@dataclass(frozen=True)
class Load:
    """Description of a load.

    Attributes:
        address: gRPC address of the server, ``host:port``.
        users: number of users, with raw ids from 1.
        topk: required number of recommendations in an answer.
        seconds: seconds to measure.
        warm_up: preceding seconds of the same load, not measured.
        workers: workers of a closed load.
        rate: requests per second of an open load; None for a closed one.
        repeat: number of users to ask for repeatedly; None: no user twice.
        groups: process groups whose CPU time is measured.
        metrics: host and port of the server's metrics, optional.
    """

    address: str
    users: int
    topk: int
    seconds: float
    warm_up: float = 2.0
    workers: int = 16
    rate: float | None = None
    repeat: int | None = None
    groups: tuple[int, ...] = ()
    metrics: tuple[str, int] | None = None


@dataclass
class Answers:
    """Answers to a load.

    Attributes:
        latencies: seconds, one per answer.
        raw: answers as bytes.
        errors: number of errors by kind.
        seconds: time from the first request to the last answer.
    """

    latencies: list[float] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0


def run(load: Load) -> dict[str, Any]:
    """Put the load on the server and measure; run this in a separate process.

    Returns:
        requests, seconds, per_second, p50_ms, p99_ms, max_ms, errors (by kind), degraded and short (answers with too
        few items); cpu_us by process, microseconds of CPU per request; metrics, the increase of each.
    """
    return asyncio.run(_run(load))


async def _run(load: Load) -> dict[str, Any]:
    async with grpc.aio.insecure_channel(load.address) as channel:
        client = Caller(channel, load)
        await client.ask(load.warm_up)
        if load.metrics:
            await asyncio.sleep(SETTLE)
        metrics, cpu = scrape(load.metrics), cpu_of(load.groups)
        answers = await client.ask(load.seconds)
        used = growth(cpu, cpu_of(load.groups))
        if load.metrics:
            await asyncio.sleep(SETTLE)
        grown = growth(metrics, scrape(load.metrics))
    requests = max(len(answers.raw), 1)
    cpu_us = {name: seconds / requests * 1e6 for name, seconds in used.items()}
    return summary(answers, load.topk) | {"cpu_us": cpu_us, "metrics": grown}


def summary(answers: Answers, topk: int) -> dict[str, Any]:
    """Compute throughput, latencies, and the number of faulty answers."""
    found = Counter({"degraded": 0, "short": 0})
    for raw in answers.raw:
        answer = service_pb2.ModelInferResponse.FromString(raw)
        columns = dict(zip((output.name for output in answer.outputs), answer.raw_output_contents, strict=True))
        found["degraded"] += columns["degraded"] != b"\0"
        items = np.frombuffer(columns["item_ids"], np.int64)
        found["short"] += len(np.unique(items[items >= 0])) < topk
    milliseconds = np.array(answers.latencies or [np.nan]) * 1e3
    p50, p99 = np.percentile(milliseconds, [50, 99])
    return {
        "requests": len(answers.raw),
        "seconds": answers.seconds,
        "per_second": len(answers.raw) / answers.seconds,
        "p50_ms": float(p50),
        "p99_ms": float(p99),
        "max_ms": float(milliseconds.max()),
        "errors": dict(answers.errors),
        **found,
    }


def order(users: int) -> list[int]:
    """Return the users 1 to ``users`` in the order of the requests."""
    return (np.random.default_rng(0).permutation(users) + 1).tolist()


def requests(users: int, repeat: int | None) -> Iterator[bytes]:
    """Yield serialised requests for all users in order, or for the first ``repeat`` of them, forever."""
    request = service_pb2.ModelInferRequest(model_name="recommender")
    request.inputs.add(name="user_id", datatype="INT64", shape=[1, 1])
    for name in OUTPUTS:
        request.outputs.add(name=name)
    request.raw_input_contents.append(bytes(8))
    same = request.SerializeToString()[:-8]  # the field with the highest number comes last: the user
    chosen = iter(order(users)) if repeat is None else cycle(order(users)[:repeat])
    return (same + user.to_bytes(8, "little") for user in chosen)


class Caller:
    def __init__(self, channel: grpc.aio.Channel, load: Load) -> None:
        self._call = channel.unary_unary(METHOD)  # without serialisers: bytes in, bytes out
        self._load = load
        self._requests = requests(load.users, load.repeat)

    async def ask(self, seconds: float) -> Answers:
        """Run a load for so many seconds, or less if no users are left."""
        answers = Answers()
        began = time.perf_counter()
        if self._load.rate is None:
            await asyncio.gather(*(self._work(answers, began + seconds) for _ in range(self._load.workers)))
        else:
            await self._open(answers, self._load.rate, seconds)
        answers.seconds = time.perf_counter() - began
        return answers

    async def _work(self, answers: Answers, until: float) -> None:
        while (began := time.perf_counter()) < until:
            request = next(self._requests, None)
            if request is None:
                return
            await self._one(answers, request, began)

    async def _open(self, answers: Answers, rate: float, seconds: float) -> None:
        pauses = np.random.default_rng(1).exponential(1 / rate, round(rate * seconds))
        tasks: set[asyncio.Task[None]] = set()
        for due, request in zip((time.perf_counter() + np.cumsum(pauses)).tolist(), self._requests, strict=False):
            await asyncio.sleep(max(due - time.perf_counter(), 0))
            if len(tasks) >= WAITING:
                answers.errors[f"not sent, {WAITING} were waiting"] += 1
                continue
            task = asyncio.create_task(self._one(answers, request, due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        while tasks:
            await asyncio.wait(tasks)

    async def _one(self, answers: Answers, request: bytes, began: float) -> None:
        try:
            answer = await self._call(request, timeout=TIMEOUT)
        except grpc.RpcError as error:
            answers.errors[f"{error.code().name}: {error.details()}"] += 1
        else:
            answers.latencies.append(time.perf_counter() - began)
            answers.raw.append(answer)


def scrape(metrics: tuple[str, int] | None) -> dict[str, float]:
    """Read the counters of a server's metrics, by name with labels; none without an address."""
    if metrics is None:
        return {}
    return {_series(sample): sample.value for sample in metrics_page.scrape(*metrics)}


def _series(sample: Sample) -> str:
    """Format name and labels like Prometheus."""
    labels = ",".join(f'{name}="{value}"' for name, value in sample.labels.items())
    return f"{sample.name}{{{labels}}}" if labels else sample.name


def cpu_of(groups: Collection[int]) -> dict[str, float]:
    """CPU seconds so far of all processes in some process groups, by program name, and of this process."""
    seconds: defaultdict[str, float] = defaultdict(float)
    for process in psutil.process_iter() if groups else ():
        with suppress(psutil.NoSuchProcess, ProcessLookupError):  # the process has just ended
            if os.getpgid(process.pid) in groups:
                used = process.cpu_times()
                seconds[process.name()] += used.user + used.system
    return {**seconds, "load generator": time.process_time()}


def growth(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    return {name: value - before.get(name, 0.0) for name, value in after.items()}
