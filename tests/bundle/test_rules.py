"""Business rules hold for every recommendation: ahead of time, on demand, in degraded answers."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis

from redis_recsys.bundle.bundle import Bundle, File, Manifest
from redis_recsys.bundle.rules import Rules
from redis_recsys.config import BatchSettings, OnlineSettings, Settings
from redis_recsys.dataset.encode import encode
from redis_recsys.dataset.entities import ITEM_VALUES
from redis_recsys.dataset.interactions import Dataset
from redis_recsys.dataset.schema import Column, Schema
from redis_recsys.dataset.split import Split
from redis_recsys.errors import ConfigError
from redis_recsys.offline.batch import batch
from redis_recsys.online.deploy import deploy
from redis_recsys.online.serving import serving
from redis_recsys.store import deployments
from redis_recsys.store.recommendations import get_many
from redis_recsys.utils.files import sha256
from tests.support.commands import Outcome
from tests.support.pipelines import HOW, Deployed, answer, ids, running
from tests.support.planted import Trained, planted_dataset, trained_on

USERS, ITEMS, NEW = 40, 60, 6
DENY = {"brand": ["alcohol", "rare"], "tags": ["adult"], "tier": ["silver"]}
NOBODY = ["nobody"]


def catalogue() -> dict[str, list[Any]]:
    """Items i1 to i60 of the log, and i61 to i66 without any row; with values that encoding loses.

    Brands seen fewer than 3 times have no id of their own, nor do tiers other than the most frequent one, tags beyond
    the third of an item, and values that only new items have.
    """
    number = np.arange(1, ITEMS + NEW + 1)
    brand = np.where(number % 2, "acme", "zeta").astype(object)
    brand[10] = "rare"
    brand[ITEMS : ITEMS + 3] = "alcohol"
    tags = [["t1", "t2", "t3", "t4", "adult"] if n % 7 == 0 else ["t1"] for n in number]
    tags[20] = []
    return {
        "item": [f"i{n}" for n in number],
        "brand": brand.tolist(),
        "tags": tags,
        "tier": ["silver" if n % 9 == 0 else "gold" if n != 30 else None for n in number],
        "code": [int(n) % 5 for n in number],
        "fresh": [bool(n % 2) for n in number],
        "price": [float(n) for n in number],
        "title": [f"Item {n}" for n in number],
    }


def denied() -> set[str]:
    """Items that DENY names."""
    rows = zip(*(catalogue()[name] for name in ("item", "brand", "tags", "tier")), strict=True)
    return {
        item
        for item, brand, tags, tier in rows
        if brand in DENY["brand"] or set(tags) & set(DENY["tags"]) or tier in DENY["tier"]
    }


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A small bundle of that catalogue."""
    folder, random = tmp_path_factory.mktemp("rules"), np.random.default_rng(3)
    columns = [
        Column(name="user", side="user", kind="categorical", role="id"),
        Column(name="recent", side="user", kind="multi-categorical", role="history", max_length=3),
        Column(name="item", side="item", kind="categorical", role="id"),
        Column(name="brand", side="item", kind="categorical", min_frequency=40),
        Column(name="tags", side="item", kind="multi-categorical", max_length=3),
        Column(name="tier", side="item", kind="categorical", max_vocabulary=1),
        Column(name="code", side="item", kind="categorical"),
        Column(name="fresh", side="item", kind="categorical"),
        Column(name="price", side="item", kind="numeric"),
        Column(name="title", side="item", kind="text", role="label"),
        Column(name="at", side="time", kind="numeric"),
    ]
    raw = folder / "raw"
    (raw / "interactions").mkdir(parents=True)
    Schema(name="shop", columns=columns).save(raw / "schema.yaml")
    log = {
        "user": [f"u{n}" for n in random.integers(1, USERS + 1, 1200)],
        "item": [f"i{n}" for n in random.integers(1, ITEMS + 1, 1200)],
        "at": np.arange(1200) * 60,
    }
    pq.write_table(pa.table(log), raw / "interactions" / "part-0.parquet")
    pq.write_table(pa.table(catalogue()), raw / "items.parquet")
    encode(raw, folder / "dataset", Split())
    trained = trained_on(Dataset(folder / "dataset"), folder / "bundle")
    vocabulary = pq.read_table(trained.bundle.path / "vocab" / "brand.parquet")["value"].to_pylist()
    assert "rare" not in vocabulary  # so that ids could not tell them apart
    return trained


