"""The bytes that HugeCTR's HPS reads and writes in Redis."""

from __future__ import annotations

import struct

import hiredis
import numpy as np
import pytest

from redis_recsys.parameter_server.layout import (
    ROWS,
    TIMES,
    arguments,
    as_bytes,
    full_name,
    hmget,
    partitions,
    redis_key,
)

BITS = (1 << 64) - 1


def mixed(x: int) -> int:
    """rrxmrrxmsx_0 with Python integers, one key at a time."""
    rotated = lambda x, n: (x >> n | x << (64 - n)) & BITS  # noqa: E731
    x &= BITS
    x ^= rotated(x, 25) ^ rotated(x, 50)
    x = x * 0xA24BAED4963EE407 & BITS
    x ^= rotated(x, 24) ^ rotated(x, 49)
    x = x * 0x9FB21C651E98DF25 & BITS
    return x ^ x >> 28


def test_keys_are_those_of_hps() -> None:
    name = full_name("dlrm", "sparse_embedding0")
    assert redis_key(name, 3, ROWS) == b"hps_et{hps_et.dlrm.sparse_embedding0/p3}v"
    assert redis_key(name, 3, TIMES) == b"hps_et{hps_et.dlrm.sparse_embedding0/p3}t"


@pytest.mark.parametrize("count", [1, 2, 8, 13])
def test_a_key_lies_where_the_mixer_says(count: int) -> None:
    keys = np.array([0, 1, 2, 25_419, 1 << 40, -1, -(1 << 63), (1 << 63) - 1])
    assert partitions(keys, count).tolist() == [mixed(key) % count for key in keys.tolist()]


def test_keys_spread_evenly() -> None:
    counts = np.bincount(partitions(np.arange(80_000), 8))
    assert counts.min() > 9_700
    assert counts.max() < 10_300


def test_fields_are_eight_little_endian_bytes_and_values_float32() -> None:
    assert as_bytes(np.array([1, 256, -2])) == [struct.pack("<q", key) for key in (1, 256, -2)]
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert as_bytes(rows) == [struct.pack("<3f", 0, 1, 2), struct.pack("<3f", 3, 4, 5)]
    assert as_bytes(rows[:, :1]) == [struct.pack("<f", 0), struct.pack("<f", 3)]


def test_the_hand_written_command_is_the_packed_one() -> None:
    keys = np.array([0, 13, 10, 2_573, -1])  # carriage returns and newlines among their bytes
    assert hmget(b"table", arguments(keys)) == hiredis.pack_command(("HMGET", b"table", *as_bytes(keys)))
