"""Layout of rows in Redis: the keys and the partition function of HugeCTR's HPS, so that both can share tables.

A table has ``num_partitions`` hashes. ``hps_et{hps_et.<model>.<table>/p<i>}v`` maps a key, as 8 little-endian bytes, to
its row, as float32; its twin ending in ``t`` maps the key to the second of its last use. The braces keep both on one
node of a cluster. Two keys are our own: the one ending in ``u`` is the stream of the partition's online updates, and
the one ending in ``l``, only for partition 0, notes what was loaded.

Source: HugeCTR's Redis backend; the mixer is Pelle Evensen's rrxmrrxmsx_0, in the public domain.
"""

from __future__ import annotations

import numpy as np

from ..errors import DataError

PREFIX = "hps_et"
ROWS, TIMES, UPDATES, LOADED = b"v", b"t", b"u", b"l"
KEY_BYTES = 8


def full_name(model: str, table: str) -> str:
    """Name of a model's table in HPS, in Redis and in RocksDB."""
    return f"{PREFIX}.{model}.{table}"


def redis_key(name: str, partition: int, suffix: bytes) -> bytes:
    """Redis key of a partition's rows, times or updates.

    Example:
        >>> redis_key("hps_et.dlrm.sparse_embedding0", 3, ROWS)
        b'hps_et{hps_et.dlrm.sparse_embedding0/p3}v'
    """
    return f"{PREFIX}{{{name}/p{partition}}}".encode() + suffix


def partitions(keys: np.ndarray, count: int) -> np.ndarray:
    """Partition of each key.

    Args:
        keys: int64[n].
        count: number of partitions.

    Returns:
        int64[n], from 0 to count - 1.
    """
    x = keys.view(np.uint64)
    x = (x ^ _rotated(x, 25) ^ _rotated(x, 50)) * np.uint64(0xA24BAED4963EE407)
    x = (x ^ _rotated(x, 24) ^ _rotated(x, 49)) * np.uint64(0x9FB21C651E98DF25)
    x ^= x >> np.uint64(28)
    return (x % np.uint64(count)).astype(np.int64)


def check_row(name: str, dim: int, field: bytes, value: bytes, where: str) -> None:
    """Check that a row that another program wrote has the sizes of this table's rows.

    Args:
        name, dim: name of the table and dimension of its rows.
        field, value: the row's key and the row, as stored in the tier.
        where: the tier.

    Raises:
        DataError: one of them has another size.
    """
    again = "load the table anew ('recsys dlrm load --again')"
    if len(field) != KEY_BYTES:
        raise DataError(
            f"{where} has keys of {len(field)} bytes in {name}, not of {KEY_BYTES}: it was filled with supportlonglong "
            f"false, and no row would be found; {again}"
        )
    if len(value) != 4 * dim:
        raise DataError(
            f"{where} has rows of {len(value)} bytes in {name}, and embedding_vecsize_per_table says {dim} float32, "
            f"{4 * dim} bytes: correct it, or {again}"
        )


def newest(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct keys of int64[n], sorted, and the last position of each, whose row wins."""
    distinct, from_the_end = np.unique(keys[::-1], return_index=True)
    return distinct, len(keys) - 1 - from_the_end


def _rotated(x: np.ndarray, bits: int) -> np.ndarray:
    return (x >> np.uint64(bits)) | (x << np.uint64(64 - bits))


FIELD = np.dtype([("size", "S4"), ("key", "<i8"), ("end", "S2")])  # a key as an argument in the Redis protocol


def arguments(keys: np.ndarray) -> bytes:
    """Keys as arguments of a command in wire format (RESP): FIELD.itemsize bytes each.

    Uses NumPy, since packing thousands of arguments one by one takes a third as long as Redis' answer.

    Args:
        keys: int64[n].
    """
    fields = np.empty(len(keys), FIELD)
    fields["size"], fields["key"], fields["end"] = b"$8\r\n", keys, b"\r\n"
    return fields.tobytes()


def hmget(redis_key: bytes, fields: bytes) -> bytes:
    """``HMGET redis_key key ...`` in wire format.

    Args:
        redis_key: key of the hash.
        fields: keys from :func:`arguments`.
    """
    count = len(fields) // FIELD.itemsize
    return b"*%d\r\n$5\r\nHMGET\r\n$%d\r\n%b\r\n%b" % (count + 2, len(redis_key), redis_key, fields)


def as_bytes(array: np.ndarray) -> list[bytes]:
    """Each key of int64[n], or each row of float32[n, dim], as its little-endian bytes."""
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    width = array.dtype.itemsize * (array.shape[1] if array.ndim > 1 else 1)
    return array.view(f"V{width}").reshape(-1).tolist()
