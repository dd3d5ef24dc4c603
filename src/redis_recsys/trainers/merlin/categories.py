"""Vocabularies that NVTabular's Categorify writes: plain parquet, whereas a workflow is a pickle."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ...errors import BundleError


@dataclass(frozen=True)
class Categories:
    """Values and ids of one encoded column.

    Attributes:
        values: raw values; position i has the id ``first + i``.
        first: first id: 3 since NVTabular 23.6; 1 before, where 0 stands for all reserved values.
        null, oov: ids of a missing value and of one unseen in training.
        null_seen: whether training saw missing values.
        counts: int64, training rows with each value; None if the file has no counts.
    """

    values: pl.Series
    first: int
    null: int
    oov: int
    null_seen: bool
    counts: np.ndarray | None

    @classmethod
    def read(cls, folder: Path, name: str) -> Categories:
        """Read ``unique.NAME.parquet`` and, from newer releases, ``meta.NAME.parquet``.

        Raises:
            BundleError: a file is missing or was not written by NVTabular.
        """
        path = folder / f"unique.{name}.parquet"
        try:
            frame = pl.read_parquet(path)
            meta = folder / f"meta.{name}.parquet"
            rows = {row["kind"]: row for row in pl.read_parquet(meta).iter_rows(named=True)} if meta.exists() else None
            values = frame[name]
        except FileNotFoundError:
            raise BundleError(
                f"{path} is missing: copy the folder 'categories' that NVTabular wrote beside the models"
            ) from None
        except (pl.exceptions.PolarsError, OSError) as error:
            raise BundleError(
                f"{path} is not what NVTabular's Categorify writes: {str(error).splitlines()[0]}"
            ) from error
        sizes = f"{name}_size"
        counts = frame[sizes].fill_null(0).to_numpy() if sizes in frame.columns else None
        if rows is None:  # before 23.6, the first row is that of null
            return cls(settled(values.slice(1)), 1, 0, 0, False, None if counts is None else counts[1:])
        offsets = {kind: int(rows[kind]["offset"]) for kind in rows}
        return cls(
            settled(values),
            offsets["unique"],
            offsets["null"],
            offsets["oov"],
            bool(rows["null"]["num_observed"]),
            counts,
        )

    @property
    def size(self) -> int:
        """Number of ids, the reserved ones included."""
        return self.first + len(self.values)

    def ids(self, values: pl.Series) -> np.ndarray:
        """Ids int32[n] of raw values; unknown values are out-of-vocabulary."""
        vocabulary = self.values
        if vocabulary.dtype != values.dtype:
            common = pl.Float64 if vocabulary.dtype.is_numeric() and values.dtype.is_numeric() else pl.String
            vocabulary, values = vocabulary.cast(common), values.cast(common)
        table = vocabulary.to_frame("value").with_row_index("id", self.first)
        ids = values.to_frame("value").join(table, on="value", how="left", maintain_order="left")["id"]
        return ids.fill_null(self.oov).cast(pl.Int32).to_numpy()

    @property
    def missing(self) -> int:
        """Id of an unknown or missing value: null's if training has seen nulls, else out-of-vocabulary."""
        return self.null if self.null_seen else self.oov


def settled(values: pl.Series) -> pl.Series:
    """Convert floats back to integers where pandas had cast them because of nulls."""
    if values.dtype.is_float() and values.is_finite().all() and (values == values.round()).all():
        return values.cast(pl.Int64)
    return values


@dataclass(frozen=True)
class SavedSchema:
    """Column properties from a model's own ``.merlin/input_schema.json``; empty if there is none.

    Attributes:
        vocabularies: vocabulary names by column; columns encoded together share one.
        continuous: numeric columns, which may be stored as integers.
    """

    vocabularies: dict[str, str]
    continuous: set[str]

    @classmethod
    def read(cls, models: Iterable[Path]) -> SavedSchema:
        """Read the schemas in the models' folders."""
        schema = cls({}, set())
        for model in models:
            path = model / ".merlin" / "input_schema.json"
            document: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
            for feature in document.get("feature", []):
                annotation = feature.get("annotation", {})
                if "continuous" in annotation.get("tag", []):
                    schema.continuous.add(feature["name"])
                for extra in annotation.get("extraMetadata", []):
                    if extra.get("cat_path"):
                        name = extra["cat_path"].replace("\\", "/").rsplit("/", 1)[-1]
                        schema.vocabularies[feature["name"]] = name.removeprefix("unique.").removesuffix(".parquet")
        return schema
