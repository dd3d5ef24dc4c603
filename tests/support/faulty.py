"""Helpers for tests of faults: a Redis that restarts at the same address, a network in between, the whole of serving
with small models, and load on it that keeps every answer."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from redis_recsys.bundle.bundle import Bundle
from redis_recsys.config import DeploySettings, OnlineSettings, RedisSettings, Settings, TritonSettings
from redis_recsys.embedded.redis_binary import find_redis_server
from redis_recsys.embedded.triton_server import EmbeddedTriton
from redis_recsys.errors import StoreError
from redis_recsys.online.recommender_client import Answer, Client
from redis_recsys.online.serving import serving
from redis_recsys.store.connection import client_of
from redis_recsys.store.events import publish
from redis_recsys.utils.ports import free_ports
from tests.support.tritons import ROOT

HOST, PASSWORD = "127.0.0.1", "sesame"
K = 5
BOUND = 2.5  # seconds within which every request must be answered while Redis fails
# Few of the 40 items are candidates, so that answers differ between deployments. Redis gets more time than by
# default: these machines are busy.
ONLINE: dict[str, Any] = {"nearest": 10, "similar": 3, "popular": 3, "topk": K, "timeout": 0.3, "pause": 0.2}

Shown = tuple[list[Any], list[float]]  # items and scores, best first


def until(holds: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait until something holds, and fail if it takes too long."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"waited {seconds} s in vain"
        time.sleep(0.02)


class OwnRedis:
    """A real Redis that always has the same address, and keeps all accepted writes.

    Attributes:
        port: port of the server.
        client: direct client of the server, without the network in between.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder, self.port = folder, free_ports(1)[0]
        lines = (
            f"bind {HOST}", f"port {self.port}", f"requirepass {PASSWORD}", 'save ""', "appendonly yes",
            "appendfsync always", "maxmemory-policy noeviction", f"logfile {folder / 'redis.log'}", f"dir {folder}",
        )  # fmt: skip
        (folder / "redis.conf").write_text("\n".join(lines) + "\n")
        self.client = redis.Redis(HOST, self.port, password=PASSWORD, socket_timeout=10)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        """Start or restart the server, and wait until it answers."""
        self._process = subprocess.Popen([find_redis_server(), self.folder / "redis.conf"])
        until(self._answers)

    def kill(self) -> None:
        """Kill the server, as the kernel does when memory is short."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> OwnRedis:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.kill()

    def _answers(self) -> bool:
        with contextlib.suppress(redis.RedisError):
            return bool(self.client.ping())
        return False


class Network:
    """Proxy between clients and a server, which may be slow or speak TLS.

    Attributes:
        port: port for clients.
        delay: seconds until a client's bytes reach the server.
    """

    def __init__(self, target: int, tls: ssl.SSLContext | None = None, port: int = 0) -> None:
        self.delay, self.port = 0.0, port
        self._target, self._tls = target, tls
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> Network:
        self._thread.start()
        listening = asyncio.start_server(self._pass_on, HOST, self.port, ssl=self._tls)
        self._server = asyncio.run_coroutine_threadsafe(listening, self._loop).result()
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        async def end() -> None:
            self._server.close()
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(OSError, asyncio.CancelledError):
            there, back = await asyncio.open_connection(HOST, self._target)
            ways = self._pump(reader, back, slow=True), self._pump(there, writer, slow=False)
            await asyncio.gather(*ways)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, slow: bool) -> None:
        try:
            while data := await source.read(65536):
                if slow and self.delay:
                    await asyncio.sleep(self.delay)
                sink.write(data)
                await sink.drain()
        finally:
            sink.close()


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A self-signed certificate of this machine, which is its own authority, and its key."""
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", f"{name}.key", "-out", f"{name}.pem"]
    subprocess.run(command, check=True, capture_output=True, cwd=folder)
    return folder / f"{name}.pem", folder / f"{name}.key"


def settings_for(folder: Path, port: int, triton: dict[str, Any] | None = None, **redis_settings: Any) -> Settings:
    """Complete settings, in ``folder``, with the Redis at ``port``; Triton takes free ports."""
    where = {"host": HOST, "port": port, "password": PASSWORD} | redis_settings
    free = {"grpc_port": 0, "http_port": 0, "metrics_port": 0}
    given = {"repository": folder / "triton", "environment": ROOT / ".venv-serving", "instances": 1} | free
    return Settings(
        data=folder,
        redis=RedisSettings.model_validate(where),
        deploy=DeploySettings(models=folder / "deployed", feast=False),
        online=OnlineSettings.model_validate(ONLINE),
        triton=TritonSettings.model_validate(given | (triton or {})),
    )


@contextlib.contextmanager
def watched(settings: Settings) -> Iterator[EmbeddedTriton]:
    """The servers of ``recsys serve``."""
    stop = threading.Event()
    with serving(settings) as triton:
        thread = threading.Thread(target=triton.watch, args=(stop,))
        thread.start()
        try:
            yield triton
        finally:
            stop.set()
            thread.join()


@dataclass
class Record:
    """Result of one request; ``began`` is read from a monotonic clock."""

    user: int
    began: float
    seconds: float
    answer: Answer | None
    error: Exception | None

    @property
    def full(self) -> bool:
        """Whether these are recommendations."""
        return self.answer is not None and not self.answer.degraded

    @property
    def degraded(self) -> bool:
        """Whether these are popular items."""
        return self.answer is not None and self.answer.degraded