def everybody(bundle: Bundle) -> np.ndarray:
    users = next(bundle.users())[0].raw_ids
    return np.array([*users.tolist(), *NOBODY], users.dtype)


def shown(items: np.ndarray) -> list[list[str]]:
    """Raw text ids in each row of an answer."""
    return [[item.decode() for item in row if item] for row in items]


def test_a_data_set_and_its_bundle_keep_the_raw_values(shop: Trained) -> None:
    given = dict(zip(catalogue()["item"], zip(*catalogue().values(), strict=True), strict=True))
    for path in (shop.dataset.path, shop.bundle.path):
        table = pq.read_table(path / ITEM_VALUES)
        assert table.column_names == ["brand", "tags", "tier", "code", "fresh"]
        for item, row in zip(shop.dataset.items.raw_ids, table.to_pylist(), strict=True):
            _, brand, tags, tier, code, fresh, *_ = given[item]
            assert list(row.values()) == [brand, tags or None, tier, code, int(fresh)]  # an empty list is a null


@pytest.mark.parametrize("partition", ["fused", "consolidated", "staged"])
@pytest.mark.parametrize("how", HOW)
def test_on_demand_nobody_is_shown_what_is_denied(
    shop: Trained, deployed: Deployed, how: dict[str, Any], partition: str
) -> None:
    settings = deployed(shop.bundle, {"partition": partition}, **how, deny=DENY, topk=100)
    found = answer(settings, ids(everybody(shop.bundle)))
    assert not found["degraded"].any()
    raw = np.array(["", *shop.bundle.items.raw_ids], object)
    allowed = set(raw[1:]) - denied()
    for row, items in enumerate(shown(found["item_ids"])):
        assert set(items) == allowed - set(raw[found["seen"][row]])  # and all that are left, as more are asked for
    assert not set(raw[found["candidates"]].ravel()) & denied()


@pytest.mark.parametrize("partition", ["fused", "staged"])
def test_degraded_answers_hold_nothing_that_is_denied(
    shop: Trained, deployed: Deployed, client: redis.Redis, partition: str
) -> None:
    settings = deployed(shop.bundle, {"partition": partition}, deny=DENY, topk=100)
    client.delete("history:{u1}")
    client.set("history:{u1}", "no sorted set")  # which makes a request fail
    found = answer(settings, ids(np.array(["u1"], object)))
    assert found["degraded"].all()
    (items,) = shown(found["item_ids"])
    assert set(items) == set(shop.bundle.items.raw_ids) - denied()


def test_a_bundle_that_cannot_be_read_shows_nothing_where_there_are_rules(
    shop: Trained, deployed: Deployed, client: redis.Redis
) -> None:
    settings = deployed(shop.bundle)
    folder = settings.deploy.models / deployments.read(client, "1").folder
    (folder / "user_tower.onnx").unlink()
    users = ids(np.array(["u1", "nobody"], object))
    with running(settings) as runner:
        assert all(shown(runner(users)["item_ids"]))
    settings.online.deny = {"brand": ["alcohol"]}
    with running(settings) as runner:
        found = runner(users)
    assert found["degraded"].all()
    assert shown(found["item_ids"]) == [[], []]


def test_batches_obey_the_rules_and_so_does_what_users_without_recommendations_get(
    shop: Trained, client: redis.Redis
) -> None:
    settings = Settings(batch=BatchSettings(topk=100, popular=5), online=OnlineSettings(deny=DENY))
    batch(shop.bundle, client, settings)
    allowed = set(shop.bundle.items.raw_ids) - denied()
    raw = np.array(["", *shop.bundle.items.raw_ids], object)
    users, history = next(shop.bundle.users())
    found = get_many(client, [*users.raw_ids, *NOBODY])
    for number, each in enumerate(found[:-1], 1):
        assert set(each.items) == allowed - set(raw[history[number]])
        assert each.source == "model"
    assert found[-1].source == "popular"
    assert set(found[-1].items) == allowed


