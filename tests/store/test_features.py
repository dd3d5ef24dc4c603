"""Packed rows: a round trip, many rows in one command, and an error for rows that do not fit the schema."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import redis

from redis_recsys.errors import StoreError
from redis_recsys.store import features

INT = np.iinfo(np.int32)


def rows(count: int, categorical: int, numeric: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(3)
    ids = random.integers(INT.min, INT.max, (count, categorical), np.int32)
    return ids, random.standard_normal((count, numeric)).astype(np.float32)


def test_a_row_is_the_ids_then_the_numbers_little_endian() -> None:
    packed = features.pack(np.array([[1, -2]], np.int32), np.array([[0.5]], np.float32))
    assert packed == [struct.pack("<iif", 1, -2, 0.5)]


@pytest.mark.parametrize("count", [0, 1, 5])
@pytest.mark.parametrize(("categorical", "numeric"), [(1, 0), (4, 3)])
def test_what_is_packed_is_unpacked(count: int, categorical: int, numeric: int) -> None:
    ids, numbers = rows(count, categorical, numeric)
    back = features.unpack(features.pack(ids, numbers), categorical, numeric)
    np.testing.assert_array_equal(back[0], ids)
    np.testing.assert_array_equal(back[1], numbers)
    assert (back[0].dtype, back[1].dtype, back[2].all()) == (np.int32, np.float32, True)


def test_odd_numbers_survive() -> None:
    ids, numbers = np.array([[INT.min, INT.max]], np.int32), np.array([[np.nan, -0.0, np.inf]], np.float32)
    back = features.unpack(features.pack(ids, numbers), 2, 3)
    assert back[0].tobytes() + back[1].tobytes() == ids.tobytes() + numbers.tobytes()


def test_slices_of_wider_arrays_are_packed_as_they_look() -> None:
    ids, numbers = rows(6, 4, 4)
    assert features.pack(ids[::2, 1:3], numbers[::2, ::2]) == features.pack(
        ids[::2, 1:3].copy(), numbers[::2, ::2].copy()
    )


def test_an_unknown_entity_is_zeros_and_marked() -> None:
    ids, numbers = rows(2, 3, 1)
    one, two = features.pack(ids, numbers)
    categorical, numeric, known = features.unpack([one, None, two], 3, 1)
    assert known.tolist() == [True, False, True]
    assert not categorical[1].any()
    assert not numeric[1].any()
    np.testing.assert_array_equal(categorical[2], ids[1])


def test_unpacked_rows_can_be_written_to() -> None:
    categorical, numeric, _ = features.unpack([bytes(8)], 1, 1)
    categorical[0, 0], numeric[0, 0] = 7, 0.5
    assert (categorical[0, 0], numeric[0, 0]) == (7, 0.5)


def test_a_row_of_another_width_is_refused() -> None:
    with pytest.raises(StoreError, match="do not have the 8 bytes of the schema"):
        features.unpack([bytes(8), bytes(12)], 1, 1)


@pytest.mark.parametrize("raw_ids", [list(range(-3, 2500)), ["ann", "1", "", "{x}", "a:b ü\n"]], ids=["int", "str"])
def test_what_is_written_is_read(client: redis.Redis, raw_ids: list[int] | list[str]) -> None:
    ids, numbers = rows(len(raw_ids), 2, 1)
    features.write_many(client, "7", "user", raw_ids, features.pack(ids, numbers))
    back = features.unpack(features.read(client, "7", "user", [*raw_ids, "nobody"]), 2, 1)
    np.testing.assert_array_equal(back[0][:-1], ids)
    np.testing.assert_array_equal(back[1][:-1], numbers)
    assert back[2].tolist() == [True] * len(raw_ids) + [False]
    assert features.unpack(features.read(client, "7", "item", raw_ids[:1]), 2, 1)[2].tolist() == [False]
    assert features.unpack(features.read(client, "8", "user", raw_ids[:1]), 2, 1)[2].tolist() == [False]


def test_the_keys_are_those_of_the_design(client: redis.Redis) -> None:
    features.write_many(client, "7", "user", [405], [b"row"])
    assert client.keys("*") == [b"features:7:user:{405}"]


def test_one_command_reads_many(client: redis.Redis) -> None:
    client.config_resetstat()
    with client.pipeline(transaction=False) as pipe:
        features.read(pipe, "7", "user", range(100))
        assert pipe.execute() == [[None] * 100]
    assert client.info("commandstats")["cmdstat_mget"]["calls"] == 1
