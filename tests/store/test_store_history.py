"""Histories: newest first, capped, of the catalogue's kind, and never older than a live event made them."""

from __future__ import annotations

import numpy as np
import pytest
import redis

from redis_recsys.store import history


def read(client: redis.Redis, users: list[int] | list[str], kind: str = "int") -> list[list[int | str]]:
    with client.pipeline(transaction=False) as pipe:
        history.read(pipe, users)
        return [items.tolist() for items in history.parse(pipe.execute(), kind)]


def test_histories_are_read_newest_first_in_the_order_of_the_users(client: redis.Redis) -> None:
    history.write_many(client, [7, -3, 8], [np.array([10, 2**63 - 1, -5]), np.array([], np.int64), [4]], cap=10)
    assert read(client, [8, 7, -3, 99]) == [[4], [-5, 2**63 - 1, 10], [], []]


def test_what_is_read_has_the_kind_of_the_catalogue(client: redis.Redis) -> None:
    history.write_many(client, ["ann", "a b"], [["x", "1", "ü"], ["é\n"]], cap=10)
    assert read(client, ["ann", "a b", "bob"], "str") == [["ü", "1", "x"], ["é\n"], []]
    for kind, dtype in (("int", np.int64), ("str", object)):
        assert [items.dtype for items in history.parse([[], [b"1"]], kind)] == [dtype, dtype]


@pytest.mark.parametrize("foreign", [b"abc", b"", b"1,2", b"9223372036854775808", b"[3]", b"\xff", b'"4"'])
def test_what_is_no_id_of_the_catalogue_is_left_out(foreign: bytes) -> None:
    parsed = history.parse([[b"5", foreign, b"6"], [b"7"]], "int")
    assert [items.tolist() for items in parsed] == [[5, 6], [7]]


def test_only_the_newest_are_kept(client: redis.Redis) -> None:
    history.write_many(client, [1, 2], [range(100), range(3)], cap=3)
    assert read(client, [1, 2]) == [[99, 98, 97], [2, 1, 0]]
    history.write_many(client, [2], [[0, 1, 2, 3]], cap=3)
    assert read(client, [2]) == [[3, 2, 1]]


def test_an_item_that_comes_again_counts_where_it_came_last(client: redis.Redis) -> None:
    history.write_many(client, [1], [[5, 6, 5, 7]], cap=10)
    assert read(client, [1]) == [[7, 5, 6]]


def test_a_deployment_leaves_live_events_the_newest(client: redis.Redis) -> None:
    client.zadd("history:{1}", {"5": 1_700_000_000_000, "6": 1_700_000_000_001})
    for _ in range(2):  # a second time changes nothing
        history.write_many(client, [1], [[5, 8, 9]], cap=10)
        assert read(client, [1]) == [[6, 5, 9, 8]]
    assert client.zscore("history:{1}", "5") == 1_700_000_000_000


def test_a_longer_history_of_a_later_bundle_goes_on_after_the_earlier_one(client: redis.Redis) -> None:
    history.write_many(client, [1], [range(10)], cap=4)
    history.write_many(client, [1], [range(12)], cap=4)
    assert read(client, [1]) == [[11, 10, 9, 8]]


def test_many_users_are_written_in_bounded_pipelines(client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "PIPELINE", 7)
    users = list(range(50))
    history.write_many(client, users, [range(user % 5) for user in users], cap=3)
    assert read(client, users) == [list(reversed(range(user % 5)))[:3] for user in users]
