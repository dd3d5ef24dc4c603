"""The bundle, the output of training: one directory that every later step reads.

::

    bundle/
      manifest.json            version, trainer, metrics, SHA-256 of every file
      schema.yaml              the columns and their packing
      user_tower.onnx          categorical int32[N, Cu], numeric float32[N, Fu] -> embedding float32[N, D], unit length
      item_tower.onnx          the same for items
      ranker.onnx              user_categorical int32[B, Cu], user_numeric float32[B, Fu],
                               item_categorical int32[B, N, Ci], item_numeric float32[B, N, Fi]
                               -> probability float32[B, N]; the user side is computed once per user
      vocab/                   raw value -> id of every categorical column (vocabularies.py)
      user_features.parquet    every user: raw id and encoded features (entities.py)
      item_features.parquet    the same for items, with labels
      item_embeddings.parquet  ``embedding`` float32[D], row i belongs to item i + 1
      item_values.parquet      raw values of the items' categorical columns, for business rules (entities.py)
      popularity.parquet       ``item`` int32 and ``count`` int64 (clicks ever) of clicked items, most popular first;
                               where times are known, ``recent`` int64 (clicks among the newest tenth) comes first
      history.parquet          ``items`` list<int32> of each user, oldest first, in the order of user_features

History, popularity and the users' newest items are those after every row of the dataset, its test part included.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..dataset.entities import ITEM_VALUES, RAW_ID, Entities, read_entities, stream_entities, stream_parquet
from ..dataset.interactions import Part
from ..dataset.popularity import Clicks, Popular
from ..dataset.schema import SIDES, IdKind, Schema, Side
from ..dataset.user_history import History
from ..errors import BundleError, explain_validation
from ..utils.files import sha256

if TYPE_CHECKING:  # ONNX Runtime is slow to import, and most of a bundle is read without it
    from .models import ItemSide, Ranker, RankerHead, Tower

BUNDLE_VERSION = 2
READABLE = (1, BUNDLE_VERSION)  # bundles of version 1 do not hold the clicks of the test part
MANIFEST, SCHEMA, RANKER = "manifest.json", "schema.yaml", "ranker.onnx"
EMBEDDINGS, POPULARITY, HISTORY = "item_embeddings.parquet", "popularity.parquet", "history.parquet"


def tower_file(side: Side) -> str:
    """Name of the file with a side's tower."""
    return f"{side}_tower.onnx"


def features_file(side: Side) -> str:
    """Name of the file with a side's raw ids and features."""
    return f"{side}_features.parquet"


MODELS = (*map(tower_file, SIDES), RANKER)
TABLES = (*map(features_file, SIDES), EMBEDDINGS, POPULARITY, HISTORY)


class File(BaseModel):
    """Size and checksum of one file of a bundle."""

    model_config = ConfigDict(extra="forbid")
    bytes: int
    sha256: str


class Manifest(BaseModel):
    """``manifest.json``."""

    model_config = ConfigDict(extra="forbid")
    version: int
    trainer: str
    created: str
    embedding_dim: int
    users: int
    items: int
    metrics: dict[str, Any]
    learned_from: dict[Part, int] = Field({}, description="number of rows the models learned from, by part of the data")
    final: bool = Field(False, description="trained for production, on every row: there is nothing to evaluate it on")
    files: dict[str, File]


