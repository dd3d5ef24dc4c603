"""Addresses and login of the parameter server's Redis."""

from __future__ import annotations

from pathlib import Path

import pytest

from redis_recsys.config import load_settings
from redis_recsys.embedded.redis_server import EmbeddedRedis
from redis_recsys.errors import ConfigError, StoreError
from redis_recsys.parameter_server.access import access_of
from redis_recsys.parameter_server.nodes import Access, Command, Nodes
from redis_recsys.parameter_server.ps_json import VolatileDatabase


def of_file(**fields: object) -> VolatileDatabase:
    return VolatileDatabase.model_validate({"type": "redis_cluster", **fields})


def test_the_file_names_addresses_user_and_password() -> None:
    access = access_of(of_file(address="a:7000, b", user_name="u", password="p"), load_settings())
    assert access.addresses == (("a", 7000), ("b", 6379))
    assert (access.username, access.password, access.tls) == ("u", "p", None)


def test_settings_win_over_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_REDIS_PASSWORD", "secret")
    monkeypatch.setenv("RECSYS_LOOKUP_TIMEOUT", "0.2")
    access = access_of(of_file(address="a:7000", password="p"), load_settings(redis={"host": "c", "port": 7}))
    assert (access.addresses, access.password, access.timeout) == ((("c", 7),), "secret", 0.2)


@pytest.mark.parametrize(
    ("address", "reason"), [("", "volatile_db.address in ps.json|is empty|empty volatile"), ("a:x", "'a:x'")]
)
def test_an_address_that_is_none_is_said(address: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        access_of(of_file(address=address), load_settings())


def test_an_authority_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no .*ca\.pem"):
        access_of(of_file(enable_tls=True, tls_ca_certificate=str(tmp_path / "ca.pem")), load_settings())


def test_connections_are_encrypted_and_the_certificate_checked(
    server: EmbeddedRedis,
    tls: tuple[int, Path],
) -> None:
    port, authority = tls
    config = of_file(address=f"127.0.0.1:{port}", password=server.password, enable_tls=True)
    trusted = access_of(config.model_copy(update={"tls_ca_certificate": str(authority)}), load_settings())
    nodes = Nodes(trusted)
    try:
        assert nodes.run([Command.of(b"key", ("PING",))]) in ([b"PONG"], ["PONG"])
    finally:
        nodes.close()
    with pytest.raises(StoreError, match="fails the TLS handshake"):
        Nodes(access_of(config, load_settings()))


def test_a_server_that_is_not_there_is_said() -> None:
    with pytest.raises(StoreError, match=r"cannot reach Redis at 127\.0\.0\.1:1 "):
        Nodes(Access((("127.0.0.1", 1),)))
