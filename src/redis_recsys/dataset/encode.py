"""Encoding of raw interactions into a dataset: split, numbered, encoded (``interactions.py`` describes the layout).

Streaming passes over the interactions, in file order: the first checks ids, targets and times; the second counts
users and items in the training rows and finds the row that holds each one's features; so does the third, over the
rows before the test, for ``refit/``; the fourth replaces raw ids by entity numbers and writes the parts; the last
repeats the second over all rows, for ``final/``. A feature that is missing in some of those rows costs a pass of its
own, over its column alone. Memory holds the users, the
items, and a few bytes per interaction.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from ..errors import DataError, one_line
from ..utils.files import claimed, disk_error, keep_inputs, written_aside
from ..utils.output_kinds import DATASET
from ..utils.progress import progress
from .encode_entities import COUNT, encode_entities, raw_values
from .entities import ITEM_VALUES, Entities, read_entities, write_entities
from .interactions import BEFORE_TEST, DATASET_VERSION, PARTS, Dataset, Part
from .raw import Raw, open_raw
from .schema import INTERNAL, SIDES, Schema, Side
from .split import Split, check_parts
from .user_history import History

BATCH = 1_000_000
WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # only a write ends with one of these
PART, ORDER, RANK, NUMBER, TOTAL = (f"{INTERNAL}{name}" for name in ("part", "order", "rank", "number", "total"))


def encode(raw: Path, target: Path, split: Split) -> None:
    """Make a dataset of a raw folder.

    Args:
        raw: folder with schema.yaml, interactions/part-*.parquet and optional users.parquet and items.parquet.
        target: folder of the dataset; it appears whole or not at all.
        split: division of the rows into training, validation and test.

    Raises:
        SchemaError: the schema is invalid, or a column is missing or of the wrong type.
        DataError: a file is missing, truncated or empty, a value cannot be used, a part of the split would be
            empty, or the target cannot be written.
    """
    raw, target = Path(raw), Path(target)
    keep_inputs(target, raw)
    with claimed(target, DATASET), _clear_errors(raw, target):
        source = open_raw(raw)
        rows, description = _divide(source, split)
        before_test = {side: _entities(source, rows, side, pl.col(PART) <= 1) for side in SIDES}
        entities = {side: _entities(source, rows, side, pl.col(PART) == 0) for side in SIDES}
        for side in SIDES:
            entities[side], before_test[side] = _number_alike(source.schema, side, entities[side], before_test[side])
        with written_aside(target, DATASET) as aside:
            _write_parts(aside, source, rows, entities)
            counts = {f"{side}s": len(entities[side]) for side in SIDES}
            manifest = {"version": DATASET_VERSION, **description, **counts}
            (aside / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
            _write_tables(aside, source.schema, entities)
            dataset = Dataset(aside)
            _fill_history(dataset, "train")
            _write_tables(aside / "refit", source.schema, before_test)
            _fill_history(dataset.refit, *BEFORE_TEST)
            everything = {side: _entities(source, rows, side, pl.col(PART) >= 0) for side in SIDES}
            _write_tables(aside / "final", source.schema, everything)
            _fill_history(dataset.final, *PARTS)


def _divide(source: Raw, split: Split) -> tuple[pl.LazyFrame, dict[str, Any]]:
    """The interactions with PART and ORDER (position in time) added, and the manifest's entries on the split."""
    schema = source.schema
    user, time = schema.id_column("user").name, schema.time.name if schema.time else None
    needed = [name for name in (time, user if split.by in ("user", "last") else None) if name is not None]
    frame = source.interactions.select(needed).collect(engine="streaming") if needed else pl.DataFrame()
    cuts = split.cuts(None if time is None else frame[time])
    if time is None or frame[time].is_sorted():
        order = pl.int_range(source.rows, dtype=pl.UInt32, eager=True)
    else:
        order = frame[time].rank("ordinal")
    part = frame.select(split.part(source.rows, user, time, cuts).alias(PART))[PART]
    counts = check_parts([int((part == number).sum()) for number in range(len(PARTS))], split)
    description: dict[str, Any] = {"split": split.model_dump(), "rows": counts}
    if cuts is not None:
        description["cuts"] = dict(zip(("valid_from", "test_from"), cuts, strict=True))
    added = pl.DataFrame({PART: part, ORDER: order})
    return pl.concat([source.interactions, added.lazy()], how="horizontal"), description