class Bundle:
    """Read access to a bundle directory; tables are read on first use, users are streamed."""

    def __init__(self, path: Path, verify: bool = True) -> None:
        """Open a bundle and, unless told otherwise, compare every file with its checksum.

        Raises:
            BundleError: no bundle, a newer version, a missing or an altered file.
        """
        self.path = Path(path)
        try:
            text = (self.path / MANIFEST).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise BundleError(f"no bundle at {self.path}: make one with 'recsys train'") from None
        try:
            document = json.loads(text)
            version = document.get("version")
            if version not in READABLE:
                raise BundleError(
                    f"{self.path} has bundle version {version}, this code reads 1 to {BUNDLE_VERSION}: "
                    "use the release that wrote it, or train again"
                )
            self.manifest = Manifest.model_validate(document)
        except ValidationError as error:
            raise BundleError(f"{self.path / 'manifest.json'}: {explain_validation(error)}") from error
        except (ValueError, AttributeError) as error:
            raise BundleError(f"{self.path / 'manifest.json'} is damaged: {error}") from error
        if verify:
            self._verify()
        self.schema = Schema.load(self.path / SCHEMA)

    def _verify(self) -> None:
        for name in (SCHEMA, *MODELS, *TABLES):
            if name not in self.manifest.files:
                raise BundleError(f"{self.path / 'manifest.json'} does not list {name}: train again")
        for name, expected in self.manifest.files.items():
            path = self.path / name
            if not path.is_file():
                raise BundleError(f"{path} is missing: copy the bundle again or train again")
            if path.stat().st_size != expected.bytes or sha256(path) != expected.sha256:
                raise BundleError(f"{path} does not match its checksum: copy the bundle again or train again")

    @property
    def fingerprint(self) -> str:
        """Hash that changes whenever any file of the bundle does."""
        return sha256(self.path / MANIFEST)[:16]

    @property
    def files(self) -> tuple[str, ...]:
        """Names of all files of the bundle, below its folder."""
        return MANIFEST, *self.manifest.files

    @property
    def made(self) -> int:
        """Time at which the bundle was made, epoch milliseconds."""
        return int(datetime.fromisoformat(self.manifest.created).timestamp() * 1000)

    @cached_property
    def id_kinds(self) -> dict[Side, IdKind]:
        """Whether the raw ids of users and of items are integers or texts."""
        return {side: self._id_kind(side) for side in SIDES}

    def _id_kind(self, side: Side) -> IdKind:
        table = next(stream_parquet(self.path / features_file(side), [RAW_ID], block=1), None)
        return "str" if table is not None and pa.types.is_string(table.column(RAW_ID).type) else "int"

    def raw_ids(self, side: Side) -> np.ndarray:
        """Raw ids of all users or items in table order, int64[n] or object[n] of str."""
        blocks = stream_parquet(self.path / features_file(side), [RAW_ID])
        parts = [block.column(RAW_ID).to_numpy(zero_copy_only=False) for block in blocks]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def user_tower(self, threads: int = 1) -> Tower:
        """The model that embeds users; ``threads`` may be used by one run."""
        from .models import Tower

        return Tower(self.path / tower_file("user"), threads)

    def ranker(self, threads: int = 1) -> Ranker:
        """The model that scores candidates by their features."""
        from .models import Ranker

        return Ranker(self.path / RANKER, threads)

    def ranker_head(self, threads: int = 1) -> RankerHead:
        """The model that scores candidates by what :meth:`item_side` computed of them."""
        from .models import RankerHead

        return RankerHead(self.path / RANKER, threads)

    def item_side(self, threads: int = 1) -> ItemSide:
        """Item side of the ranker, computed now for the whole catalogue."""
        from .models import ItemSide

        return ItemSide(self.path / RANKER, self.items.categorical, self.items.numeric, threads)

    @cached_property
    def items(self) -> Entities:
        """Every item, with labels."""
        return read_entities(self.path / features_file("item"), self.schema, "item", labels=True)

    @cached_property
    def item_embeddings(self) -> np.ndarray:
        """Item embeddings float32[items, D]; row i belongs to item i + 1."""
        parts = [
            batch.column("embedding").flatten().to_numpy(zero_copy_only=False)
            for batch in stream_parquet(self.path / EMBEDDINGS, ["embedding"])
        ]
        return np.concatenate(parts).reshape(-1, self.manifest.embedding_dim)

    def item_values(self, name: str) -> pa.ChunkedArray | None:
        """Raw values of a categorical column, one per item in table order: int64, text, or lists of these.

        None where the bundle lacks them: it comes from an earlier release, or from an import that did not know them.

        Raises:
            BundleError: the file is damaged.
        """
        if ITEM_VALUES not in self.manifest.files:
            return None
        try:
            with pq.ParquetFile(self.path / ITEM_VALUES) as file:
                return file.read([name]).column(name) if name in file.schema_arrow.names else None
        except (OSError, pa.ArrowException) as error:
            raise BundleError(f"{self.path / ITEM_VALUES} cannot be read: {' '.join(str(error).split())}") from error

    @cached_property
    def popularity(self) -> Popular:
        """All items, most popular first; empty where no clicks are known."""
        path = self.path / POPULARITY
        recent = [name for name in pq.read_schema(path).names if name == "recent"]
        blocks = list(stream_parquet(path, ["item", "count", *recent]))
        if not blocks:
            return Popular(np.empty(0, np.int32), np.empty(0))
        item, *columns = (column.to_numpy() for column in pa.Table.from_batches(blocks).columns)
        clicks = np.zeros((len(columns), self.manifest.items), np.int64)
        clicks[:, item - 1] = columns
        return Popular.of(Clicks(*clicks), self.raw_ids("item"))

    def users(self, block: int = 4096) -> Iterator[tuple[Entities, History]]:
        """All users in table order, ``block`` at a time: features and histories.

        In the history of a block, user 1 is the block's first row.
        """
        features = stream_entities(self.path / features_file("user"), self.schema, "user", block=block)
        histories = stream_parquet(self.path / HISTORY, ["items"], block)
        for users, batch in zip(features, histories, strict=True):
            lists = batch.column("items")
            lengths = np.diff(lists.offsets.to_numpy())
            starts = np.concatenate([[0, 0], np.cumsum(lengths)]).astype(np.int64)
            yield users, History(starts, lists.flatten().to_numpy())