class Load:
    """Clients that ask all the time during the block, each for one user after the other.

    Attributes:
        records: records of all requests, in the order of the answers.
    """

    def __init__(self, settings: TritonSettings, users: Sequence[int], clients: int = 4) -> None:
        self.records: list[Record] = []
        self._settings, self._users = settings, itertools.cycle(users)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        with Client(self._settings) as client:
            while not self._stop.is_set():
                user, began = next(self._users), time.monotonic()
                answer: Answer | None = None
                failed: Exception | None = None
                try:
                    answer = client.recommend([user])[0]
                except Exception as error:
                    failed = error
                self.records.append(Record(user, began, time.monotonic() - began, answer, failed))
                if failed is not None:
                    self._stop.wait(0.05)

    def after(self, moment: float) -> list[Record]:
        """Requests that began after a moment."""
        return [record for record in list(self.records) if record.began > moment]

    def until(self, holds: Callable[[Record], bool], count: int = 20, seconds: float = 30.0) -> float:
        """Wait until so many requests in a row, begun from now on, are as asked for; return the seconds it took."""
        start = time.monotonic()

        def enough() -> bool:
            last = self.after(start)[-count:]
            return len(last) == count and all(map(holds, last))

        until(enough, seconds)
        return time.monotonic() - start


@dataclass
class Expected:
    """The right answers.

    Attributes:
        full: recommendations by generation, then by user.
        popular: answer to degraded requests.
    """

    popular: Shown
    full: dict[int, dict[int, Shown]] = field(default_factory=dict)

    @classmethod
    def of(cls, bundle: Bundle) -> Expected:
        popular = bundle.popularity
        scores = popular.scores[:K].astype(np.float32).tolist()
        return cls((bundle.items.raw_ids[popular.items[:K] - 1].tolist(), [round(score, 7) for score in scores]))

    def learn(self, settings: TritonSettings, users: Sequence[int]) -> int:
        """Ask for all users while nothing is wrong, and return the generation that answered."""
        with Client(settings) as client:
            answers = client.recommend(users)
        assert not any(answer.degraded for answer in answers)
        (generation,) = {answer.generation for answer in answers}
        self.full[generation] = {user: _shown(answer) for user, answer in zip(users, answers, strict=True)}
        return generation

    def check(self, records: Sequence[Record]) -> None:
        """Check that every request was answered, each answer being entirely one of the right ones."""
        for record in records:
            assert record.error is None, record
            assert record.answer is not None
            shown = _shown(record.answer)
            if record.degraded:
                assert shown == self.popular, record
            else:
                assert shown == self.full[record.answer.generation][record.user], record


def _shown(answer: Answer) -> Shown:
    return answer.items, answer.scores


class Events:
    """Sender of live events all the time during the block, which knows those accepted.

    Each event has an item and a type of its own, which show how often it was applied.
    """

    numbers = itertools.count(1)

    def __init__(self, settings: Settings, users: Sequence[int]) -> None:
        self.accepted: list[tuple[int, int]] = []  # user, number of the event
        self.errors: list[str] = []
        self._unclear: list[tuple[int, int]] = []  # events whose acceptance is unknown
        self._settings, self._users = settings, itertools.cycle(users)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send)

    def __enter__(self) -> Events:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _send(self) -> None:
        where = self._settings.redis
        with client_of(where, where.timeout, Retry(ExponentialBackoff(cap=0.1), where.retries)) as client:
            for number in self.numbers:
                if self._stop.wait(0.005):
                    return
                event = next(self._users), number
                try:
                    publish(client, event[0], 1000 + number, f"e{number}")
                except StoreError as error:
                    self.errors.append(str(error))
                    self._unclear.append(event)
                else:
                    self.accepted.append(event)

    def check(self, client: redis.Redis) -> None:
        """Check that every accepted event is, or soon will be, applied exactly once, and others at most once."""
        assert self.accepted
        until(lambda: all(_applied(client, *event) for event in self.accepted))
        for user, number in [*self.accepted, *self._unclear]:
            count = _applied(client, user, number)
            assert count == 1 if (user, number) in self.accepted else count <= 1
            assert (client.zscore(f"history:{{{user}}}", str(1000 + number)) is not None) == bool(count)


def _applied(client: redis.Redis, user: int, number: int) -> int:
    times: Any = client.hget(f"counts:{{{user}}}", f"e{number}")
    return int(times or 0)


def processes(group: int) -> dict[int, str]:
    """Processes of a group that are not defunct: id -> name."""
    answer = subprocess.run(["ps", "-eo", "pid=,pgid=,stat=,comm="], capture_output=True, text=True).stdout
    rows = [line.split(None, 3) for line in answer.splitlines()]
    return {int(row[0]): row[3] for row in rows if int(row[1]) == group and not row[2].startswith("Z")}


def memory(group: int) -> int:
    """Bytes of memory that the processes of a group hold."""
    total = 0
    for pid in processes(group):
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{pid}/status").read_text()
            total += sum(1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    return total


def left(triton: EmbeddedTriton) -> tuple[int, str]:
    """Possible remains of a running server: its process group, and the name of its shared memory."""
    return triton.pid, triton.memory


def nothing_left(group: int, memory_prefix: str) -> bool:
    """Whether a server has left no process and no shared memory."""
    return not processes(group) and not any(name.startswith(memory_prefix) for name in os.listdir("/dev/shm"))
