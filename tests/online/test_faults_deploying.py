"""Faults at a server's start are reported or survived, and a new deployment goes live under load without errors."""

from __future__ import annotations

import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from redis_recsys.bundle.bundle import Bundle
from redis_recsys.config import Settings
from redis_recsys.errors import RecsysError, ServingError
from redis_recsys.online import follower
from redis_recsys.online.deploy import deploy
from redis_recsys.online.partition import stages_of
from redis_recsys.online.recommender_client import Client
from redis_recsys.online.runner import Runner
from redis_recsys.online.serving import serving
from tests.support.faulty import (
    BOUND,
    Expected,
    Load,
    Network,
    OwnRedis,
    certificate,
    left,
    nothing_left,
    settings_for,
    watched,
)
from tests.support.planted import Trained, trained_on
from tests.support.tritons import settings_in, three, triton_of

USERS = range(1, 201)


@pytest.fixture(scope="module")
def _redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnRedis]:
    with OwnRedis(tmp_path_factory.mktemp("own") / "redis") as own:
        yield own


@pytest.fixture
def own(_redis: OwnRedis) -> OwnRedis:
    """An empty Redis."""
    _redis.client.flushall()
    return _redis


def error_at_start(settings: Settings) -> str:
    """The one line that serving ends with."""
    with pytest.raises(RecsysError) as caught, serving(settings):
        pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Files


def remove(path: Path) -> None:
    path.unlink()


