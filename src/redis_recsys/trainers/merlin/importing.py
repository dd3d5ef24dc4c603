"""Import of the public notebooks' exports as a bundle, for models that were trained long ago.

The import reads the SavedModels of the query tower and of the DLRM (only in the Merlin environment), the feature
tables, the item embeddings, and NVTabular's categories folder. An NVTabular workflow is a pickle, which runs any code
in it (CVE-2025-33214), so none is ever loaded; the categories hold the same vocabularies as plain parquet.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from pydantic import ValidationError

from ...bundle.bundle import Bundle, features_file, tower_file
from ...bundle.models import Tower
from ...bundle.writer import finish, write_tables, writing_bundle
from ...config import MerlinSettings
from ...dataset.entities import ITEM_VALUES, Entities, write_entities
from ...dataset.popularity import Clicks
from ...dataset.schema import SIDES, Column, Schema, Side
from ...dataset.user_history import History
from ...dataset.vocabularies import write_vocabulary
from ...errors import BundleError, explain_validation
from ...utils.files import claimed, disk_error, keep_inputs
from ...utils.output_kinds import BUNDLE
from ...utils.progress import console
from .categories import Categories, SavedSchema, settled
from .conversion import Converted, write_models
from .wiring import Wire, own_ids
from .worker_job import piece
from .worker_process import Worker

PIECES = {
    "query_tower": "write it with model.query_encoder.save('query_tower')",
    "dlrm": "write it with dlrm.save('dlrm')",
    "user_features.parquet": "write it with unique_rows_by_features(train, Tags.USER, Tags.USER_ID)",
    "item_features.parquet": "write it with unique_rows_by_features(train, Tags.ITEM, Tags.ITEM_ID)",
    "item_embeddings.parquet": "write it with model.candidate_embeddings(items, index=Tags.ITEM_ID)",
    "categories": "copy it from the out_path of NVTabular's Categorify",
}
MODELS = ("query_tower", "dlrm")
SAME = 1e-4  # relative difference between embeddings of one tower that rounding explains


def import_export(export: Path, target: Path, settings: MerlinSettings) -> Bundle:
    """Make a bundle from an export.

    Args:
        export: folder with the files of ``PIECES``, and optionally ``candidate_tower``.
        target: folder of the bundle, written atomically.
        settings: settings of the Merlin environment.

    Raises:
        BundleError: a piece is missing, or two pieces do not fit together.
        ConfigError: there is no Merlin environment.
        DataError: the bundle must not be written to ``target``, see :func:`files.claimed`.
        TrainingError: TensorFlow cannot load a model.
    """
    check_pieces(export)
    keep_inputs(target, export)
    with claimed(target, BUNDLE) as destination:
        try:
            with tempfile.TemporaryDirectory(dir=destination.parent, prefix=f".{destination.name}.merlin-") as scratch:
                with Worker(settings, "convert", export, Path(scratch)) as worker:
                    worker.finish()
                assemble(export, Path(scratch), target)
        except OSError as error:
            raise disk_error(error, target) from error
    return Bundle(target, verify=False)


def check_pieces(export: Path) -> None:
    """Check that an export is complete.

    Raises:
        BundleError: a piece is missing; the message says how to make the first one.
    """
    for name, advice in PIECES.items():
        path = piece(export, name)
        if not (path / "saved_model.pb" if name in MODELS else path).exists():
            raise BundleError(f"{export} has no {name}: {advice}")


@dataclass(frozen=True)
class _Vocabulary:
    """Categories of a column, and the mapping between Merlin's ids and the bundle's.

    The bundle's id 0 is Merlin's out-of-vocabulary id. If training saw missing values, which then have a learnt vector
    of their own, the bundle's vocabulary begins with null.
    """

    categories: Categories

    @property
    def values(self) -> pl.Series:
        """Raw values; row i has the bundle's id i + 1."""
        own = self.categories.values.alias("value")
        return pl.concat([pl.Series("value", [None], dtype=own.dtype), own]) if self.categories.null_seen else own

    @property
    def ids(self) -> np.ndarray:
        """Merlin's ids int32[values + 1] by the bundle's id."""
        c = self.categories
        null = [c.null] if c.null_seen else []
        return np.concatenate([[c.oov], null, np.arange(c.first, c.size)]).astype(np.int32)

    def packed(self, merlin: np.ndarray) -> np.ndarray:
        """Convert Merlin's ids int[n] to the bundle's int32[n]; reserved ones become 0."""
        return np.maximum(own_ids(self.ids, merlin), 0)


