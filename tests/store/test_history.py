"""Histories: deployed ones and live events are kept apart, both newest first and capped."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import redis

from redis_recsys.store import history

GEN = "7"
THEN = 1_700_000_000_000


def read(
    client: redis.Redis, users: list[int] | list[str], kind: str = "int", generation: str = GEN, legacy: bool = False
) -> list[tuple[list[int | str], list[int]]]:
    """Raw items of each user's live events, and numbers of the items in the deployed history."""
    with client.pipeline(transaction=False) as pipe:
        history.read(pipe, generation, users, legacy)
        deployed, *live = pipe.execute()
    both = zip(history.parse(live, kind), history.item_numbers(deployed), strict=True)
    return [(raw.tolist(), numbers.tolist()) for raw, numbers in both]


def deployed(client: redis.Redis, *users: int, generation: str = GEN) -> list[list[int]]:
    return [numbers for _, numbers in read(client, list(users), generation=generation)]


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def test_histories_are_read_newest_first_in_the_order_of_the_users(client: redis.Redis) -> None:
    history.write_many(client, GEN, [7, -3, 8], [ints(10, 2**31 - 1, 5), ints(), ints(4)], cap=10)
    client.zadd("history:{7}", {"30": THEN, "-5": THEN + 1})
    client.zadd("history:{99}", {str(2**63 - 1): THEN})
    assert read(client, [8, 7, -3, 99]) == [
        ([], [4]),
        ([-5, 30], [5, 2**31 - 1, 10]),
        ([], []),
        ([2**63 - 1], []),
    ]


def test_what_is_read_has_the_kind_of_the_catalogue(client: redis.Redis) -> None:
    for n, item in enumerate(["x", "1", "ü"]):
        client.zadd("history:{ann}", {item: THEN + n})
    client.zadd("history:{a b}", {"é\n": THEN})
    assert read(client, ["ann", "a b", "bob"], "str") == [(["ü", "1", "x"], []), (["é\n"], []), ([], [])]
    for kind, dtype in (("int", np.int64), ("str", object)):
        assert [items.dtype for items in history.parse([[], [b"1"]], kind)] == [dtype, dtype]


@pytest.mark.parametrize("foreign", [b"abc", b"", b"1,2", b"9223372036854775808", b"[3]", b"\xff", b'"4"'])
def test_what_is_no_id_of_the_catalogue_is_left_out(foreign: bytes) -> None:
    parsed = history.parse([[b"5", foreign, b"6"], [b"7"]], "int")
    assert [items.tolist() for items in parsed] == [[5, 6], [7]]


def test_a_text_that_is_not_utf_8_stops_nobody() -> None:
    [items] = history.parse([[b"x", b"\xff"]], "str")
    assert items[0] == "x"


def test_only_the_newest_are_kept(client: redis.Redis) -> None:
    history.write_many(client, GEN, [1, 2], [np.arange(1, 101), np.arange(1, 4)], cap=3)
    assert deployed(client, 1, 2) == [[100, 99, 98], [3, 2, 1]]


def test_an_item_that_comes_again_counts_where_it_came_last(client: redis.Redis) -> None:
    history.write_many(client, GEN, [1], [ints(5, 6, 5, 7)], cap=3)
    assert deployed(client, 1) == [[7, 5, 6]]


def test_a_deployment_touches_neither_live_events_nor_another_deployment(client: redis.Redis) -> None:
    client.zadd("history:{1}", {"5": THEN, "6": THEN + 1})
    history.write_many(client, "8", [1], [ints(3, 4)], cap=10)
    before = client.dump("history:{1}")
    for _ in range(2):  # a second time changes nothing
        history.write_many(client, GEN, [1], [ints(5, 8, 9)], cap=10)
        assert read(client, [1]) == [([6, 5], [9, 8, 5])]
    assert deployed(client, 1, generation="8") == [[4, 3]]
    assert client.dump("history:{1}") == before


def test_what_an_earlier_version_left_counts_for_its_own_generations_alone(client: redis.Redis) -> None:
    client.zadd("history:{1}", {"7": 1, "5": 2, "6": THEN})
    client.zadd("history:{2}", {"7": 1})
    client.set("history:{3}", "no sorted set")
    history.write_many(client, GEN, [1], [ints(3)], cap=10)
    assert read(client, [1, 2]) == [([6], [3]), ([], [])]
    assert read(client, [1, 2], generation="6", legacy=True) == [([6, 5, 7], []), ([7], [])]
    history.remove_positions(client)
    assert client.zrange("history:{1}", 0, -1) == [b"6"]
    assert not client.exists("history:{2}")
    assert deployed(client, 1) == [[3]]


def test_many_users_are_written_in_bounded_pipelines(client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    execute = redis.client.Pipeline.execute

    def counted(pipe: Any, *args: Any, **options: Any) -> Any:
        sent.append(sum(len(blob) // 4 for (_, _, blob), _ in pipe.command_stack))
        return execute(pipe, *args, **options)

    monkeypatch.setattr(history, "PIPELINE", 7)
    users = list(range(50))
    with monkeypatch.context() as counting:
        counting.setattr(redis.client.Pipeline, "execute", counted)
        history.write_many(client, GEN, users, [np.arange(1, 1 + user % 5) for user in users], cap=3)
    assert deployed(client, *users) == [list(range(user % 5, 0, -1))[:3] for user in users]
    assert sum(sent) == 10 * (1 + 2 + 3 + 3)
    assert all(7 <= items < 7 + 3 for items in sent[:-1])
    assert not client.exists(history.deployed_key(GEN, 0))  # nothing is stored of nobody's items
