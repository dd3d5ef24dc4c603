"""A dataset: encoded interactions split into train, valid and test, with the tables of users and items.

::

    dataset/
      schema.yaml             the columns, with cardinalities, means and deviations
      manifest.json           version, how the split was made, counts
      vocab/<column>.parquet  column ``value``; row i is id i + 1 (id 0 is unknown)
      users.parquet           entities of the user side (see entities.py); row i is user i + 1
      items.parquet           the same for items
      train/ valid/ test/     parquet partitions: user int32, item int32, target float32, time int64 [, oracle float32]

Vocabularies, means and frequencies come from the training rows alone. The tables hold every user and item that
occurs anywhere, so that a cold user still has features.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq

from .entities import Entities, read_entities, stream_parquet
from .errors import DataError
from .schema import Schema

DATASET_VERSION = 1
Part = Literal["train", "valid", "test"]
PARTS: tuple[Part, ...] = ("train", "valid", "test")


def raw_folder(dataset: Path) -> Path:
    """Folder of the raw tables that a dataset is made of: beside it, under its name, so that no two share one."""
    place = Path(os.path.realpath(dataset))
    return place.parent / f"{place.name}.raw"


@dataclass(frozen=True)
class Rows:
    """Interactions.

    Attributes:
        user: int32[n], entity numbers.
        item: int32[n], entity numbers.
        target: float32[n], 1 for a click, 0 for none.
        time: int64[n].
        oracle: float32[n], the true click probability of synthetic rows, or None.
    """

    user: np.ndarray
    item: np.ndarray
    target: np.ndarray
    time: np.ndarray
    oracle: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.user)

    def positives(self) -> Rows:
        """Only the rows with a click."""
        return self.take(self.target > 0)

    def take(self, which: np.ndarray) -> Rows:
        """The rows at some positions, or where a mask is true."""
        oracle = None if self.oracle is None else self.oracle[which]
        return Rows(self.user[which], self.item[which], self.target[which], self.time[which], oracle)

    def __add__(self, other: Rows) -> Rows:
        oracle = None
        if self.oracle is not None and other.oracle is not None:
            oracle = np.concatenate([self.oracle, other.oracle])
        return Rows(
            np.concatenate([self.user, other.user]),
            np.concatenate([self.item, other.item]),
            np.concatenate([self.target, other.target]),
            np.concatenate([self.time, other.time]),
            oracle,
        )


class Dataset:
    """Read access to a dataset directory; tables are read on first use."""

    def __init__(self, path: Path) -> None:
        """Open a dataset.

        Raises:
            DataError: there is none, or it was written by a newer version.
        """
        self.path = Path(path)
        try:
            self.manifest: dict[str, Any] = json.loads((self.path / "manifest.json").read_text())
            version = self.manifest.get("version")
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(f"no dataset at {self.path}: make one with 'recsys data ...'") from None
        except (ValueError, AttributeError) as error:
            raise DataError(f"{self.path / 'manifest.json'} is damaged: {error}; make the dataset again") from error
        if version != DATASET_VERSION:
            raise DataError(f"{self.path} has dataset version {version}, this code reads {DATASET_VERSION}")
        self.schema = Schema.load(self.path / "schema.yaml")

    @cached_property
    def users(self) -> Entities:
        """Every user."""
        return read_entities(self.path / "users.parquet", self.schema, "user")

    @cached_property
    def items(self) -> Entities:
        """Every item, with labels."""
        return read_entities(self.path / "items.parquet", self.schema, "item", labels=True)

    def count(self, part: Part) -> int:
        """Number of rows of a part, from file footers alone."""
        return sum(pq.read_metadata(file).num_rows for file in self._files(part))

    def rows(self, part: Part) -> Rows:
        """All rows of a part (20 bytes each), in time order within partitions."""
        names = ["user", "item", "target", "time"] + (["oracle"] if self.schema.oracle else [])
        columns: dict[str, list[np.ndarray]] = {name: [] for name in names}
        for file in self._files(part):
            for batch in stream_parquet(file, names, 1 << 20):
                for name in names:
                    columns[name].append(batch.column(name).to_numpy(zero_copy_only=False))
        if not any(len(chunk) for chunk in columns["user"]):
            raise DataError(f"the {part} part of {self.path} is empty: use more rows or another split")
        return Rows(**{name: np.concatenate(chunks) for name, chunks in columns.items()})

    def _files(self, part: Part) -> list[Path]:
        return sorted((self.path / part).glob("*.parquet"))