@dataclass(frozen=True)
class FeatureTable:
    """An exported feature table.

    Attributes:
        side: user or item.
        frame: rows of the table.
        id: name of the id column.
        columns: columns that the models read, the id first.
    """

    side: Side
    frame: pl.DataFrame
    id: str
    columns: list[str]


def assemble(export: Path, onnx: Path, target: Path) -> None:
    """Make the bundle from an export and its converted models.

    Args:
        export: same as in :func:`import_export`.
        onnx: folder written by the worker.
        target: folder of the bundle.

    Raises:
        BundleError: two pieces do not fit together.
    """
    query, dlrm = Converted.read(onnx, "query_tower"), Converted.read(onnx, "dlrm")
    candidate = Converted.read(onnx, "candidate_tower") if (onnx / "candidate_tower.onnx").exists() else None
    models = [query, dlrm, *([candidate] if candidate else [])]
    reads = list(dict.fromkeys(name for model in models for name in model.inputs))
    tables = {side: read_table(export, side, reads) for side in SIDES}
    saved = SavedSchema.read(piece(export, name) for name in MODELS)
    numeric = {name for model in models for name, values in model.inputs.items() if values.dtype.kind == "f"}
    vocabularies = _vocabularies(export, tables, saved.vocabularies, numeric | saved.continuous)
    schema = _schema(tables, vocabularies)
    wires = {}
    for side in SIDES:
        for column in schema.features(side):
            if column.kind == "numeric":
                wires[column.name] = Wire(side, schema.numeric(side).index(column))
            else:
                wires[column.name] = Wire(side, schema.slots(column).start, vocabularies[column.name].ids)
    entities = {side: _entities(tables[side], schema, vocabularies) for side in SIDES}
    order = {side: np.argsort(entities[side].categorical[:, 0], kind="stable") for side in SIDES}
    entities = {side: entities[side].rows(order[side]) for side in SIDES}
    users, items = entities["user"], entities["item"]
    item_ids = items.categorical[:, 0]
    vectors = _embeddings(export, tables["item"], query.output.shape[1])[order["item"]]
    if candidate is None:
        vectors = _by_id(vectors, item_ids, schema.id_column("item").cardinality or 1)
    else:
        _same(vectors, candidate.run(wires, items), export)
    with writing_bundle(target) as folder:
        differences = write_models(folder, schema, wires, query, candidate, dlrm, vectors)
        for side in SIDES:
            for column in schema.categorical(side):
                write_vocabulary(folder, schema, column, vocabularies[column.name].values.to_arrow())
            write_entities(folder / features_file(side), schema, side, entities[side])
        raw_values = _raw_values(tables["item"], schema, vocabularies)
        raw_values.select(pl.all().gather(order["item"])).write_parquet(folder / ITEM_VALUES)
        embeddings = Tower(folder / tower_file("item")).embed(items.categorical, items.numeric)
        popularity = _popularity(vocabularies[tables["item"].id], item_ids)
        empty = History(np.zeros(len(users) + 2, np.int64), np.empty(0, np.int32))  # exports have no clicks by user
        write_tables(folder, embeddings, Clicks(popularity), empty, len(users))
        metrics = {"onnx_difference": differences}
        finish(folder, schema, "merlin", metrics, embeddings.shape[1], len(users), len(items))


