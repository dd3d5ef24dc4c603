"""Connections to Redis, configured or embedded, with their errors in one line.

Every function of ``store`` that talks to Redis does so inside ``store_errors``, so that callers see only StoreError.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import redis
from pydantic import SecretStr
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from ..config import RedisSettings
from ..embedded.redis_server import EmbeddedRedis
from ..errors import StoreError
from ..utils.redis_errors import explain_redis

OF_CLUSTERS = (redis.exceptions.AskError, redis.exceptions.ClusterCrossSlotError, redis.exceptions.ClusterDownError)
UNSUITED = {
    "cluster": "is a Redis Cluster, which only the tables of 'recsys dlrm' can lie in: set RECSYS_REDIS_HOST and "
    "RECSYS_REDIS_PORT to a Redis that is not one",
    "sentinel": "is a Sentinel: set RECSYS_REDIS_HOST and RECSYS_REDIS_PORT to the primary that it watches",
}


@contextmanager
def connect(settings: RedisSettings, cluster: bool = False) -> Iterator[redis.Redis]:
    """Connect to the configured Redis, or without a host to the embedded one, which then runs during the block.

    The connection is tried at once. Commands are retried after a lost connection, with growing pauses, at most
    ``settings.retries`` times. Answers are bytes.

    Args:
        settings: address and login of Redis.
        cluster: whether a node of a Redis Cluster is accepted.

    Raises:
        StoreError: Redis cannot be reached or started, refuses the user or password, or is a Cluster or a Sentinel.
    """
    if settings.host is None:
        with EmbeddedRedis(settings.folder, settings.max_memory) as server:
            address = settings.model_copy(
                update={"host": server.host, "port": server.port, "username": None, "tls": False}
            )
            with _connected(address, server.password, cluster) as client:
                yield client
    else:
        password = settings.password.get_secret_value() if settings.password is not None else None
        with _connected(settings, password, cluster) as client:
            yield client


@contextmanager
def _connected(settings: RedisSettings, password: str | None, cluster: bool) -> Iterator[redis.Redis]:
    secret = SecretStr(password) if password is not None else None
    retry = Retry(ExponentialBackoff(cap=1.0, base=0.05), settings.retries)
    with client_of(settings.model_copy(update={"password": secret}), settings.timeout, retry) as client:
        check(client, cluster)
        yield client


def check(client: redis.Redis, cluster: bool = False) -> None:
    """Try the connection, and refuse servers that cannot hold the recommenders' keys: a Cluster, a Sentinel.

    One round trip. Redis lets every user say HELLO, whatever the ACL.

    Args:
        client: a client, not connected yet.
        cluster: whether a node of a Cluster is accepted.

    Raises:
        StoreError: Redis cannot be reached, refuses the user or password, or is one of these.
    """
    with store_errors(client), client.pipeline(transaction=False) as pipeline:
        answers = pipeline.execute_command("HELLO").ping().execute(raise_on_error=False)
        for answer in answers:
            if isinstance(answer, redis.RedisError):
                raise answer
    mode = _mode(answers[0])
    if mode != "standalone" and not (cluster and mode == "cluster"):
        raise StoreError(f"{_where(client)} {UNSUITED.get(mode, f'runs in mode {mode!r}')}")


def _mode(hello: dict[bytes, bytes] | list[bytes]) -> str:
    """Mode that a server reports: standalone, cluster or sentinel."""
    pairs = hello if isinstance(hello, dict) else dict(zip(hello[::2], hello[1::2], strict=True))
    return pairs.get(b"mode", b"standalone").decode()


def client_of(settings: RedisSettings, timeout: float, retry: Retry) -> redis.Redis:
    """A client of the configured Redis, not connected yet.

    Args:
        settings: settings with a host.
        timeout: seconds to wait for a connection or an answer.
        retry: policy of retries.

    Raises:
        StoreError: the certificate authority's file is missing.
    """
    if settings.tls_ca is not None and not settings.tls_ca.is_file():
        raise StoreError(f"RECSYS_REDIS_TLS_CA names {settings.tls_ca}, which is not a file")
    return redis.Redis(
        host=settings.host or "",
        port=settings.port,
        username=settings.username,
        password=settings.password.get_secret_value() if settings.password is not None else None,
        ssl=settings.tls,
        ssl_ca_certs=str(settings.tls_ca) if settings.tls_ca is not None else None,
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        retry=retry,
        health_check_interval=30,
    )


@contextmanager
def store_errors(client: redis.Redis) -> Iterator[None]:
    """Turn redis-py's errors inside the block into StoreError: one line with the address and what to do."""
    try:
        yield
    except OF_CLUSTERS as error:
        raise StoreError(f"{_where(client)} {UNSUITED['cluster']}") from error
    except redis.RedisError as error:
        timeout = client.get_connection_kwargs().get("socket_timeout")
        raise StoreError(explain_redis(error, _where(client), timeout)) from error


def _where(client: redis.Redis) -> str:
    address = client.get_connection_kwargs()
    return f"Redis at {address.get('host')}:{address.get('port')}"