def test_other_rules_make_another_batch(shop: Trained, client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # noqa: PT012
        patch.setattr("redis_recsys.store.recommendations.RecommendationsWriter.publish", cut)
        batch(shop.bundle, client, Settings())
    assert batch(shop.bundle, client, Settings(online=OnlineSettings(deny=DENY))).resumed_at == 0


# A narrow rule


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A bundle of 3,000 items."""
    folder = tmp_path_factory.mktemp("large")
    return trained_on(planted_dataset(folder, items=3000, rows=6000), folder / "bundle")


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("part", [25, 1500])
def test_a_rule_that_leaves_25_of_3000_items_gives_these(
    large: Trained, deployed: Deployed, how: dict[str, Any], part: int
) -> None:
    raw = large.bundle.items.raw_ids
    left = np.random.default_rng(1).choice(raw, part, replace=False).tolist()
    settings = deployed(large.bundle, **how, allow={"item": left}, topk=30)
    users = next(large.bundle.users())[0].raw_ids
    found = answer(settings, ids(np.array([*users, 10**9])))
    for row, items in enumerate(found["item_ids"].tolist()):
        got = {item for item in items if item != -1}
        unseen = set(left) - set(raw[found["seen"][row][found["seen"][row] > 0] - 1])
        assert got <= unseen
        assert len(got) == min(30, len(unseen))


def test_a_rule_that_bars_what_is_nearest_is_made_up_for(large: Trained, deployed: Deployed) -> None:
    users = next(large.bundle.users())[0].raw_ids
    plain = {"nearest": 20, "topk": 20, "retrieval": "redis"}
    nearest = answer(deployed(large.bundle, **plain | {"nearest": 600}), ids(users[:1]))["candidates"][0]
    barred = large.bundle.items.raw_ids[nearest - 1].tolist()
    found = answer(deployed(large.bundle, **plain, deny={"item": barred}), ids(users[:1]))["item_ids"][0].tolist()
    assert len(set(found) - {-1}) == 20
    assert not set(found) & set(barred)


# Messages about rules


@pytest.mark.parametrize(
    ("rules", "items"),
    [
        ({"allow": {"code": [1]}}, lambda row: row["code"] == 1),
        ({"allow": {"code": ["1"]}}, lambda row: row["code"] == 1),
        ({"deny": {"code": ["0", 3]}}, lambda row: row["code"] not in (0, 3)),
        ({"allow": {"fresh": [True]}}, lambda row: row["fresh"]),
        ({"allow": {"fresh": ["false"]}}, lambda row: not row["fresh"]),
        ({"deny": {"fresh": [1]}}, lambda row: not row["fresh"]),
        ({"allow": {"tier": ["gold"]}}, lambda row: row["tier"] == "gold"),
        ({"deny": {"tier": ["gold"]}}, lambda row: row["tier"] != "gold"),
        ({"allow": {"tags": ["t4"], "brand": ["acme"]}}, lambda row: "t4" in row["tags"] and row["brand"] == "acme"),
        ({"allow": {"item": ["i3", "i61"]}}, lambda row: row["item"] in ("i3", "i61")),
        ({}, lambda row: True),
    ],
)
def test_values_are_compared_as_they_are_in_the_data(
    shop: Trained, rules: dict[str, Any], items: Callable[[dict[str, Any]], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in rules.items():
        monkeypatch.setenv(f"RECSYS_ONLINE_{name.upper()}", json.dumps(value))
    found = Rules.of(shop.bundle, Settings().online)
    rows = [dict(zip(catalogue(), row, strict=True)) for row in zip(*catalogue().values(), strict=True)]
    expected = {row["item"] for row in rows if items(row)}
    assert set(shop.bundle.items.raw_ids[found.allowed[1:]]) == expected
    assert not found.allowed[0]
    assert found.warnings == ()


def test_truth_values_written_as_text_are_compared_too(large: Trained, tmp_path: Path) -> None:
    values = pa.table({"genres": [[["True" if n % 2 else "true"], ["False"], ["7"]][n % 3] for n in range(3000)]})
    bundle = with_values(large.bundle, tmp_path / "bundle", values)
    for wanted, place in ((True, 0), ("true", 0), (False, 1), (7, 2), ("7", 2)):
        rules = Rules.of(bundle, OnlineSettings(allow={"genres": [wanted]}))
        assert (np.flatnonzero(rules.allowed) % 3 == (place + 1) % 3).all()
        assert rules.allowed.sum() == 1000


def with_values(bundle: Bundle, target: Path, values: pa.Table | None) -> Bundle:
    """A copy of a bundle with other raw values, or with none, as earlier releases wrote it."""
    shutil.copytree(bundle.path, target)
    (target / ITEM_VALUES).unlink()
    manifest = Manifest.model_validate_json((target / "manifest.json").read_bytes())
    del manifest.files[ITEM_VALUES]
    if values is not None:
        pq.write_table(values, target / ITEM_VALUES)
        size = (target / ITEM_VALUES).stat().st_size
        manifest.files[ITEM_VALUES] = File(bytes=size, sha256=sha256(target / ITEM_VALUES))
    (target / "manifest.json").write_text(manifest.model_dump_json())
    return Bundle(target)


def test_values_that_no_item_has_are_named_with_what_may_be_meant(
    shop: Trained, use_server: redis.Redis, recsys: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setenv("RECSYS_ONLINE_DENY", '{"brand": ["Alcohol ", "xyz"], "tags": ["t1"]}')
    monkeypatch.setenv("RECSYS_ONLINE_ALLOW", '{"code": [1, 12]}')
    for verb in ("batch", "deploy"):
        caplog.clear()
        assert recsys(verb, shop.bundle.path, *(["--no-feast"] if verb == "deploy" else [])).code == 0
        assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
            "setting online.allow names 12 in code, which no item has",
            "setting online.deny names 'Alcohol ' in brand, which no item has: did you mean 'alcohol'?",
            "setting online.deny names 'xyz' in brand, which no item has",
        ]


REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"allow": {"brand": ["acmee"]}},
        "settings online.allow and online.deny leave none of the 66 items: "
        "setting online.allow names 'acmee' in brand, which no item has: did you mean 'acme'?",
    ),
    ({"allow": {"brand": []}}, "settings online.allow and online.deny leave none of the 66 items"),
    ({"deny": {"fresh": [True, False]}}, "settings online.allow and online.deny leave none of the 66 items"),
    ({"deny": {"price": [7]}}, "setting online.deny names price, which holds numbers: name one of item, brand, tags"),
    ({"allow": {"title": ["Item 1"]}}, "setting online.allow names title, which holds texts for people: name one of"),
    ({"allow": {"user": ["u1"]}}, "setting online.allow names user, which items do not have: name one of item, brand"),
]


@pytest.mark.parametrize(("rules", "reason"), REFUSED)
def test_rules_that_cannot_be_meant_are_refused_at_the_start_by_every_way(
    shop: Trained,
    deployed: Deployed,
    client: redis.Redis,
    use_server: redis.Redis,
    recsys: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
    rules: dict[str, Any],
    reason: str,
) -> None:
    settings = deployed(shop.bundle)
    settings.online = OnlineSettings(**rules)
    with pytest.raises(ConfigError) as caught, running(settings):
        pass
    assert reason in str(caught.value)
    with pytest.raises(ConfigError) as caught, serving(settings, events=False):
        pass
    assert reason in str(caught.value)
    for name, value in rules.items():
        monkeypatch.setenv(f"RECSYS_ONLINE_{name.upper()}", json.dumps(value))
    for verb in ("batch", "deploy"):
        assert reason in recsys(verb, shop.bundle.path, *(["--no-feast"] if verb == "deploy" else [])).error()
    assert client.get("recs:live") is None
    assert deployments.live(client) == "1"


def test_bundles_of_earlier_releases_serve_and_refuse_only_rules_that_they_cannot_keep(
    shop: Trained, deployed: Deployed, client: redis.Redis, tmp_path: Path
) -> None:
    old = with_values(shop.bundle, tmp_path / "old", None)
    users = ids(np.array(["u1"], object))
    with running(deployed(old)) as runner:
        assert not runner(users)["degraded"].any()
    settings = deployed(old, deny={"item": ["i1"]}, topk=100)
    with running(settings) as runner:
        (items,) = shown(runner(users)["item_ids"])
    assert items
    assert "i1" not in items
    settings.online.deny = {"brand": ["acme"]}
    with pytest.raises(ConfigError, match=r"online.deny names brand, .* has no raw values: .*train again"):
        deploy(old, client, settings)
    with pytest.raises(ConfigError, match="no raw values"), running(settings):
        pass


def test_a_later_deployment_that_cannot_keep_the_rules_is_not_served(
    shop: Trained, deployed: Deployed, client: redis.Redis, tmp_path: Path
) -> None:
    old = with_values(shop.bundle, tmp_path / "old", None)
    settings = deployed(shop.bundle, deny=DENY, topk=100)
    with running(settings) as runner:
        deployed(old)
        runner.follower.look()
        found = runner(ids(everybody(shop.bundle)))
    assert (found["generation"] == 1).all()
    assert not {item for row in shown(found["item_ids"]) for item in row} & denied()
