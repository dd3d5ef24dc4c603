"""Histories checked by hand and against a loop that follows the definition word by word."""

from __future__ import annotations

import numpy as np
import pytest

from redis_recsys.dataset.interactions import Rows
from redis_recsys.dataset.schema import Column, Schema
from redis_recsys.dataset.user_history import History, padded

USERS = 12


def rows_of(*rows: tuple[int, int, int, int]) -> Rows:
    """Rows of (user, item, clicked, time)."""
    user, item, target, time = np.array(rows, np.int64).reshape(-1, 4).T
    return Rows(user.astype(np.int32), item.astype(np.int32), target.astype(np.float32), time)


@pytest.fixture
def rows() -> Rows:
    """Random rows in random order; many share a time; users 1 and 12 do nothing, user 2 never clicks."""
    random = np.random.default_rng(1)
    rows = [
        (user, item, int(user != 2 and click), time)
        for user, item, click, time in zip(
            random.integers(2, USERS, 300),
            random.integers(1, 50, 300),
            random.integers(0, 2, 300),
            random.integers(0, 40, 300),
            strict=True,
        )
    ]
    return rows_of(*rows)


def clicks_of(rows: Rows, user: int) -> list[int]:
    """Positions of a user's clicks, oldest first, equal times in the order of the rows."""
    mine = [n for n in range(len(rows)) if rows.user[n] == user and rows.target[n] > 0]
    return sorted(mine, key=lambda n: rows.time[n])


def test_a_history_holds_clicks_oldest_first() -> None:
    history = History.of(rows_of((2, 5, 1, 30), (1, 7, 1, 20), (2, 6, 0, 10), (2, 9, 1, 10)), users=3)
    assert [history[user].tolist() for user in range(4)] == [[], [7], [9, 5], []]


def test_recent_items_come_newest_first_padded_with_zero() -> None:
    history = History.of(rows_of((1, 5, 1, 1), (1, 6, 1, 2), (1, 7, 1, 3), (2, 8, 1, 1)), users=3)
    found = history.recent(np.array([1, 2, 3, 0]), 2)
    assert found.tolist() == [[7, 6], [8, 0], [0, 0], [0, 0]]
    assert found.dtype == np.int32


def test_histories_equal_those_of_a_loop(rows: Rows) -> None:
    history = History.of(rows, USERS)
    for user in range(USERS + 1):
        assert history[user].tolist() == rows.item[clicks_of(rows, user)].tolist()
        assert history.recent(np.array([user]), 4)[0].tolist() == (history[user][::-1].tolist() + [0] * 4)[:4]


def test_a_row_sees_only_what_its_user_clicked_before(rows: Rows) -> None:
    history, ends = History.of(rows, USERS), History.ends_before(rows)
    found = history.recent(rows.user, 5, ends)
    for n in range(len(rows)):
        before = [m for m in clicks_of(rows, rows.user[n]) if (rows.time[m], m) < (rows.time[n], n)]
        assert found[n].tolist() == (rows.item[before][::-1].tolist() + [0] * 5)[:5]


def test_without_any_click_histories_are_empty() -> None:
    rows = rows_of((1, 5, 0, 1), (2, 6, 0, 2))
    history = History.of(rows, 2)
    assert history.recent(np.array([1, 2]), 3).tolist() == [[0, 0, 0], [0, 0, 0]]
    assert History.ends_before(rows).tolist() == [0, 0]


def test_lists_of_different_lengths_become_rows() -> None:
    rows = padded(np.array([5, 6, 7], np.int32), np.array([2, 0, 1]))
    assert rows.tolist() == [[5, 6], [0, 0], [7, 0]]
    assert padded(np.zeros(0, np.int32), np.zeros(0, np.int64)).shape == (0, 0)


def test_some_users_histories_are_the_same_under_their_new_numbers(rows: Rows) -> None:
    history = History.of(rows, USERS)
    some = history.of_users(4, 6)
    assert [some[user].tolist() for user in range(4)] == [[], *(history[user].tolist() for user in (4, 5, 6))]


def test_the_newest_items_that_the_models_know_fill_the_history_column(rows: Rows) -> None:
    columns = [
        Column(name="user", side="user", kind="categorical", role="id", cardinality=USERS + 1),
        Column(name="recent", side="user", kind="multi-categorical", role="history", max_length=3, cardinality=30),
        Column(name="item", side="item", kind="categorical", role="id", cardinality=30),
    ]
    schema, history = Schema(name="some", columns=columns), History.of(rows, USERS)
    row = np.full((USERS, schema.categorical_width("user")), 99, np.int32)
    history.fill(row, schema)
    for user in range(1, USERS + 1):
        newest = [item if item < 30 else 0 for item in history[user][::-1].tolist()] + [0] * 3
        assert row[user - 1].tolist() == [99, *newest[:3]]