def spoil(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()  # it may be a link to the bundle's own file
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(("damage", "name"), [(remove, "user_tower.onnx"), (spoil, "ranker.onnx")])
def test_a_model_is_missing_or_damaged_at_the_start_and_then_mended(
    own: OwnRedis, trained: Trained, tmp_path: Path, damage: Callable[[Path], None], name: str
) -> None:
    settings = settings_for(tmp_path, own.port)
    file = settings.deploy.models / deploy(trained.bundle, own.client, settings).folder / name
    content = file.read_bytes()
    damage(file)
    expected = Expected.of(trained.bundle)
    with watched(settings) as triton:
        with Load(settings.triton, USERS) as load:
            load.until(lambda record: record.degraded, count=100)
            aside = file.with_name("mended")
            aside.write_bytes(content)
            aside.rename(file)
            assert load.until(lambda record: record.full) < 5 * follower.RETRY
        expected.learn(settings.triton, USERS)
        expected.check(load.records)
        assert max(record.seconds for record in load.records) < BOUND
        assert triton.restarts == 0
        remains = left(triton)
    assert nothing_left(*remains)


@pytest.mark.parametrize(
    ("file", "damage"),
    [("1/model.py", remove), ("config.pbtxt", spoil), ("config.pbtxt", remove)],
    ids=["model.py missing", "configuration damaged", "configuration missing"],
)
def test_a_damaged_model_repository_is_named(tmp_path: Path, file: str, damage: Callable[[Path], None]) -> None:
    server = triton_of(settings_in(tmp_path), three("int64"), lambda folder: damage(folder / "middle" / file))
    with pytest.raises(ServingError, match=r"^Triton does not start: .*middle") as caught:
        server.start()
    assert "\n" not in str(caught.value)


# Passwords and certificates


def test_a_wrong_password_is_said_at_the_start(own: OwnRedis, trained: Trained, tmp_path: Path) -> None:
    deploy(trained.bundle, own.client, settings_for(tmp_path, own.port))
    error = error_at_start(settings_for(tmp_path, own.port, password="hush-hush"))
    assert re.match(rf"Redis at 127\.0\.0\.1:{own.port} refuses the login .*RECSYS_REDIS_PASSWORD", error)
    assert "hush-hush" not in error


def test_tls_on_all_ways_with_certificates_and_tokens_right_and_wrong(
    own: OwnRedis, trained: Trained, tmp_path: Path
) -> None:
    deploy(trained.bundle, own.client, settings_for(tmp_path, own.port))
    good, key = certificate(tmp_path, "good")
    other, _ = certificate(tmp_path, "other")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(good, key)
    secure = {"tls_certificate": good, "tls_key": key, "token": "open-sesame"}
    with Network(own.port, context) as network:
        assert "fails the TLS handshake" in error_at_start(settings_for(tmp_path, network.port, tls=True, tls_ca=other))
        settings = settings_for(tmp_path, network.port, secure, tls=True, tls_ca=good)
        with watched(settings):
            right = settings.triton.model_copy(update={"tls": True, "tls_ca": good})
            with Load(right, USERS, clients=2) as load:
                load.until(lambda record: record.full)
                for change, message in (
                    ({"tls_ca": other}, "fails the TLS handshake .*RECSYS_TRITON_TLS_CA"),
                    ({"tls": False}, "RECSYS_TRITON_HOST, _GRPC_PORT and _TLS"),
                    ({"token": None}, "set RECSYS_TRITON_TOKEN"),
                    ({"token": type(right.token)("guess")}, "set RECSYS_TRITON_TOKEN"),
                ):
                    wrong = right.model_copy(update=change)
                    with pytest.raises(ServingError, match=message) as caught, Client(wrong) as client:
                        client.recommend([1])
                    assert "\n" not in str(caught.value)
                load.until(lambda record: record.full)
            expected = Expected.of(trained.bundle)
            expected.learn(right, USERS)
            expected.check(load.records)


# Refresh


@pytest.fixture(scope="module")
def another(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of the same data with other recommendations."""
    return trained_on(trained.dataset, tmp_path_factory.mktemp("another") / "bundle", seed=7).bundle


@pytest.mark.parametrize("partition", ["fused", "staged"])
def test_a_deployment_under_load_fails_nobody_and_mixes_nothing(
    own: OwnRedis, trained: Trained, another: Bundle, tmp_path: Path, partition: str
) -> None:
    settings = settings_for(tmp_path, own.port, {"partition": partition})
    settings.online.timeout = 2.0
    deploy(trained.bundle, own.client, settings)
    expected = Expected.of(trained.bundle)
    with watched(settings) as triton:
        first = expected.learn(settings.triton, USERS)
        with Load(settings.triton, USERS) as load:
            load.until(lambda record: record.full)
            deploy(another, own.client, settings)
            switched = time.monotonic()
            load.until(lambda record: record.began > switched + 1.5, count=50)
        second = expected.learn(settings.triton, USERS)
        assert second > first
        same = sum(expected.full[first][user] == expected.full[second][user] for user in USERS)
        assert same == 0
        expected.check(load.records)
        assert all(record.full for record in load.records)
        assert {record.answer and record.answer.generation for record in load.records} == {first, second}
        for record in load.after(switched + 1.0):
            assert record.answer is not None
            assert record.answer.generation == second
        if partition == "staged":
            degrades_from_model_to_model(own, settings, expected)
        else:
            recovers_from_lost_data(own, settings, another, expected, second)
        remains = left(triton)
    assert nothing_left(*remains)


def degrades_from_model_to_model(own: OwnRedis, settings: Settings, expected: Expected) -> None:
    with Load(settings.triton, USERS) as load:
        load.until(lambda record: record.full)
        own.kill()
        load.until(lambda record: record.degraded, count=100)
        own.start()
        assert load.until(lambda record: record.full) < 10
    expected.check(load.records)


def recovers_from_lost_data(
    own: OwnRedis, settings: Settings, bundle: Bundle, expected: Expected, generation: int
) -> None:
    before = expected.full.pop(generation)
    with Load(settings.triton, USERS) as load:
        load.until(lambda record: record.full)
        lost = time.monotonic()
        own.client.flushall()
        load.until(lambda record: record.degraded)
        degraded = time.monotonic()
        again = int(deploy(bundle, own.client, settings).generation)
        assert again in expected.full  # its name had belonged to a deployment of another bundle
        load.until(lambda record: record.full)
    for record in load.records:
        assert record.error is None
        if record.began > degraded and record.full:
            assert record.answer is not None
            assert (record.answer.items, record.answer.scores) == before[record.user]
    assert load.after(lost)


def test_requests_do_not_wait_while_the_next_deployment_is_loaded(
    own: OwnRedis, trained: Trained, another: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(tmp_path, own.port)
    deploy(trained.bundle, own.client, settings)
    loading, go_on = threading.Event(), threading.Event()

    class Slow(follower.Deployment):
        def __init__(self, *args: Any) -> None:
            loading.set()
            assert go_on.wait(30)
            super().__init__(*args)

    names = tuple(stages_of(settings.online))
    first, last = (Runner(part, settings) for part in (names[:2], names[2:]))
    try:
        monkeypatch.setattr(follower, "Deployment", Slow)
        deploying = threading.Thread(target=deploy, args=(another, own.client, settings))
        deploying.start()
        assert loading.wait(30)
        began = time.monotonic()
        for user in USERS:
            found = last(first({"user_id": np.array([[user]])}))
            assert not found["degraded"].any()
            assert (found["item_ids"] > 0).all()
        assert time.monotonic() - began < BOUND
        go_on.set()
        deploying.join()
    finally:
        go_on.set()
        first.close()
        last.close()
