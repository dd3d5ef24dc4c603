"""The stream of events: accepted values, an event's effects, and that no event is lost or applied twice."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from redis.crc import key_slot

from redis_recsys.embedded.redis_server import EmbeddedRedis
from redis_recsys.errors import DataError, StoreError
from redis_recsys.store import events, features, history
from redis_recsys.store.events import (
    Event,
    Group,
    Placement,
    newest,
    publish,
    refusal,
    settled,
    settled_within,
    waiting,
)

NOW = 1_700_000_000_000
WIDTH = 3
PLACE = {"generation": "4", "first": 2, "width": WIDTH, "length": 4 * 7}


@pytest.fixture(autouse=True)
def _tidy_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "TIDY_SECONDS", 0.0)


def event(number: int, item: int | str, user: int | str = 1, at: int | None = None, kind: str = "click") -> Event:
    name = f"{NOW + number}-0"
    return Event(name, str(user), str(item), kind, NOW + number if at is None else NOW + at, name)


def apply(client: redis.Redis, *several: Event, cap: int = 100, gens: tuple[str, ...] = ("4",)) -> None:
    """Apply events; an item's number is its name."""
    placements = [
        [Placement(**PLACE | {"generation": generation, "number": int(e.item)}) for generation in gens] for e in several
    ]
    assert Group(client, "tester").apply(several, placements, cap) == []


def row(client: redis.Redis, user: int | str = 1, generation: str = "4") -> list[int]:
    value: Any = client.get(features.key(generation, "user", user))
    return list(struct.unpack("<7i", value))


def state(client: redis.Redis) -> dict[bytes, Any]:
    return {key: client.dump(key) for key in client.scan_iter() if key.startswith((b"hist", b"count", b"feat"))}


# Publishing


def test_an_accepted_event_lies_in_the_stream(client: redis.Redis) -> None:
    first = publish(client, 405, 50, "click")
    second = publish(client, "ann ü", np.int64(7), "add-to-cart", NOW)
    entries: Any = client.xrange("events")
    assert len({entry.pop(b"key") for _, entry in entries}) == 2
    assert entries == [
        (first.encode(), {b"user": b"405", b"item": b"50", b"type": b"click"}),
        (second.encode(), {b"user": "ann ü".encode(), b"item": b"7", b"type": b"add-to-cart", b"time": b"%d" % NOW}),
    ]


@pytest.mark.parametrize(
    ("field", "value"),
    [("user", each) for each in ("", "x" * 513, None, 1.5, b"1", "\ud800")]
    + [("item", each) for each in ("", "ü" * 257, [], "x" * 10**7)]
    + [("type", each) for each in ("", "two words", "x" * 33, "1st", "click\n", None, 3)]
    + [("time", each) for each in (0, -5, 1_700_000_000, 10**15, "yesterday", 1.5, 10**30)],
)
def test_what_cannot_be_right_is_refused_by_name(client: redis.Redis, field: str, value: Any) -> None:
    given = {"user": 1, "item": 2, "type": "click", "time": NOW} | {field: value}
    with pytest.raises(DataError, match=f"^{field} of an event") as caught:
        publish(client, given["user"], given["item"], given["type"], given["time"])
    assert len(str(caught.value)) < 200
    assert not client.exists("events")


def test_ids_and_times_at_the_limits_are_accepted(client: redis.Redis) -> None:
    publish(client, "x" * 512, "ü" * 256, "x" * 32, history.EARLIEST)
    [got] = Group(client, "a").read(1)
    assert (got.user, got.item, got.type, got.time) == ("x" * 512, "ü" * 256, "x" * 32, history.EARLIEST)


def test_the_newest_event_is_known_also_once_it_is_gone(client: redis.Redis) -> None:
    assert newest(client) == 0
    client.xadd("events", {"x": "x"}, id=f"{NOW}-7")
    assert newest(client) == NOW
    client.xtrim("events", maxlen=0, approximate=False)
    assert newest(client) == NOW
    client.set("events", "no stream")
    with pytest.raises(StoreError, match="WRONGTYPE"):
        newest(client)


def test_a_redis_that_is_gone_is_an_error_in_one_line(tmp_path: Path, client_of: Callable[..., redis.Redis]) -> None:
    with EmbeddedRedis(tmp_path / "redis", persist=False) as server:
        client = client_of(server)
    with pytest.raises(StoreError, match="cannot reach Redis"):
        publish(client, 1, 2, "click")


# Effects