def _entities(source: Raw, rows: pl.LazyFrame, side: Side, training: pl.Expr) -> pl.DataFrame:
    """Every user or item, most frequent in training first: id, raw features and labels, COUNT and NUMBER.

    A feature in the interactions is the newest known value of the training rows; for a user or item without such
    rows, the oldest known value of the others. For users and items in training, what only later rows say is the
    future, and unknown.

    Args:
        source: the raw folder.
        rows: interactions from :func:`_divide`.
        side: user or item.
        training: whether a row counts as a training row.
    """
    key = source.schema.id_column(side).name
    rank = _rank(training)
    entities = (
        rows.group_by(key)
        .agg(training.sum().cast(pl.Int64).alias(COUNT), rank.max().alias(RANK))
        .collect(engine="streaming")
    )
    flat = [column.name for column in source.flat[side]]
    if flat:
        entities = entities.join(_values_at(rows, rank, entities[RANK], flat), on=RANK)
    entities = _fill_gaps(entities.drop(RANK), rows, rank, key, [name for name in flat if entities[name].null_count()])
    if side in source.tables:
        table = source.tables[side].collect()
        entities = entities.join(table, on=key, how="full", coalesce=True).with_columns(pl.col(COUNT).fill_null(0))
    return entities.sort([COUNT, key], descending=[True, False]).with_row_index(NUMBER, 1)


