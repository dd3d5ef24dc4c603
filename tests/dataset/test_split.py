"""Division of rows into train, valid and test."""

from __future__ import annotations

import polars as pl
import pytest
from pydantic import ValidationError

from redis_recsys.dataset.split import Split, check_parts
from redis_recsys.errors import DataError


def parts(split: Split, rows: dict[str, list[int]], time: str | None = "time") -> list[int]:
    frame = pl.DataFrame(rows)
    cuts = split.cuts(None if time is None else frame[time])
    return frame.select(p=split.part(len(frame), "user", time, cuts))["p"].to_list()


def test_a_split_by_time_gives_the_newest_rows_to_test_whatever_their_order() -> None:
    assert parts(Split(by="time"), {"time": [90, 10, 80, 20, 70, 30, 60, 40, 50, 0]}) == [2, 0, 1, 0, 0, 0, 0, 0, 0, 0]


def test_a_split_by_time_keeps_rows_of_one_moment_together() -> None:
    assert (
        parts(Split(by="time", valid=0.2, test=0.2), {"time": [1, 1, 1, 5, 5, 5, 9, 9, 9, 9]})
        == [0, 0, 0, 1, 1, 1] + [2] * 4
    )


def test_a_split_by_time_without_a_test_part_gives_the_newest_rows_to_valid() -> None:
    split = Split(by="time", valid=0.2, test=0)
    assert parts(split, {"time": [0, 10, 20, 30, 40, 50, 60, 70, 80, 90]}) == [0] * 8 + [1] * 2
    assert check_parts([8, 2, 0], split) == {"train": 8, "valid": 2, "test": 0}


def test_a_split_by_user_takes_the_newest_rows_of_each_user() -> None:
    rows = {"user": [1, 2] * 10, "time": list(range(20))}
    assert parts(Split(by="user"), rows) == [0] * 16 + [1, 1, 2, 2]


def test_a_split_by_user_leaves_a_user_with_one_row_to_training() -> None:
    assert parts(Split(by="user"), {"user": [1, 2, 3], "time": [1, 2, 3]}) == [0, 0, 0]


def test_a_split_by_user_without_time_goes_by_the_order_of_rows() -> None:
    assert parts(Split(by="user"), {"user": [7] * 10}, time=None) == [0] * 8 + [1, 2]


def test_a_split_by_last_leaves_out_each_users_newest_row_and_validates_on_the_one_before() -> None:
    rows = {"user": [1, 2, 1, 2, 1, 2, 1], "time": [4, 1, 3, 2, 2, 3, 1]}
    assert parts(Split(by="last"), rows) == [2, 0, 1, 1, 0, 2, 0]


def test_a_split_by_last_counts_rows_of_one_moment_in_the_order_of_the_file() -> None:
    assert parts(Split(by="last"), {"user": [1] * 4, "time": [5] * 4}) == [0, 0, 1, 2]


def test_a_split_by_last_without_time_goes_by_the_order_of_rows_and_takes_as_many_as_it_is_told() -> None:
    split = Split(by="last", valid=1, test=2)
    assert parts(split, {"user": [7, 8, 7, 7, 8, 7, 7, 8, 8]}, time=None) == [0, 0, 0, 1, 1, 2, 2, 2, 2]


def test_users_with_too_few_rows_for_a_split_by_last_train_with_all_of_them() -> None:
    assert parts(Split(by="last"), {"user": [1, 1, 2, 2, 2, 3], "time": [1, 2, 1, 2, 3, 1]}) == [0, 0, 0, 1, 2, 0]


def test_a_split_by_last_without_a_test_part_validates_on_the_last_row() -> None:
    assert parts(Split(by="last", test=0), {"user": [1, 1, 1], "time": [1, 2, 3]}) == [0, 0, 1]


def test_a_random_split_repeats_with_its_seed_and_changes_with_another() -> None:
    rows = {"user": [1] * 1000}
    first = parts(Split(by="random", seed=1), rows, time=None)
    assert first == parts(Split(by="random", seed=1), rows, time=None)
    assert first != parts(Split(by="random", seed=2), rows, time=None)


def test_a_random_split_gives_about_the_shares_asked_for() -> None:
    found = parts(Split(by="random", valid=0.2, test=0.3), {"user": [1] * 10_000}, time=None)
    assert [round(found.count(part) / 10_000, 1) for part in (0, 1, 2)] == [0.5, 0.2, 0.3]


def test_a_split_by_time_without_a_time_column_says_which_splits_work() -> None:
    with pytest.raises(DataError, match=r"no time column.*'random'.*'user'"):
        Split(by="time").cuts(None)


def test_an_empty_part_is_named() -> None:
    with pytest.raises(DataError, match="the valid part of the split by 'time' is empty"):
        check_parts([3, 0, 1], Split())


@pytest.mark.parametrize(
    "wrong",
    [
        {"valid": 0},
        {"test": 1.5},
        {"valid": 0.5, "test": 0.5},
        {"by": "week"},
        {"vaild": 0.1},
        {"by": "last", "test": 0.1},
        {"by": "last", "valid": 0},
    ],
)
def test_impossible_splits_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Split.model_validate(wrong)
