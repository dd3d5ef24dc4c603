"""Faults under load, against a real Redis and a real Triton that serves a small bundle: good requests get an answer in
time, bad ones a clear error, accepted events are applied, and nobody has to intervene.

All tests share one deployment and restore it. Every answer, whatever happens, is compared with the user's answer
without faults, or with the popular items.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from redis_recsys.bundle.bundle import Bundle
from redis_recsys.config import Settings
from redis_recsys.embedded.triton_server import EmbeddedTriton
from redis_recsys.errors import ServingError, StoreError
from redis_recsys.online.deploy import deploy
from redis_recsys.online.recommender_client import Client
from redis_recsys.store import deployments
from tests.support.faulty import (
    BOUND,
    HOST,
    PASSWORD,
    Events,
    Expected,
    Load,
    Network,
    OwnRedis,
    left,
    memory,
    nothing_left,
    processes,
    settings_for,
    until,
    watched,
)
from tests.support.planted import Trained

USERS, ACTIVE = range(1, 151), range(151, 201)  # users who ask, and users who act
BACK = 10.0  # seconds until recommendations are back once Redis is


@dataclass
class Shop:
    """All running services."""

    settings: Settings
    redis: OwnRedis
    network: Network
    triton: EmbeddedTriton
    expected: Expected
    bundle: Bundle

    def load(self, clients: int = 4) -> Load:
        return Load(self.settings.triton, USERS, clients)


@pytest.fixture(scope="module")
def _shop(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    folder = tmp_path_factory.mktemp("shop")
    with OwnRedis(folder / "redis") as own, Network(own.port) as network:
        settings = settings_for(folder, network.port)
        deploy(trained.bundle, own.client, settings)
        with watched(settings) as triton:
            expected = Expected.of(trained.bundle)
            expected.learn(settings.triton, USERS)
            yield Shop(settings, own, network, triton, expected, trained.bundle)
            last = left(triton)
    assert nothing_left(*last)


@pytest.fixture
def shop(_shop: Shop) -> Iterator[Shop]:
    """The shop without faults."""
    yield _shop
    _shop.network.delay = 0.0
    if not _shop.redis.running:
        _shop.redis.start()
    with _shop.load() as load:
        load.until(lambda record: record.full)


def slowest(load: Load) -> float:
    return max(record.seconds for record in load.records)


def test_redis_is_killed_and_comes_back(shop: Shop) -> None:
    with Events(shop.settings, ACTIVE) as events, shop.load() as load:
        load.until(lambda record: record.full)
        shop.redis.kill()
        load.until(lambda record: record.degraded, count=200)
        until(lambda: events.errors)
        before = len(events.accepted)
        shop.redis.start()
        assert load.until(lambda record: record.full) < BACK
        until(lambda: len(events.accepted) > before + 20)
    shop.expected.check(load.records)
    assert slowest(load) < BOUND
    assert all("cannot reach Redis" in error for error in events.errors)
    events.check(shop.redis.client)


def test_redis_is_slow(shop: Shop) -> None:
    with shop.load() as load:
        try:
            shop.network.delay = 0.03
            load.until(lambda record: record.full, count=100)
            slow = time.monotonic()
            shop.network.delay = 1.0
            load.until(lambda record: record.degraded, count=200)
            assert max(record.seconds for record in load.after(slow)) < BOUND
        finally:
            shop.network.delay = 0.0
        assert load.until(lambda record: record.full) < BACK
    shop.expected.check(load.records)


def test_redis_is_full(shop: Shop, tmp_path: Path) -> None:
    client = shop.redis.client
    live = deployments.live(client)
    settings = shop.settings.model_copy(deep=True)
    settings.deploy.models = tmp_path / "deployed"
    with Events(shop.settings, ACTIVE) as events, shop.load() as load:
        until(lambda: len(events.accepted) > 50)
        began = time.monotonic()
        try:
            client.config_set("maxmemory", 1)
            until(lambda: len(events.errors) > 20)
            assert all("is out of memory: raise its maxmemory" in error for error in events.errors)
            with pytest.raises(StoreError, match="is out of memory"):
                deploy(shop.bundle, client, settings)
            load.until(lambda record: record.full, count=100)
        finally:
            client.config_set("maxmemory", 0)
        before = len(events.accepted)
        until(lambda: len(events.accepted) > before + 20)
    shop.expected.check(load.records)
    assert all(record.full for record in load.after(began))
    events.check(client)
    assert deployments.live(client) == live


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_redis_fills_while_a_deployment_is_written(shop: Shop, tmp_path: Path, share: float) -> None:
    client = shop.redis.client
    live, keys = deployments.live(client), client.dbsize()
    assert live is not None
    own: Any = [client.memory_usage(key) for key in client.scan_iter(f"*:{live}*")]
    settings = shop.settings.model_copy(deep=True)
    settings.deploy.models = tmp_path / "deployed"
    with shop.load(clients=2) as load:
        load.until(lambda record: record.full)
        try:
            client.config_set("maxmemory", client.info("memory")["used_memory"] + int(share * sum(own)))
            with pytest.raises(StoreError, match="is out of memory"):
                deploy(shop.bundle, client, settings)
        finally:
            client.config_set("maxmemory", 0)
        load.until(lambda record: record.full, count=50)
    shop.expected.check(load.records)
    assert deployments.live(client) == live
    assert deployments.upcoming(client) is None
    assert deployments.known(client) == [live]
    folders = 1  # files still to be removed from disk are noted until the next deployment
    assert client.dbsize() <= keys + folders


def test_the_password_of_redis_changes(shop: Shop) -> None:
    client = shop.redis.client
    with shop.load() as load:
        load.until(lambda record: record.full)
        client.config_set("requirepass", "another")
        client.client_kill_filter(_type="normal", skipme=True)
        load.until(lambda record: record.degraded, count=200)
        with pytest.raises(StoreError, match="refuses the login"), watched(shop.settings):
            pass
        client.config_set("requirepass", PASSWORD)
        assert load.until(lambda record: record.full) < BACK
    shop.expected.check(load.records)
    assert slowest(load) < BOUND


@pytest.mark.parametrize("victim", ["tritonserver", "triton_python"])
def test_triton_is_killed(shop: Shop, victim: str) -> None:
    old, restarts, remains = shop.triton.pid, shop.triton.restarts, left(shop.triton)
    with Events(shop.settings, ACTIVE) as events, shop.load() as load:
        load.until(lambda record: record.full)
        os.kill(next(pid for pid, name in processes(old).items() if name.startswith(victim)), signal.SIGKILL)
        until(lambda: shop.triton.restarts > restarts and shop.triton.pid != old and shop.triton.ready(), 60)
        assert load.until(lambda record: record.full) < BACK
    assert shop.triton.restarts == restarts + 1
    assert nothing_left(*remains)
    failed = [record for record in load.records if record.error is not None]
    assert failed
    for record in failed:
        assert isinstance(record.error, ServingError)
        assert f"Triton at {HOST}:{shop.triton.grpc_port}" in str(record.error)
    shop.expected.check([record for record in load.records if record.error is None])
    assert slowest(load) < shop.settings.triton.timeout + BOUND
    assert not events.errors
    events.check(shop.redis.client)


def test_triton_is_killed_while_redis_is_gone(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    with shop.load() as load:
        load.until(lambda record: record.full)
        shop.redis.kill()
        os.killpg(shop.triton.pid, signal.SIGKILL)
        until(lambda: "Triton does not start: TritonModelException: cannot reach Redis" in caplog.text)
        load.until(lambda record: record.error is not None)
        shop.redis.start()
        load.until(lambda record: record.full, seconds=60)
    shop.expected.check([record for record in load.records if record.error is None])


def test_clients_find_back_soon_however_long_triton_was_gone(shop: Shop) -> None:
    with Network(shop.triton.grpc_port) as network:
        port = network.port
    settings = shop.settings.triton.model_copy(update={"host": HOST, "grpc_port": port})
    with Load(settings, USERS) as load:
        lost = time.monotonic()
        until(lambda: time.monotonic() > lost + 10.5)
        assert all(record.error is not None for record in load.records)
        with Network(shop.triton.grpc_port, port=port):
            assert load.until(lambda record: record.full) < 3.0


def test_far_more_requests_come_than_can_be_answered(shop: Shop) -> None:
    limit, at_once = 2.0, 500
    outcomes: list[tuple[float, Exception | None]] = []
    users = [np.array([[user]], np.int64) for user in USERS]
    with triton_grpc.InferenceServerClient(f"{HOST}:{shop.triton.grpc_port}") as client, shop.load(1) as load:
        load.until(lambda record: record.full)
        for start in range(0, 5 * at_once, at_once):
            for number in range(start, start + at_once):
                began = time.monotonic()

                def done(result: object, error: Exception | None, began: float = began) -> None:
                    outcomes.append((time.monotonic() - began, error))

                tensor = triton_grpc.InferInput("user_id", [1, 1], "INT64")
                tensor.set_data_from_numpy(users[number % len(users)])
                client.async_infer("recommender", [tensor], done, client_timeout=limit)
            until(lambda count=start + at_once: len(outcomes) == count)  # type: ignore[misc]
        load.until(lambda record: record.full)
    errors = [error for _, error in outcomes if error is not None]
    assert max(seconds for seconds, _ in outcomes) < limit + BOUND
    assert all("Deadline Exceeded" in str(error) for error in errors)
    assert len(errors) < len(outcomes) / 2
    shop.expected.check(load.records)


# Malformed requests


def tensor(values: Any, kind: str, name: str = "user_id") -> Any:
    array = np.array(values, {"INT64": np.int64, "INT32": np.int32, "FP32": np.float32, "BYTES": object}[kind])
    made = triton_grpc.InferInput(name, list(array.shape), kind)
    made.set_data_from_numpy(array)
    return made


class Nuisance:
    """Sender of malformed requests; each method sends one and returns the resulting error."""

    def __init__(self, triton: EmbeddedTriton) -> None:
        self.random = np.random.default_rng(3)
        self.triton = triton
        address = f"{HOST}:{triton.grpc_port}"
        self._client = triton_grpc.InferenceServerClient(address)
        self._channel = grpc.insecure_channel(address)
        self._raw = self._channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=lambda data: data,
            response_deserializer=service_pb2.ModelInferResponse.FromString,
        )

    def close(self) -> None:
        self._client.close()
        self._channel.close()

    def infer(self, *inputs: Any, model: str = "recommender", output: str = "item_ids", version: str = "") -> str:
        wanted = [triton_grpc.InferRequestedOutput(output)]
        try:
            self._client.infer(model, list(inputs), model_version=version, outputs=wanted, client_timeout=10)
        except InferenceServerException as error:
            return str(error)
        return "answered"

    def message(self, data: bytes) -> str:
        try:
            self._raw(data, timeout=10)
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"
        return "answered"

    def truncated(self) -> str:
        request = service_pb2.ModelInferRequest(model_name="recommender")
        request.inputs.add(name="user_id", datatype="INT64", shape=[1, 1])
        request.raw_input_contents.append(bytes(8))
        whole: bytes = request.SerializeToString()
        return self.message(whole[: int(self.random.integers(1, len(whole)))])

    def user(self, kind: str, data: bytes) -> str:
        request = service_pb2.ModelInferRequest(model_name="recommender")
        request.inputs.add(name="user_id", datatype=kind, shape=[1, 1])
        request.raw_input_contents.append(data)
        return self.message(request.SerializeToString())

    def bytes_on(self, port: int) -> str:
        """Send random bytes to a port, after which the connection is closed."""
        with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=10) as connection:
            connection.sendall(self.random.bytes(int(self.random.integers(1, 2000))))
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass
        return "closed"

    def post(self, body: bytes | str, path: str = "/v2/models/recommender/infer") -> str:
        connection = http.client.HTTPConnection(HOST, self.triton.http_port, timeout=10)
        try:
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return f"{answer.status} {answer.read().decode(errors='replace')}"
        finally:
            connection.close()


JSON = '{"inputs": [{"name": "user_id", "shape": [1, 1], "datatype": "%s", "data": %s}]}'
BAD: dict[str, tuple[Callable[[Nuisance], str], str, int]] = {  # request, text of the error, repetitions
    "two columns": (lambda n: n.infer(tensor([[1, 2]], "INT64")), r"unexpected shape for input 'user_id'", 1200),
    "no columns": (lambda n: n.infer(tensor([1], "INT64")), r"unexpected shape for input 'user_id'", 1200),
    "type": (
        lambda n: n.infer(tensor([[1.0]], "FP32")),
        r"'user_id' data-type is 'FP32', but .* expects 'INT64'",
        1200,
    ),
    "small type": (lambda n: n.infer(tensor([[1]], "INT32")), r"'user_id' data-type is 'INT32'", 800),
    "text": (lambda n: n.infer(tensor([[b"1"]], "BYTES")), r"'user_id' data-type is 'BYTES'", 800),
    "input's name": (lambda n: n.infer(tensor([[1]], "INT64", "user")), r"unexpected inference input 'user'", 1200),
    "no input": (lambda n: n.infer(), r"expected 1 inputs but got 0 .*user_id", 300),
    "twice": (lambda n: n.infer(*2 * [tensor([[1]], "INT64")]), r"'user_id' already exists", 300),
    "output's name": (lambda n: n.infer(tensor([[1]], "INT64"), output="x"), r"unexpected inference output 'x'", 800),
    "model": (lambda n: n.infer(tensor([[1]], "INT64"), model="oracle"), r"unknown model: 'oracle'", 800),
    "version": (lambda n: n.infer(tensor([[1]], "INT64"), version="7"), r"version 7", 100),
    "batch of 65": (lambda n: n.infer(tensor([[1]] * 65, "INT64")), r"batch-size must be <= 64", 300),
    "batch of none": (lambda n: n.infer(tensor(np.ones((0, 1)), "INT64")), r"size mismatch for input 'user_id'", 300),
    "huge batch": (lambda n: n.infer(tensor(np.ones((1_000_000, 1)), "INT64")), r"batch-size must be <= 64", 5),
    "truncated": (Nuisance.truncated, r"^(INTERNAL|INVALID_ARGUMENT|NOT_FOUND|UNAVAILABLE): .", 300),
    "too few bytes": (
        lambda n: n.user("INT64", bytes(7)),
        r"byte size mismatch for input 'user_id'.* Expected 8, got 7",
        300,
    ),
    "noise": (lambda n: n.message(n.random.bytes(100)), r"^(INTERNAL|INVALID_ARGUMENT|NOT_FOUND): .", 200),
    "no JSON": (lambda n: n.post(b"?" + n.random.bytes(100)), r"^500 .*failed to parse the request JSON", 100),
    "other JSON": (lambda n: n.post("[[[[]]]]"), r"^500 .*Unable to parse 'inputs'", 50),
    "text in JSON": (lambda n: n.post(JSON % ("INT64", '["x"]')), r"^500 .*Unable to parse 'data'", 50),
    "type in JSON": (lambda n: n.post(JSON % ("FP64", "[1.0]")), r"^400 .*user_id", 50),
    "path": (lambda n: n.post("", "/v2/models/oracle/infer"), r"^404 .*unknown model: 'oracle'", 50),
    "bytes for gRPC": (lambda n: n.bytes_on(n.triton.grpc_port), "closed", 100),
    "bytes for HTTP": (lambda n: n.bytes_on(n.triton.http_port), "closed", 100),
    "bytes for metrics": (lambda n: n.bytes_on(n.triton.metrics_port), "closed", 100),
}


def test_many_malformed_requests_come_among_good_ones(shop: Shop) -> None:
    schedule = [name for name, (_, _, often) in BAD.items() for _ in range(often)]
    assert len(schedule) > 10_000
    np.random.default_rng(5).shuffle(schedule)
    pid, restarts = shop.triton.pid, shop.triton.restarts
    answers: list[tuple[str, str]] = []
    remaining = iter(schedule)
    taking = threading.Lock()

    def send() -> None:
        nuisance = Nuisance(shop.triton)
        try:
            while True:
                with taking:
                    name = next(remaining, None)
                if name is None:
                    return
                answers.append((name, BAD[name][0](nuisance)))
        finally:
            nuisance.close()

    with shop.load(clients=2) as load:
        load.until(lambda record: record.full)
        before = memory(pid)
        threads = [threading.Thread(target=send) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        load.until(lambda record: record.full)
        grown = memory(pid) - before
    shop.expected.check(load.records)
    times = sorted(record.seconds for record in load.records)
    assert times[int(0.99 * len(times))] < 1.0
    assert (shop.triton.pid, shop.triton.restarts) == (pid, restarts)
    assert grown < 300 << 20
    wrong = {name: answer for name, answer in answers if not re.search(BAD[name][1], answer)}
    assert not wrong
    assert len(answers) == len(schedule)


def test_ids_that_nobody_has_are_unknown_users(shop: Shop) -> None:
    with Client(shop.settings.triton) as client:
        known, *unknown = client.recommend([1, -1, 0, 2**63 - 1, -(2**63)])
    assert not any(answer.degraded for answer in unknown)
    assert len({tuple(answer.items) for answer in unknown}) == 1
    assert len(unknown[0].items) == len(known.items)


def text(size: int, data: bytes) -> bytes:
    """A text in a tensor's form, possibly with a false length."""
    return struct.pack("<I", size) + data


def test_text_ids_that_are_none_are_refused_and_odd_ones_are_unknown_users(
    bundle_of: Callable[[str], Trained], tmp_path: Path
) -> None:
    bundle = bundle_of("text-ids-history-implicit").bundle
    with OwnRedis(tmp_path / "redis") as own:
        settings = settings_for(tmp_path, own.port)
        deploy(bundle, own.client, settings)
        with watched(settings) as triton:
            nuisance = Nuisance(triton)
            for data in (b"", b"\2", text(2000, b"u1"), text(2**32 - 1, b"u1"), 2 * text(2, b"u1"), text(2, b"u1??")):
                assert "for inference input 'user_id'" in nuisance.user("BYTES", data)
            for odd in (b"", b"\xff\xfe", b"\0", b"}:*{\r\n", b"x" * 1_000_000):
                assert nuisance.user("BYTES", text(len(odd), odd)) == "answered"
            nuisance.close()
            with Client(settings.triton) as client:
                known, odd_one, unknown = client.recommend(["u1", "}:*{\r\n", "nobody"])
            assert not any(answer.degraded for answer in (known, odd_one, unknown))
            assert odd_one.scores == unknown.scores != known.scores
            assert triton.restarts == 0
