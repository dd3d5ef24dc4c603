"""A dataset: encoded interactions split into train, valid and test, with the tables of users and items.

::

    dataset/
      schema.yaml             the columns, with cardinalities, means and deviations
      manifest.json           version, settings of the split, counts
      vocab/<column>.parquet  column ``value``; row i is id i + 1 (id 0 is unknown); see vocabularies.py
      users.parquet           entities of the user side (see entities.py); row i is user i + 1
      items.parquet           the same for items
      item_values.parquet     raw values of the items' categorical columns, in the order of items.parquet (entities.py)
      train/ valid/ test/     parquet partitions: user int32, item int32, target float32, time int64 [, oracle float32]
      refit/                  schema.yaml, vocab/, users.parquet and items.parquet once more, from train and valid
      final/                  schema.yaml, vocab/, users.parquet and items.parquet once more, from the rows of all parts

Vocabularies, means, frequencies and the features of interactions come from the training rows alone, so that models
know nothing of the validation and test rows. The tables hold every user and item that occurs anywhere, so that a
cold user still has features. ``refit/`` is for models that learn from the train and valid parts: what is new in valid
has ids there, too, and users and items keep their numbers. ``final/`` is for models that learn from every row (``recsys
train --final``): there the newest users, items and values have ids, too, and so users and items have other numbers.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..errors import DataError
from .entities import Entities, count_rows, read_entities, stream_parquet
from .schema import Schema

DATASET_VERSION = 3
READABLE = (1, 2, DATASET_VERSION)  # datasets of versions 1 and 2 have no ``refit/``, those of version 1 no ``final/``
Part = Literal["train", "valid", "test"]
PARTS: tuple[Part, ...] = ("train", "valid", "test")
BEFORE_TEST: tuple[Part, ...] = ("train", "valid")
TYPES = {"user": np.int32, "item": np.int32, "target": np.float32, "time": np.int64, "oracle": np.float32}


def raw_folder(dataset: Path) -> Path:
    """Folder of the raw tables of a dataset: beside it, under its name, so that no two datasets share one."""
    path = Path(os.path.realpath(dataset))
    return path.parent / f"{path.name}.raw"


@dataclass(frozen=True)
class Rows:
    """Interactions.

    Attributes:
        user: int32[n], entity numbers.
        item: int32[n], entity numbers.
        target: float32[n], 1 for a click, 0 for none.
        time: int64[n], in the unit of the schema's time column; without one, steps, which only give an order.
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
            DataError: there is none, or a newer version wrote it.
        """
        self.path = Path(path)
        try:
            self.manifest: dict[str, Any] = json.loads((self.path / "manifest.json").read_text())
            version = self.manifest.get("version")
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(f"no dataset at {self.path}: make one with 'recsys data ...'") from None
        except (ValueError, AttributeError) as error:
            raise DataError(f"{self.path / 'manifest.json'} is damaged: {error}; make the dataset again") from error
        if version not in READABLE:
            raise DataError(f"{self.path} has dataset version {version}, this code reads 1 to {DATASET_VERSION}")
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
        return sum(map(count_rows, self._files(part)))

    def rows(self, *parts: Part) -> Rows:
        """All rows of some parts (20 bytes each), one part after the other, in time order within partitions.

        Raises:
            DataError: a part that should have rows is empty.
        """
        for part in parts:
            if not self.count(part) and self.manifest.get("rows", {}).get(part) != 0:
                raise DataError(f"the {part} part of {self.path} is empty: use more rows or another split")
        names = ["user", "item", "target", "time"] + (["oracle"] if self.schema.oracle else [])
        columns = {name: [np.empty(0, TYPES[name])] for name in names}
        for file in (file for part in parts for file in self._files(part)):
            for batch in stream_parquet(file, names, 1 << 20):
                for name in names:
                    columns[name].append(batch.column(name).to_numpy(zero_copy_only=False))
        return Rows(**{name: np.concatenate(chunks) for name, chunks in columns.items()})

    def overview(self) -> list[dict[str, Any]]:
        """Size, class balance and time range, one record per part.

        Returns:
            ``part``, ``rows``, ``clicks`` (share of rows with a click), ``users`` and ``items`` (distinct ones),
            ``new users`` and ``new items`` (of these, absent from the train part), ``first`` and ``last`` time, in the
            data's own unit. A part without rows has no record.
        """
        train = self.rows("train")
        train_ids = np.unique(train.user), np.unique(train.item)
        records = []
        for part in filter(self.count, PARTS):
            rows = train if part == "train" else self.rows(part)
            record: dict[str, Any] = {"part": part, "rows": len(rows), "clicks": float((rows.target > 0).mean())}
            for side, ids, in_train in zip(("users", "items"), (rows.user, rows.item), train_ids, strict=True):
                distinct = np.unique(ids)
                record |= {side: len(distinct), f"new {side}": int((~np.isin(distinct, in_train)).sum())}
            records.append(record | {"first": int(rows.time.min()), "last": int(rows.time.max())})
        return records

    @cached_property
    def refit(self) -> Dataset:
        """The same interactions, encoded for models that learn from those before the test; this one in old datasets."""
        return self if self.manifest["version"] < 3 else _Refit(self)

    @cached_property
    def final(self) -> Dataset:
        """The same interactions, encoded for models that learn from all of them.

        Raises:
            DataError: an earlier release made the dataset and wrote no such tables.
        """
        if self.manifest["version"] == 1:
            raise DataError(f"{self.path} was made by an earlier release, without what --final needs: make it again")
        return _Final(self)

    @property
    def fingerprint(self) -> str:
        """Hash of the manifest and of all file sizes, which differs for other data."""
        files = sorted(path for path in self.path.rglob("*") if path.is_file())
        sizes = [(path.relative_to(self.path).as_posix(), path.stat().st_size) for path in files]
        return hashlib.sha256(json.dumps([self.manifest, sizes]).encode()).hexdigest()

    def _files(self, part: Part) -> list[Path]:
        return sorted((self.path / part).glob("*.parquet"))


class _Refit(Dataset):
    """The tables of ``refit/``, and the interactions."""

    folder = "refit"

    def __init__(self, base: Dataset) -> None:
        self.path, self.manifest, self._base = base.path / self.folder, base.manifest, base
        self.schema = Schema.load(self.path / "schema.yaml")

    def _files(self, part: Part) -> list[Path]:
        return self._base._files(part)


class _Final(_Refit):
    """The tables of ``final/``, and the interactions with their numbers of users and items."""

    folder = "final"

    def rows(self, *parts: Part) -> Rows:
        """Rows as :meth:`Dataset.rows` gives them."""
        rows = self._base.rows(*parts)
        users = self.users.number_of(self._base.users.raw_ids)
        items = self.items.number_of(self._base.items.raw_ids)
        return replace(rows, user=users[rows.user - 1], item=items[rows.item - 1])
