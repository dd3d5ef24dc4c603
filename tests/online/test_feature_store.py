"""The feature store: Feast returns the bundle's features, and no file holds a secret."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from feast import FeatureStore
from feast.infra.online_stores.redis import RedisOnlineStore

from redis_recsys.bundle.bundle import Bundle
from redis_recsys.dataset.entities import Entities
from redis_recsys.dataset.schema import Column, Schema
from redis_recsys.embedded.redis_server import EmbeddedRedis
from redis_recsys.errors import StoreError
from redis_recsys.online import feature_store as feast_repo
from redis_recsys.online.feature_store import FeastGeneration, definitions
from redis_recsys.store import features
from tests.support.paths import ROOT
from tests.support.planted import Trained

REPOSITORY = ROOT / "multi-stage" / "feature_repo"


def users_of(bundle: Bundle) -> Entities:
    blocks = [users for users, _ in bundle.users()]
    parts = ([getattr(b, name) for b in blocks] for name in ("raw_ids", "categorical", "numeric"))
    return Entities(*map(np.concatenate, parts))


def opened(client: redis.Redis, bundle: Bundle, data: Path, generation: str = "7") -> FeastGeneration:
    return FeastGeneration(client, data, generation, f"recsys_{generation}", bundle.schema, bundle.id_kinds)


def same(feast: FeastGeneration, side: Any, expected: Entities) -> None:
    categorical, numeric, known = feast.read(side, expected.raw_ids.tolist())
    np.testing.assert_array_equal(categorical, expected.categorical)
    np.testing.assert_array_equal(numeric, expected.numeric)
    assert known.all()


def test_feast_tells_every_feature_of_every_entity(
    client: redis.Redis, variant: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feast_repo, "BLOCK", 25)
    bundle = variant.bundle
    opened(client, bundle, tmp_path).materialize(bundle)
    feast = opened(client, bundle, tmp_path)
    same(feast, "user", users_of(bundle))
    same(feast, "item", bundle.items)
    assert client.dbsize() == bundle.manifest.users + bundle.manifest.items


def test_feasts_own_materialization_writes_the_same(client: redis.Redis, variant: Trained, tmp_path: Path) -> None:
    bundle = variant.bundle
    feast = opened(client, bundle, tmp_path)
    feast.materialize(bundle)
    ours = {key: client.hgetall(key) for key in client.scan_iter()}
    client.flushall()
    feast.store.materialize(datetime(2020, 1, 1, tzinfo=UTC), datetime.now(UTC))
    assert {key: client.hgetall(key) for key in client.scan_iter()} == ours


def test_an_unknown_entity_has_zeros_and_is_marked(client: redis.Redis, trained: Trained, tmp_path: Path) -> None:
    feast = opened(client, trained.bundle, tmp_path)
    feast.materialize(trained.bundle)
    categorical, numeric, known = feast.read("user", [1, 10**12, 2])
    assert known.tolist() == [True, False, True]
    assert not categorical[1].any()
    assert not numeric[1].any()
    assert categorical[[0, 2], 0].all()


def test_generations_lie_side_by_side(client: redis.Redis, bundle_of: Callable[[str], Trained], tmp_path: Path) -> None:
    bundles = {"1": bundle_of("everything").bundle, "11": bundle_of("numerics-no-history").bundle}
    for generation, bundle in bundles.items():
        opened(client, bundle, tmp_path, generation).materialize(bundle)
    for generation, bundle in bundles.items():
        same(opened(client, bundle, tmp_path, generation), "user", users_of(bundle))


@pytest.mark.parametrize("name", ["everything", "text-ids-history-implicit"])
def test_changed_rows_are_followed(
    client: redis.Redis, bundle_of: Callable[[str], Trained], tmp_path: Path, name: str
) -> None:
    bundle = bundle_of(name).bundle
    feast = opened(client, bundle, tmp_path)
    feast.materialize(bundle)
    users = users_of(bundle)
    for round_ in (1, 2):
        some = users.rows(slice(3, 9))
        some.categorical[:, -1] = round_
        newcomer = "u-new" if bundle.id_kinds["user"] == "str" else 987654
        raw_ids = [*some.raw_ids.tolist(), newcomer]
        packed = features.pack(some.categorical, some.numeric)
        features.write_many(client, "7", "user", raw_ids, [*packed, packed[0]])
        feast.follow("user", [*raw_ids, "u-nobody" if isinstance(newcomer, str) else 5**20])
        same(feast, "user", some)
        np.testing.assert_array_equal(feast.read("user", [newcomer])[0], some.categorical[:1])
    same(feast, "user", users.rows(slice(9, None)))


def test_the_newest_row_stays_whichever_process_writes_last(
    client: redis.Redis, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = trained.bundle
    feast, other = opened(client, bundle, tmp_path), opened(client, bundle, tmp_path)
    feast.materialize(bundle)
    user = users_of(bundle).rows(slice(0, 1))
    user.categorical[:, -1] = 1
    features.write_many(client, "7", "user", user.raw_ids.tolist(), features.pack(user.categorical, user.numeric))
    write = feast.write_rows

    def overtaken(*args: Any) -> None:
        """The row changes, and another process has finished with it, between reading and writing it here."""
        monkeypatch.setattr(feast, "write_rows", write)
        user.categorical[:, -1] = 2
        features.write_many(client, "7", "user", user.raw_ids.tolist(), features.pack(user.categorical, user.numeric))
        other.follow("user", user.raw_ids.tolist())
        write(*args)

    monkeypatch.setattr(feast, "write_rows", overtaken)
    feast.follow("user", user.raw_ids.tolist())
    same(feast, "user", user)
    assert user.categorical[0, -1] == 2


def test_no_file_holds_the_password(
    client: redis.Redis, server: EmbeddedRedis, trained: Trained, tmp_path: Path
) -> None:
    opened(client, trained.bundle, tmp_path).materialize(trained.bundle)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name for path in files} == {"registry.db", "user_features.parquet", "item_features.parquet"}
    assert not [path for path in files if server.password.encode() in path.read_bytes()]


@pytest.mark.parametrize("password", ['a,b="1" ü\\', "12345", "true", "p=q,ssl=false", "[1,2]"])
def test_feast_logs_in_with_any_user_and_password(
    client: redis.Redis, server: EmbeddedRedis, trained: Trained, tmp_path: Path, password: str
) -> None:
    client.acl_setuser("a,b", enabled=True, passwords=[f"+{password}"], keys=["*"], commands=["+@all"])
    try:
        with redis.Redis(server.host, server.port, username="a,b", password=password) as user:
            feast = opened(user, trained.bundle, tmp_path)
            feast.materialize(trained.bundle)
            same(feast, "item", trained.bundle.items)
    finally:
        client.acl_deluser("a,b")


def test_feast_connects_as_the_client_does(tmp_path: Path, trained: Trained) -> None:
    options: dict[str, Any] = {"host": "redis.example", "port": 6380, "username": "recsys", "db": 3}
    options |= {"password": "secret", "ssl_ca_certs": "/a,b/ca.pem", "socket_timeout": 2.5}
    with redis.Redis(ssl=True, **options) as client:
        feast = opened(client, trained.bundle, tmp_path)
    store = RedisOnlineStore()._get_client(feast.store.config.online_store)
    assert issubclass(store.connection_pool.connection_class, redis.SSLConnection)
    given = store.get_connection_kwargs()
    assert {name: str(given[name]) for name in options} == {name: str(value) for name, value in options.items()}


def test_a_redis_that_fails_is_named_in_one_line(folder: Path, trained: Trained, tmp_path: Path) -> None:
    with (
        EmbeddedRedis(folder, max_memory="4mb", persist=False) as server,
        redis.Redis(server.host, server.port, password=server.password) as client,
    ):
        client.config_set("maxmemory", 1)
        with pytest.raises(StoreError, match="is out of memory: raise its maxmemory"):
            opened(client, trained.bundle, tmp_path).materialize(trained.bundle)


def test_a_generation_that_feast_does_not_know_is_named(client: redis.Redis, trained: Trained, tmp_path: Path) -> None:
    feast = opened(client, trained.bundle, tmp_path, "99")
    features.write_many(client, "99", "user", [1], features.pack(*(np.zeros((1, n), np.int32) for n in (5, 1))))
    for attempt in (lambda: feast.read("user", [1]), lambda: feast.follow("user", [1])):
        with pytest.raises(StoreError, match=r"recsys_99/registry.db is missing: share that folder"):
            attempt()
    assert not list(tmp_path.rglob("registry.db"))


def test_fields_never_share_a_name_with_the_join_key_or_the_time(tmp_path: Path) -> None:
    columns = [
        Column(name="id", side="user", kind="categorical", role="id"),
        Column(name="id_number", side="user", kind="categorical"),
        Column(name="event_timestamp", side="user", kind="numeric"),
        Column(name="item", side="item", kind="categorical", role="id"),
    ]
    schema = Schema(name="odd", columns=columns)
    user, view, *_ = definitions(schema, {"user": "int", "item": "int"}, tmp_path)
    assert user.join_key == "id"
    assert [field.name for field in view.features] == ["id_number_", "id_number", "event_timestamp"]
    assert view.batch_source.timestamp_field == "event_timestamp_"


def test_the_repository_can_be_applied_and_materialized_by_hand(
    client: redis.Redis, server: EmbeddedRedis, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(REPOSITORY, tmp_path / "multi-stage" / "feature_repo")
    variables = {
        "FEAST_PROJECT": "by_hand",
        "FEAST_REDIS": f"{server.host}:{server.port},password={server.password}",
        "RECSYS_BUNDLE": str(trained.bundle.path),
    }
    feast = Path(sys.executable).with_name("feast")
    subprocess.run([feast, "apply"], cwd=folder, env=os.environ | variables, check=True, capture_output=True)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    store = FeatureStore(repo_path=str(folder))
    store.materialize_incremental(datetime.now(UTC))
    found = store.get_online_features(["item_features:genres"], [{"item": n} for n in (1, 2)]).to_dict()
    genres = trained.bundle.schema.slots(next(c for c in trained.bundle.schema.columns if c.name == "genres"))
    rows = dict(zip(trained.bundle.items.raw_ids.tolist(), trained.bundle.items.categorical.tolist(), strict=True))
    assert found["genres"] == [rows[1][genres], rows[2][genres]]
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in written if server.password.encode() in path.read_bytes()]