def read_table(export: Path, side: Side, reads: list[str]) -> FeatureTable:
    """Read the feature table of a side; ``reads`` are the columns that the models read.

    Raises:
        BundleError: it is not a parquet file, has no id, or has nulls or values that are not encoded.
    """
    path = piece(export, f"{side}_features.parquet")
    frame = _parquet(path)
    if not len(frame):
        raise BundleError(f"{path} holds no rows")
    keys = [name for name in frame.columns if f"{name}_raw" in frame.columns]
    if len(keys) > 1:  # raw values of features, for business rules
        keys = [name for name in keys if name in (f"{side}_id", side)]
    if not keys and f"{side}_id" in frame.columns:
        keys = [f"{side}_id"]
    if len(keys) != 1:
        raise BundleError(
            f"{path} needs one id column with its raw ids beside it, such as {side}_id and {side}_id_raw: "
            f"it has {', '.join(frame.columns)}"
        )
    columns = [keys[0], *(name for name in frame.columns if name in reads and name != keys[0])]
    for name in columns:
        dtype, nulls = frame[name].dtype, frame[name].null_count()
        if not dtype.is_numeric():
            raise BundleError(f"column {name!r} of {path} is {dtype}: encoded integers or numbers are expected")
        if nulls:
            raise BundleError(f"column {name!r} of {path} has {nulls:,} nulls: export the encoded features")
    return FeatureTable(side, frame, keys[0], columns)


def _vocabularies(
    export: Path, tables: dict[Side, FeatureTable], names: dict[str, str], numeric: set[str]
) -> dict[str, _Vocabulary]:
    """Read the vocabulary of every encoded column, checked against the tables.

    Args:
        export: folder that contains ``categories``.
        tables: feature tables by side.
        names: vocabulary names of columns whose vocabulary has another name.
        numeric: numeric columns, whatever their type in the tables.
    """
    folder = export / "categories"
    if (folder / "categories").is_dir():  # NVTabular adds the folder below the out_path
        folder = folder / "categories"
    vocabularies = {}
    for side, table in tables.items():
        for name in table.columns:
            if table.frame[name].dtype.is_float() or name in numeric:
                continue
            categories = Categories.read(folder, names.get(name, name))
            ids = table.frame[name].to_numpy()
            if ids.min() < 0 or ids.max() >= categories.size:
                wrong = ids.min() if ids.min() < 0 else ids.max()
                raise BundleError(
                    f"column {name!r} of {side}_features.parquet has the id {wrong}, but {folder} knows ids up to "
                    f"{categories.size - 1}: they are of different runs"
                )
            vocabularies[name] = _Vocabulary(categories)
    return vocabularies


def _schema(tables: dict[Side, FeatureTable], vocabularies: dict[str, _Vocabulary]) -> Schema:
    try:
        return Schema(name="merlin", columns=_columns(tables, vocabularies))
    except ValidationError as error:
        raise BundleError(f"the feature tables make no schema: {explain_validation(error)}") from error


def _columns(tables: dict[Side, FeatureTable], vocabularies: dict[str, _Vocabulary]) -> list[Column]:
    columns = []
    for side, table in tables.items():
        if table.id not in vocabularies:
            raise BundleError(
                f"column {table.id!r} of {side}_features.parquet is not an integer: export the encoded ids"
            )
        for name in table.columns:
            if name in vocabularies:
                role: Literal["id"] | None = "id" if name == table.id else None
                size = len(vocabularies[name].ids)
                columns.append(Column(name=name, side=side, kind="categorical", role=role, cardinality=size))
            else:
                columns.append(Column(name=name, side=side, kind="numeric"))
    shared = set(tables["user"].columns) & set(tables["item"].columns)
    if shared:
        raise BundleError(f"both feature tables have {', '.join(sorted(shared))}: it must be clear whose it is")
    return columns


def _entities(table: FeatureTable, schema: Schema, vocabularies: dict[str, _Vocabulary]) -> Entities:
    file, frame = f"{table.side}_features.parquet", table.frame
    categorical = [
        vocabularies[column.name].packed(frame[column.name].to_numpy()) for column in schema.categorical(table.side)
    ]
    numeric = [frame[column.name].to_numpy().astype(np.float32) for column in schema.numeric(table.side)]
    vocabulary = vocabularies[table.id]
    decoded = pl.concat([pl.Series("value", [None], dtype=vocabulary.values.dtype), vocabulary.values])[categorical[0]]
    raw_name = f"{table.id}_raw"
    raw = frame[raw_name] if raw_name in frame.columns else decoded
    if raw.null_count():
        raise BundleError(f"{file} has rows without a raw id: export {raw_name} beside {table.id}")
    if raw.n_unique() != len(raw):
        raise BundleError(
            f"{file} has the raw id {raw.filter(raw.is_duplicated())[0]!r} more than once: one row per id"
        )
    raw = settled(raw)
    raw = raw.cast(pl.Int64) if raw.dtype.is_integer() else raw.cast(pl.String)
    known = decoded.cast(raw.dtype, strict=False)
    wrong = (known != raw).fill_null(False)
    if wrong.any():
        row = int(wrong.arg_true()[0])
        raise BundleError(
            f"row {row + 1} of {file} is {raw[row]!r} with the id {frame[table.id][row]}, which the "
            f"categories have as {known[row]!r}: they are of different runs"
        )
    count = len(frame)
    return Entities(
        raw.to_numpy() if raw.dtype == pl.Int64 else np.array(raw.to_list(), object),
        np.stack(categorical, axis=1).astype(np.int32),
        np.stack(numeric, axis=1) if numeric else np.empty((count, 0), np.float32),
    )