def test_an_event_changes_history_counter_and_features(client: redis.Redis) -> None:
    features.write_many(client, "4", "user", [1], features.pack(np.array([[8, 9, 5, 6, 0]]), np.array([[0.5, -1]])))
    apply(client, event(0, item=7))
    assert client.zrange("history:{1}", 0, -1, withscores=True) == [(b"7", NOW)]
    assert client.hgetall("counts:{1}") == {b"click": b"1"}
    categorical, numeric, _ = features.unpack([client.get("features:4:user:{1}")], 5, 2)  # type: ignore[list-item]
    assert categorical.tolist() == [[8, 9, 7, 5, 6]]
    assert numeric.tolist() == [[0.5, -1]]
    assert client.zscore("events:users", "1") == NOW


def test_a_user_without_features_gets_some(client: redis.Redis) -> None:
    apply(client, event(0, item=7, user="new"))
    assert row(client, "new") == [0, 0, 7, 0, 0, 0, 0]


def test_an_item_that_comes_again_moves_to_the_front(client: redis.Redis) -> None:
    apply(client, *(event(n, item) for n, item in enumerate([5, 6, 7, 5, 5])))
    assert row(client)[2:5] == [5, 7, 6]
    assert client.zrevrange("history:{1}", 0, -1) == [b"5", b"7", b"6"]
    assert client.hgetall("counts:{1}") == {b"click": b"5"}


def test_the_newest_items_fill_the_slots(client: redis.Redis) -> None:
    apply(client, *(event(n, item) for n, item in enumerate([300, 2**31 - 1, 65536, 1])))
    assert row(client) == [0, 0, 1, 65536, 2**31 - 1, 0, 0]


def test_an_event_delivered_again_changes_nothing(client: redis.Redis) -> None:
    several = [event(n, item) for n, item in enumerate([5, 6, 7, 5])]
    apply(client, *several)
    before = state(client)
    for each in several:
        apply(client, each)
    apply(client, *reversed(several))
    assert state(client) == before


ITEMS = [5, 6, 7, 5, 8, 6]


@pytest.mark.parametrize(
    "several",
    [
        [event(n, item) for n, item in enumerate(ITEMS)],
        [replace(event(0, item), id=f"{NOW}-{n}", key=f"{n}") for n, item in enumerate(ITEMS)],
    ],
    ids=["one after the other", "within one millisecond"],
)
def test_the_order_of_application_does_not_matter(client: redis.Redis, several: list[Event]) -> None:
    apply(client, *several)
    in_order = state(client)
    for seed in range(20):
        client.flushall()
        apply(client, *(several[n] for n in np.random.default_rng(seed).permutation(len(several))))
        assert row(client)[2:5] == [6, 8, 5]
        assert state(client) == in_order


def test_a_late_event_comes_where_it_belongs(client: redis.Redis) -> None:
    apply(client, event(0, 5), event(20, 6), event(21, 7, at=10))
    assert client.zrevrange("history:{1}", 0, -1) == [b"6", b"7", b"5"]
    assert row(client)[2:5] == [6, 7, 5]
    apply(client, event(22, 6, at=1))  # older than the item's last event
    assert row(client)[2:5] == [6, 7, 5]
    assert client.zscore("history:{1}", "6") == NOW + 20
    apply(client, event(23, 9, at=-5))  # older than all slots
    assert row(client)[2:5] == [6, 7, 5]


def test_many_events_of_one_millisecond_stay_before_those_of_the_next() -> None:
    several = [replace(event(0, 5), id=f"{NOW}-{number}") for number in (0, 1, 4095, 100_000)]
    recency = [each.recency for each in several]
    assert recency == sorted(recency)
    assert len(set(recency[:3])) == 3
    assert recency[-1] < event(1, 5).recency
    assert replace(event(10, 5, at=0), id=f"{NOW + 10}-9").recency == NOW  # not ahead of what happened then


def test_a_late_event_does_not_make_the_user_look_older(client: redis.Redis) -> None:
    apply(client, event(20, 5), event(10, 6))
    assert client.zscore("events:users", "1") == NOW + 20
    apply(client, event(15, 7))
    assert client.zscore("events:users", "1") == NOW + 20


def test_a_row_of_another_length_is_made_anew(client: redis.Redis) -> None:
    client.set("features:4:user:{1}", b"\1" * 20)
    apply(client, event(0, item=7))
    assert row(client) == [0, 0, 7, 0, 0, 0, 0]


def test_a_live_event_leaves_what_came_with_the_deployment_as_it_is(client: redis.Redis) -> None:
    history.write_many(client, "4", [1], [np.arange(40, 90)], cap=100)
    before = client.get("history:4:{1}")
    apply(client, event(0, 45))
    assert client.zrange("history:{1}", 0, -1) == [b"45"]
    assert client.get("history:4:{1}") == before


