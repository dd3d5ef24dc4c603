"""A real Redis for the whole run, emptied before each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from redis_recsys.store.embedded import EmbeddedRedis


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(tmp_path_factory.mktemp("redis"), persist=False) as server:
        yield server


@pytest.fixture
def client(server: EmbeddedRedis) -> Iterator[redis.Redis]:
    with redis.Redis(server.host, server.port, password=server.password) as client:
        client.flushall()
        yield client


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "own redis"


@pytest.fixture
def client_of() -> Callable[[EmbeddedRedis], redis.Redis]:
    """Makes a client of any server that gives up at once when the server is gone."""
    return lambda server: redis.Redis(server.host, server.port, password=server.password, retry=Retry(NoBackoff(), 1))
