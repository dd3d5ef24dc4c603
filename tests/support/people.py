"""Files as people have them, and the reader's results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from redis_recsys.data import tabular
from redis_recsys.dataset.encode import encode
from redis_recsys.dataset.interactions import Dataset
from redis_recsys.dataset.schema import Column, Schema
from redis_recsys.dataset.split import Split

USER: dict[str, Any] = {"name": "user", "side": "user", "kind": "categorical", "role": "id"}
ITEM: dict[str, Any] = {"name": "item", "side": "item", "kind": "categorical", "role": "id"}
AT: dict[str, Any] = {"name": "at", "side": "time", "kind": "numeric"}
BRAND: dict[str, Any] = {"name": "brand", "side": "item", "kind": "categorical"}
PRICE: dict[str, Any] = {"name": "price", "side": "item", "kind": "numeric"}
TAGS: dict[str, Any] = {"name": "tags", "side": "item", "kind": "multi-categorical", "max_length": 3}
BOUGHT: dict[str, Any] = {"name": "bought", "side": "target", "kind": "numeric"}


class People:
    """A folder of people's files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.raw = path / "raw"

    def write(self, name: str, content: str | bytes | dict[str, Any] | pl.DataFrame) -> Path:
        """Write a file: text in UTF-8, bytes as they are, columns as parquet."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, str):
            path.write_text(content)
        else:
            pl.DataFrame(content).write_parquet(path)
        return path

    def read(self, source: str, columns: Sequence[dict[str, Any]] = (), **more: Any) -> pl.DataFrame:
        """The raw interactions of a source; ``more``: ``source`` options as ``options``, and tables by name."""
        document: dict[str, Any] = {"name": "small", "columns": [USER, ITEM, *columns]}
        if "options" in more:
            document["source"] = more.pop("options")
        (self.path / "schema.yaml").write_text(yaml.safe_dump(document))
        tables = {name: self.path / table for name, table in more.items()}
        tabular.read(self.path / source, self.path / "schema.yaml", self.raw, **tables)
        return pl.read_parquet(self.raw / "interactions")

    def table(self, name: str) -> pl.DataFrame:
        """The raw table of users or items."""
        return pl.read_parquet(self.raw / f"{name}.parquet")

    def time(self) -> Column:
        """The time column of the raw schema."""
        column = Schema.load(self.raw / "schema.yaml").time
        assert column is not None
        return column

    def dataset(self, split: Split | None = None) -> Dataset:
        """The dataset of the raw tables."""
        encode(self.raw, self.path / "dataset", split or Split())
        return Dataset(self.path / "dataset")