def test_histories_are_capped(client: redis.Redis) -> None:
    apply(client, *(event(n, item=n) for n in range(1, 30)), cap=4)
    assert client.zrange("history:{1}", 0, -1) == [b"26", b"27", b"28", b"29"]
    apply(client, event(40, item=99, at=-1000), cap=4)  # older than all items kept
    assert client.zrange("history:{1}", 0, -1) == [b"26", b"27", b"28", b"29"]
    assert row(client)[2:5] == [29, 28, 27]


def test_each_generation_gets_its_own_numbers_and_keeps_its_time_to_live(client: redis.Redis) -> None:
    client.set("features:4:user:{1}", bytes(28), ex=1000)
    one, other = Placement(**PLACE, number=3), Placement("12", 77, first=0, width=1, length=8)
    Group(client, "tester").apply([event(0, "x")], [[one, other]], 10)
    assert row(client) == [0, 0, 3, 0, 0, 0, 0]
    assert client.get("features:12:user:{1}") == struct.pack("<2i", 77, 0)
    assert 0 < client.ttl("features:4:user:{1}") <= 1000  # type: ignore[operator]
    Group(client, "tester").apply([event(1, "y")], [[]], 10)  # an item unknown to all generations
    assert client.get("features:12:user:{1}") == struct.pack("<2i", 77, 0)
    assert client.zrevrange("history:{1}", 0, -1) == [b"y", b"x"]


def test_the_keys_of_a_user_lie_in_one_slot_of_a_cluster(client: redis.Redis) -> None:
    apply(client, event(0, 5, user="a:b c"))
    of_user = [key for key in client.scan_iter() if key != b"events:users"]
    assert len(of_user) == 4
    assert {key_slot(key) for key in of_user} == {key_slot(b"a:b c")}


def test_the_script_is_loaded_again_after_redis_forgot_it(client: redis.Redis) -> None:
    client.script_flush()
    apply(client, event(0, 5), event(1, 6))
    client.script_flush()
    apply(client, event(0, 5), event(2, 7))
    assert row(client)[2:5] == [7, 6, 5]
    assert client.hget("counts:{1}", "click") == b"3"


def test_an_event_whose_keys_hold_something_else_does_not_stop_the_others(client: redis.Redis) -> None:
    client.set("history:{1}", "text")
    client.hset("counts:{2}", "click", "many")
    group = Group(client, "tester")
    several = [event(0, 5, user=1), event(1, 5, user=2), event(2, 5, user=3)]
    refused = group.apply(several, [[], [], []], 10)
    assert [each.user for each, _ in refused] == ["1", "2"]
    assert "WRONGTYPE" in refused[0][1]
    assert client.zrange("history:{3}", 0, -1) == [b"5"]


def test_a_full_redis_is_an_error_and_leaves_no_half_event(client: redis.Redis) -> None:
    client.config_set("maxmemory", "1")
    try:
        with pytest.raises(StoreError, match="out of memory"):
            apply(client, event(0, 5))
        with pytest.raises(StoreError, match="out of memory"):
            publish(client, 1, 5, "click")
    finally:
        client.config_set("maxmemory", "0")
    assert state(client) == {}
    assert not client.exists("applied:{1}")
    apply(client, event(0, 5))
    assert row(client)[2:5] == [5, 0, 0]


# The group


def taken(group: Group) -> list[str]:
    return [each.id for each in group.read(1)]


def test_events_come_in_order_and_once(client: redis.Redis) -> None:
    ids = [publish(client, user, 2, "click") for user in range(5)]
    group = Group(client, "a")
    got = group.read(1)
    assert [(each.id, each.user, each.item, each.type, each.time) for each in got] == [
        (name, str(user), "2", "click", int(name.split("-")[0])) for user, name in enumerate(ids)
    ]
    assert taken(group) == []
    late = publish(client, 9, 2, "click", NOW)
    assert [(each.id, each.time) for each in group.read(1)] == [(late, NOW)]


def test_a_time_in_the_future_counts_as_now(client: redis.Redis) -> None:
    name = publish(client, 1, 2, "click", 9 * 10**14)
    assert Group(client, "a").read(1)[0].time == int(name.split("-")[0])


def test_reading_waits_for_an_event(client: redis.Redis) -> None:
    group = Group(client, "a")
    assert group.read(1) == []
    timer = threading.Timer(0.1, publish, (client, 1, 2, "click"))
    timer.start()
    assert len(group.read(10_000)) == 1
    timer.join()


