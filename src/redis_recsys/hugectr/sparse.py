"""HugeCTR's sparse model folders: one per embedding table, with the files ``key`` and ``emb_vector``.

``key`` holds little-endian int64 keys, ``emb_vector`` the float32 rows in the same order, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..utils.files import written_aside
from ..utils.output_kinds import TABLE

KEY, VECTOR = "key", "emb_vector"


def write(folder: Path, blocks: Iterable[tuple[np.ndarray, np.ndarray]]) -> None:
    """Write a table, whole or not at all.

    Args:
        folder: folder of the table; replaced if it exists.
        blocks: (keys int64[n], rows float32[n, dim]), one after the other, so that memory stays bounded.

    Raises:
        DataError: a block has fewer keys than rows or more, or the folder cannot be written.
    """
    with (
        written_aside(folder, TABLE) as aside,
        (aside / KEY).open("wb") as keys,
        (aside / VECTOR).open("wb") as vectors,
    ):
        for block, rows in blocks:
            if len(block) != len(rows):
                raise DataError(f"{len(block)} keys and {len(rows)} rows for {folder}")
            keys.write(np.ascontiguousarray(block, "<i8").tobytes())
            vectors.write(np.ascontiguousarray(rows, "<f4").tobytes())


class SparseModel:
    """A table on disk, mapped into memory and read only when needed.

    Attributes:
        keys: int64[n].
        rows: float32[n, dim].
    """

    def __init__(self, folder: Path, dim: int) -> None:
        """
        Args:
            folder: folder with ``key`` and ``emb_vector``.
            dim: width of the rows.

        Raises:
            DataError: a file is missing, or the sizes of the two do not match.
        """
        self.folder = folder
        try:
            key_bytes, vector_bytes = ((folder / name).stat().st_size for name in (KEY, VECTOR))
        except OSError as error:
            raise DataError(f"cannot read {error.filename}: {error.strerror}") from None
        count, remainder = divmod(key_bytes, 8)
        if remainder:
            raise DataError(f"{folder / KEY} has {key_bytes:,} bytes, which is no whole number of 8-byte keys")
        if vector_bytes != count * dim * 4:
            raise DataError(
                f"{folder / VECTOR} has {vector_bytes:,} bytes, and {count:,} keys of {dim} float32 need "
                f"{count * dim * 4:,}: it is truncated, or the vectors have another size"
            )
        self.keys: np.ndarray = np.zeros(0, np.int64)
        self.rows: np.ndarray = np.zeros((0, dim), np.float32)
        if count:  # an empty file cannot be mapped
            self.keys = np.memmap(folder / KEY, "<i8", "r", shape=(count,))
            self.rows = np.memmap(folder / VECTOR, "<f4", "r", shape=(count, dim))

    def __len__(self) -> int:
        return len(self.keys)

    def blocks(self, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(keys int64[n], rows float32[n, dim]) of at most ``size`` rows each, in the order of the files."""
        for start in range(0, len(self), size):
            yield np.array(self.keys[start : start + size]), np.array(self.rows[start : start + size])