def _raw_values(table: FeatureTable, schema: Schema, vocabularies: dict[str, _Vocabulary]) -> pl.DataFrame:
    """Raw values of the items' categorical columns, without columns in which an item's value is unknown.

    An out-of-vocabulary id stands for any value, so no rule could be evaluated on it. A column ``{name}_raw`` beside
    the encoded one has all values.
    """
    columns = []
    for column in schema.categorical(table.side):
        raw_name, values = f"{column.name}_raw", vocabularies[column.name].values
        if column.role == "id":
            continue
        if raw_name in table.frame.columns:
            raw = settled(table.frame[raw_name])
        else:
            ids = vocabularies[column.name].packed(table.frame[column.name].to_numpy())
            if not ids.all():
                continue
            raw = settled(values)[ids - 1]
        if raw.dtype.is_integer() or raw.dtype == pl.String:
            columns.append(raw.cast(pl.Int64 if raw.dtype.is_integer() else pl.String).alias(column.name))
    return pl.DataFrame(columns)


def _embeddings(export: Path, items: FeatureTable, dim: int) -> np.ndarray:
    """Read the embeddings float32[items, dim], in the order of the item table."""
    path = export / "item_embeddings.parquet"
    frame = _parquet(path)
    if items.id not in frame.columns:
        raise BundleError(
            f"{path} has no {items.id}: write it with its index, by candidate_embeddings(index=Tags.ITEM_ID)"
        )
    numbers = sorted((name for name in frame.columns if name.isdigit()), key=int)
    if len(numbers) != dim:
        raise BundleError(f"{path} has vectors of {len(numbers)} numbers, the query tower has {dim}: different runs")
    joined = items.frame.select(items.id).join(
        frame.with_columns(pl.col(items.id).cast(items.frame[items.id].dtype)).unique(items.id),
        on=items.id, how="left", maintain_order="left",
    )  # fmt: skip
    missing = joined.filter(pl.col(numbers[0]).is_null())
    if len(missing):
        raise BundleError(
            f"{path} lacks {len(missing):,} items of item_features.parquet, such as the id {missing[items.id][0]}"
        )
    return joined.select(numbers).to_numpy().astype(np.float32)


def _by_id(vectors: np.ndarray, ids: np.ndarray, cardinality: int) -> np.ndarray:
    """Vectors float32[cardinality, d] by the bundle's item id; ids without a vector get the mean of all."""
    table = np.tile(vectors.mean(axis=0), (cardinality, 1))
    table[ids] = vectors
    return table


def _same(exported: np.ndarray, computed: np.ndarray, export: Path) -> None:
    scale = np.abs(computed).max()
    difference = float(np.abs(exported - computed).max())
    if difference > SAME * scale:
        raise BundleError(
            f"item_embeddings.parquet differs by {difference:.2g} from what candidate_tower computes: in {export} "
            "they are of different runs"
        )


def _popularity(vocabulary: _Vocabulary, ids: np.ndarray) -> np.ndarray:
    """Number of training rows of each item: int64[items]."""
    counts = vocabulary.categories.counts
    if counts is None:
        console.print("the categories have no counts: nothing is known to be popular", highlight=False)
        return np.zeros(len(ids), np.int64)
    padded = np.concatenate([np.zeros(len(vocabulary.ids) - len(counts), np.int64), counts])
    popularity: np.ndarray = padded[ids].astype(np.int64)
    return popularity


def _parquet(path: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise BundleError(f"{path} is not a readable parquet file: {str(error).splitlines()[0]}") from error
