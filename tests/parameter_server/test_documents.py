"""The documentation's promises about the ACL users of example 3, checked on a real Redis."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import redis

from redis_recsys.embedded.redis_server import EmbeddedRedis
from redis_recsys.errors import StoreError
from redis_recsys.parameter_server.loading import load
from redis_recsys.parameter_server.nodes import Access, Nodes
from redis_recsys.parameter_server.remote import Remote
from redis_recsys.parameter_server.server import ParameterServer
from tests.support.paths import ROOT
from tests.support.tables import TABLE, configured, row_of, trained

SECURITY = ROOT / "docs" / "operations" / "security.md"


def rule(user: str) -> list[str]:
    (line,) = re.findall(rf"^ACL SETUSER {user} (.*)$", SECURITY.read_text(), re.MULTILINE)
    return line.split()


def test_the_redis_users_that_the_documentation_proposes_may_do_what_they_need_and_no_more(tmp_path: Path) -> None:
    keys = np.arange(100)
    config = configured(trained(tmp_path), tmp_path / "rocks", overflow_margin=60, cache_missed_embeddings=True)
    with EmbeddedRedis(tmp_path / "redis", persist=False) as server:
        with redis.Redis(server.host, server.port, password=server.password) as client:
            for user in ("tables", "trainer"):
                client.execute_command("ACL", "SETUSER", user, *rule(user))
        nodes = [Nodes(Access(((server.host, server.port),), user, "CHANGE_ME")) for user in ("tables", "trainer")]
        tables, trainer = ParameterServer(config, nodes[0], device="cpu"), Remote(config, nodes[1])
        try:
            load(tables)
            trainer.publish(TABLE, keys, row_of(keys, 1))
            with trainer.changed(TABLE, keys[90:], row_of(keys[90:], 3)):
                np.testing.assert_array_equal(trainer.rows(TABLE, keys[90:]), row_of(keys[90:], 3))
            np.testing.assert_array_equal(trainer.rows(TABLE, keys[90:]), row_of(keys[90:], 1))
            tables.update(TABLE, keys[:5], row_of(keys[:5], 2))
            np.testing.assert_array_equal(tables.lookup(TABLE, keys[5:]), row_of(keys[5:], 1))
            tables.settle()
            tables.evict(TABLE, keys[:5])
            np.testing.assert_array_equal(tables.lookup(TABLE, keys[:5]), row_of(keys[:5], 2))
            load(tables, again=True)
            tables.settle()
            with pytest.raises(StoreError):
                trainer.dump(TABLE, tmp_path / "dump")
        finally:
            tables.close()
            nodes[1].close()
        for user in ("tables", "trainer"):
            with redis.Redis(server.host, server.port, username=user, password="CHANGE_ME") as client:
                for command in (("SET", "other", "x"), ("FLUSHALL",), ("CONFIG", "GET", "*"), ("KEYS", "*")):
                    with pytest.raises(redis.exceptions.NoPermissionError):
                        client.execute_command(*command)