def test_reading_without_waiting_comes_back_at_once(client: redis.Redis) -> None:
    where = client.get_connection_kwargs()
    with redis.Redis(where["host"], where["port"], password=where["password"], socket_timeout=5) as impatient:
        assert Group(impatient, "a").read(0) == []


def test_events_that_were_not_acknowledged_come_again(client: redis.Redis) -> None:
    ids = [publish(client, 1, 2, "click") for _ in range(4)]
    group = Group(client, "a")
    first = group.read(1)
    group.acknowledge(first[:2])
    assert taken(group) == []
    group.reset()  # as after a failure
    assert taken(group) == ids[2:]
    assert taken(Group(client, "a")) == ids[2:]  # as after a restart under the same name
    assert taken(Group(client, "b")) == []


def test_a_dead_consumers_events_go_to_another(client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [publish(client, 1, 2, "click") for _ in range(3)]
    assert taken(Group(client, "dead")) == ids
    monkeypatch.setattr(events, "CLAIM_SECONDS", 3600.0)
    assert taken(Group(client, "b")) == []
    monkeypatch.setattr(events, "CLAIM_SECONDS", 0.0)
    assert taken(Group(client, "b")) == ids


def test_all_of_a_dead_consumers_many_events_are_found(client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = {publish(client, 1, 2, "click") for _ in range(50)}
    assert set(taken(Group(client, "dead"))) == ids
    monkeypatch.setattr(events, "CLAIM_SECONDS", 0.0)
    monkeypatch.setattr(events, "BATCH", 7)
    group, found = Group(client, "b"), []
    while got := group.read(1):
        found += got
        group.acknowledge(got)
    assert {each.id for each in found} == ids


def test_consumers_without_life_and_work_are_forgotten(client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(client, 1, 2, "click")
    busy, idle = Group(client, "busy"), Group(client, "idle")
    assert len(busy.read(1)) == 1
    assert idle.read(1) == []
    monkeypatch.setattr(events, "FORGET_SECONDS", 30)
    time.sleep(0.05)
    assert Group(client, "b").read(1) == []
    names = {each["name"] for each in client.xinfo_consumers("events", "features")}  # type: ignore
    assert names == {b"busy", b"idle", b"b"}
    monkeypatch.setattr(events, "FORGET_SECONDS", -1)
    assert Group(client, "c").read(1) == []
    assert {each["name"] for each in client.xinfo_consumers("events", "features")} == {b"busy", b"c"}  # type: ignore


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"item": "2", "type": "click"}, "without user"),
        ({"user": "1", "type": "click"}, "without item"),
        ({"user": "1", "item": "2"}, "without type"),
        ({"user": "", "item": "2", "type": "click"}, "user of an event"),
        ({"user": "1", "item": b"\xff", "type": "click"}, "item that is not UTF-8"),
        ({"user": "1", "item": "x" * 5000, "type": "click"}, "item of an event"),
        ({"user": "1", "item": "2", "type": "a b"}, "type of an event"),
        ({"user": "1", "item": "2", "type": "click", "time": "soon"}, "time of an event"),
        ({"user": "1", "item": "2", "type": "click", "time": "1700000000"}, "time of an event"),
        ({"user": "1", "item": "2", "type": "click", "time": "1700000000000000"}, "time of an event"),  # microseconds
        ({str(n): "x" * 1000 for n in range(100)}, "without user"),
    ],
)
def test_what_is_no_event_is_put_aside_with_the_reason(client: redis.Redis, fields: Any, reason: str) -> None:
    bad = client.xadd("events", fields)
    good = publish(client, 1, 2, "click")
    group = Group(client, "a")
    assert taken(group) == [good]
    [(_, dead)] = client.xrange("events:dead")  # type: ignore[misc]
    assert dead[b"id"] == bad
    assert reason in dead[b"reason"].decode()
    assert len(dead[b"entry"]) < 5000
    assert refusal(client, bad.decode()) == dead[b"reason"].decode()  # type: ignore[union-attr]
    assert refusal(client, good) is None
    assert client.xpending("events", "features")["pending"] == 1  # type: ignore[index]


def test_one_rejection_is_found_among_the_newest_thousand(client: redis.Redis) -> None:
    for number in range(1001):
        client.xadd("events:dead", {"id": f"{NOW + number}-0", "reason": f"reason {number}", "entry": "x"})
    assert refusal(client, f"{NOW + 1000}-0") == "reason 1000"
    assert refusal(client, f"{NOW + 1}-0") == "reason 1"
    assert refusal(client, f"{NOW}-0") is None