def _number_alike(
    schema: Schema, side: Side, training: pl.DataFrame, before_test: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Give both tables the same order and numbers, in which the ids of each one's vocabulary come first.

    First come the ids that are frequent enough in training, then those that become so with the validation rows.

    Args:
        schema: meaning of the columns.
        side: user or item.
        training: users or items from :func:`_entities`, of the train part.
        before_test: the same ones, of the train and valid parts.
    """
    column = schema.id_column(side)
    frequent = pl.col(COUNT) >= column.min_frequency
    counts = before_test.select(column.name, pl.col(COUNT).alias(TOTAL))
    keys = [frequent, pl.when(frequent).then(COUNT).otherwise(TOTAL), pl.col(COUNT)]
    training = training.join(counts, on=column.name).sort([*keys, column.name], descending=[True, True, True, False])
    training = training.drop(TOTAL, NUMBER).with_row_index(NUMBER, 1)
    numbers = training.select(column.name, NUMBER)
    return training, before_test.drop(NUMBER).join(numbers, on=column.name).sort(NUMBER)


def _rank(training: pl.Expr) -> pl.Expr:
    """Rank of each row as the source of its user's or item's features; the highest wins.

    That is the newest training row, else the oldest of the others. No two rows have the same rank.
    """
    order = pl.col(ORDER).cast(pl.Int64)
    return pl.when(training).then(order).otherwise(-1 - order)


def _values_at(rows: pl.LazyFrame, rank: pl.Expr, ranks: pl.Series, names: list[str]) -> pl.DataFrame:
    """RANK and some columns of the rows that have one of the ranks."""
    ranked = rows.select(rank.alias(RANK), *names)
    return ranked.filter(pl.col(RANK).is_in(ranks.implode())).collect(engine="streaming")


def _fill_gaps(entities: pl.DataFrame, rows: pl.LazyFrame, rank: pl.Expr, key: str, names: list[str]) -> pl.DataFrame:
    """Replace each of some columns by the values of the highest-ranking rows that have one.

    Args:
        entities: one row per user or item, with COUNT.
        rows: interactions with PART and ORDER.
        rank: rank of each row, from :func:`_rank`.
        key: name of the id column.
        names: names of the columns, which are read one after the other.
    """
    if not names:
        return entities
    best_ranks = [rank.filter(pl.col(name).is_not_null()).max().alias(name) for name in names]
    ranks = rows.group_by(key).agg(best_ranks).collect(engine="streaming").join(entities.select(key, COUNT), on=key)
    for name in names:
        sources = ranks.select(key, COUNT, pl.col(name).alias(RANK))
        sources = sources.filter((pl.col(RANK) >= 0) | (pl.col(COUNT) == 0)).drop(COUNT)
        values = sources.join(_values_at(rows, rank, sources[RANK], [name]), on=RANK).drop(RANK)
        entities = entities.drop(name).join(values, on=key, how="left")
    return entities


def _write_tables(folder: Path, schema: Schema, entities: dict[Side, pl.DataFrame]) -> None:
    """Write schema.yaml, vocab/ and the tables of users and items; the history column is left empty."""
    folder.mkdir(exist_ok=True)
    encoded: dict[Side, Entities] = {}
    for side in SIDES:
        encoded[side], schema = encode_entities(entities[side], schema, side, folder)
    schema = _share_vocabulary(schema)
    schema.save(folder / "schema.yaml")
    for side in SIDES:
        write_entities(folder / f"{side}s.parquet", schema, side, encoded[side])
    raw_values(entities["item"], schema).write_parquet(folder / ITEM_VALUES)


def _fill_history(dataset: Dataset, *parts: Part) -> None:
    """Write each user's newest items after some parts into the table of users, if there is a column for them."""
    if dataset.schema.history:
        path = dataset.path / "users.parquet"
        users = read_entities(path, dataset.schema, "user", labels=True)
        History.of(dataset.rows(*parts), len(users)).fill(users.categorical, dataset.schema)
        write_entities(path, dataset.schema, "user", users)


def _write_parts(aside: Path, source: Raw, rows: pl.LazyFrame, entities: dict[Side, pl.DataFrame]) -> None:
    """Write train/, valid/ and test/ with entity numbers in place of ids, each partition in time order."""
    schema = source.schema
    for side in SIDES:
        key = schema.id_column(side).name
        numbers = entities[side].lazy().select(key, pl.col(NUMBER).cast(pl.Int32).alias(f"{NUMBER}_{side}"))
        rows = rows.join(numbers, on=key, how="left", maintain_order="left")
    columns = [
        *(pl.col(f"{NUMBER}_{side}").alias(side) for side in SIDES),
        pl.lit(1.0, pl.Float32).alias("target")
        if schema.target is None
        else pl.col(schema.target.name).alias("target"),
        pl.lit(0, pl.Int64).alias("time") if schema.time is None else pl.col(schema.time.name).alias("time"),
        *([] if schema.oracle is None else [pl.col(schema.oracle.name).alias("oracle")]),
        pl.col(PART),
    ]
    written = dict.fromkeys(PARTS, 0)
    for name in PARTS:
        (aside / name).mkdir()
    batches = rows.select(columns).collect_batches(chunk_size=BATCH, maintain_order=True, engine="streaming")
    with progress("encoding rows", source.rows) as advance:
        for batch in batches:
            for number, name in enumerate(PARTS):
                chunk = batch.filter(pl.col(PART) == number).drop(PART)
                if len(chunk):
                    path = aside / name / f"part-{written[name]:05}.parquet"
                    chunk.sort("time", maintain_order=True).write_parquet(path, compression="snappy")
                    written[name] += 1
            advance(len(batch))


def _share_vocabulary(schema: Schema) -> Schema:
    """The schema with the item id's cardinality on the history."""
    cardinality = schema.id_column("item").cardinality
    columns = [c.model_copy(update={"cardinality": cardinality}) if c.role == "history" else c for c in schema.columns]
    return schema.model_copy(update={"columns": columns})


@contextmanager
def _clear_errors(raw: Path, target: Path) -> Iterator[None]:
    """Raise Polars' errors as this project's."""
    try:
        yield
    except pl.exceptions.PolarsError as error:
        reason = one_line(error)
        code = re.search(r"os error (\d+)", reason)
        if code and int(code[1]) in WRITING:
            raise disk_error(OSError(int(code[1]), os.strerror(int(code[1]))), target) from error
        raise DataError(f"the data in {raw} cannot be encoded (a damaged file?): {reason}") from error