def test_rejections_do_not_fill_redis(client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "DEAD_KEPT", 100)
    for _ in range(1000):
        client.xadd("events", {"x": "x"})
    group = Group(client, "a")
    for _ in range(2):
        assert group.read(1) == []
    assert 100 <= client.xlen("events:dead") < 400  # type: ignore[operator]


def test_events_that_somebody_deleted_do_not_stop_the_others(client: redis.Redis) -> None:
    ids = [publish(client, 1, 2, "click") for _ in range(3)]
    assert taken(Group(client, "a")) == ids
    client.xdel("events", ids[0])
    group = Group(client, "a")
    got = group.read(1)
    assert [each.id for each in got] == ids[1:]
    group.acknowledge(got)
    assert taken(group) == []
    assert client.xpending("events", "features")["pending"] == 0  # type: ignore[index]


def test_the_stream_is_trimmed_and_keeps_what_is_pending_or_undelivered(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "BATCH", 10)
    ids = [publish(client, 1, 2, "click") for _ in range(40)]
    a, b = Group(client, "a"), Group(client, "b")
    held = a.read(1)
    got = b.read(1)
    b.acknowledge(got)
    a.acknowledge(held[:4])
    b.acknowledge(b.read(1))  # tidies on the way
    assert [name.decode() for name, _ in client.xrange("events")] == ids[4:]  # type: ignore[union-attr]
    a.acknowledge(held[4:])
    while more := b.read(1):
        b.acknowledge(more)
    assert b.read(1) == []
    assert waiting(client) <= 1  # the last one delivered
    later = publish(client, 1, 2, "click")
    assert taken(b) == [later]


def test_an_event_that_was_added_twice_counts_once(client: redis.Redis) -> None:
    """A client that lost its connection before the answer adds the event again."""
    publish(client, 1, 2, "click")
    [(_, entry)] = client.xrange("events")  # type: ignore[misc]
    group = Group(client, "a")
    for _ in range(2):
        client.xadd("events", entry)
        got = group.read(1)
        group.apply(got, [[]] * len(got), 10)
        group.acknowledge(got)
    client.xadd("events", {key: value for key, value in entry.items() if key != b"key"})
    client.xadd("events", {key: value for key, value in entry.items() if key != b"key"})
    got = group.read(1)
    group.apply(got, [[]] * len(got), 10)
    assert client.hget("counts:{1}", "click") == b"3"


def test_an_event_that_is_added_again_within_ten_minutes_counts_once(client: redis.Redis) -> None:
    group = Group(client, "a")
    for seconds, key in ((0, "first"), (598, "second"), (599, "third"), (599.5, "first")):
        fields: Any = {"user": "1", "item": "2", "type": "click", "key": key}
        client.xadd("events", fields, id=f"{NOW + int(1000 * seconds)}-0")
        got = group.read(1)
        group.apply(got, [[]], 10)
        group.acknowledge(got)
    assert client.hget("counts:{1}", "click") == b"3"


def test_keys_of_applied_events_are_kept_only_while_they_may_come_again(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "AGAIN_SECONDS", 0)
    group = Group(client, "a")
    for _ in range(50):
        publish(client, 1, 2, "click")
        got = group.read(1)
        group.apply(got, [[]], 10)
        group.acknowledge(got)
    assert len({ms for _, ms in client.zrange("applied:{1}", 0, -1, withscores=True)}) <= 2
    assert client.hget("counts:{1}", "click") == b"50"
    assert 0 < client.ttl("applied:{1}") <= events.REMEMBER_SECONDS  # type: ignore[operator]


def test_the_group_is_made_again_when_redis_lost_it(client: redis.Redis) -> None:
    group = Group(client, "a")
    assert group.read(1) == []
    client.flushall()
    name = publish(client, 1, 2, "click")
    with pytest.raises(StoreError, match="NOGROUP"):
        group.read(1)
    group.reset()
    assert taken(group) == [name]


def test_whoever_published_can_see_when_it_is_done(client: redis.Redis) -> None:
    assert not settled(client, f"{NOW}-0")
    name = publish(client, 1, 2, "click")
    later = publish(client, 1, 2, "click")
    assert not settled(client, name)
    group = Group(client, "a")
    got = group.read(1)
    assert not settled(client, name)
    group.acknowledge(got[:1])
    assert settled(client, name)
    assert not settled(client, later)
    assert not settled_within(client, later, 0.05)
    group.acknowledge(got[1:])
    assert settled(client, later)
    name = publish(client, 1, 2, "click")
    timer = threading.Timer(0.1, lambda: group.acknowledge(group.read(1)))
    timer.start()
    assert settled_within(client, name, 10)
    timer.join()
