"""Any valid log goes in, is encoded, and comes back equal when it is decoded: what the documentation promises.

Each row carries its own number as its "true click probability", so that it can be followed. The expected values are
computed here, one entity after the other, in plain Python.
"""

from __future__ import annotations

import csv
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, event, given, reject, settings
from hypothesis import strategies as st

from redis_recsys.data import tabular
from redis_recsys.dataset.encode import encode
from redis_recsys.dataset.interactions import PARTS, Dataset
from redis_recsys.dataset.schema import SIDES, TICKS, Column, Schema, Side
from redis_recsys.dataset.split import Split
from redis_recsys.dataset.vocabularies import read_vocabulary
from redis_recsys.errors import DataError

Form = Literal["raw", "parquet", "csv"]
NAMES = [
    "a",
    "A",
    "größe",
    "a/b",
    "../x",
    "b c",
    "日本",
    "con",
    "x:y",
    "..",
    "user_id",
    "value",
    "target",
    "time",
    "%",
    "5",
]
NULL_WORDS = {
    "",
    "na",
    "n/a",
    "nan",
    "null",
    "none",
    "nil",
    "true",
    "false",
    "inf",
    "infinity",
    "-",
    "?",
}  # said about CSV
SEPARATOR = "|"


def bounded(examples: int) -> settings:
    """The same examples every time, and none kept."""
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        phases=(Phase.explicit, Phase.generate),  # shrinking an example takes minutes
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
    )


@dataclass
class Feature:
    """A column of a side, with a value per row of the log, or per id if it lies in the table of its side."""

    column: Column
    values: list[Any] | dict[Any, Any]


@dataclass
class Log:
    """A valid log as Python values; None is unknown."""

    ids: dict[Side, Column]
    raw: dict[Side, list[Any]]
    target: Column | None
    targets: list[Any]
    time: Column | None
    times: list[int]
    dates: bool
    oracle: Column
    features: list[Feature]
    history: Column | None
    split: Split
    files: int
    tables: dict[Side, list[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.times)

    @property
    def schema(self) -> Schema:
        columns = [*self.ids.values(), *(f.column for f in self.features), self.oracle]
        columns += [column for column in (self.target, self.time, self.history) if column is not None]
        return Schema(name="any", columns=columns)

    def rows(self) -> dict[str, list[Any]]:
        """The log's columns."""
        table: dict[str, list[Any]] = {self.ids[side].name: self.raw[side] for side in SIDES}
        table[self.oracle.name] = [number / 1024 for number in range(len(self))]
        if self.target:
            table[self.target.name] = self.targets
        if self.time:
            moments = [datetime.fromtimestamp(time, UTC) for time in self.times] if self.dates else self.times
            table[self.time.name] = moments
        return table | {f.column.name: f.values for f in self.features if isinstance(f.values, list)}

    def table(self, side: Side) -> dict[str, list[Any]]:
        """The columns of a side's table."""
        found = {self.ids[side].name: self.tables[side]}
        for feature in self.features:
            if feature.column.side == side and isinstance(feature.values, dict):
                found[feature.column.name] = [feature.values[raw] for raw in self.tables[side]]
        return found


# Logs


def texts(form: Form) -> st.SearchStrategy[str]:
    """Texts that are not empty and, in a CSV, do not mean a missing value."""
    if form == "raw":
        return st.text(st.characters(codec="utf-8"), min_size=1, max_size=6)
    plain = st.text(
        st.characters(codec="utf-8", exclude_categories=("C", "Z"), include_characters=" "), min_size=1, max_size=6
    )
    return plain.filter(lambda text: text == text.strip() and SEPARATOR not in text and text.lower() not in NULL_WORDS)


def whole() -> st.SearchStrategy[int]:
    return st.one_of(st.integers(-3, 3), st.integers(-(2**63), 2**63 - 1))


def numbers(form: Form) -> st.SearchStrategy[float]:
    finite = st.one_of(st.integers(-3, 100).map(float), st.floats(-1e9, 1e9, allow_subnormal=False))
    return st.one_of(finite, st.just(float("nan"))) if form == "raw" else finite


def values_of(kind: str, form: Form) -> st.SearchStrategy[Any]:
    """Strategies of the values of a feature of one type."""
    single = whole() if kind.endswith("int") else numbers(form) if kind == "numeric" else texts(form)
    if not kind.startswith("list"):
        return single
    return st.lists(st.one_of(single, st.none()) if form == "raw" else single, max_size=5)


@st.composite
def features(draw: st.DrawFn, form: Form, name: str, log: Log) -> Feature:
    side: Side = draw(st.sampled_from(SIDES))
    kind = draw(st.sampled_from(["int", "text", "numeric", "label", "list of int", "list of text", "list joined"]))
    if form == "csv":
        kind = {"list of int": "list joined", "list of text": "list joined"}.get(kind, kind)
    having: dict[str, Any] = {"kind": {"numeric": "numeric", "label": "text"}.get(kind, "categorical")}
    if kind == "label":
        having["role"] = "label"
    if kind.startswith("list"):
        having |= {"kind": "multi-categorical", "max_length": draw(st.integers(1, 3))}
    if kind == "list joined":
        having["separator"] = SEPARATOR
    if having["kind"] in ("categorical", "multi-categorical"):
        having["min_frequency"] = draw(st.sampled_from([1, 1, 1, 2]))
        having["max_vocabulary"] = draw(st.none() | st.integers(1, 3)) if form == "raw" else None
    some = draw(st.lists(values_of(kind, form), min_size=1, max_size=4))
    if kind == "list joined":
        some = [
            [value for value in map(str, each) if value.strip() == value and SEPARATOR not in value] for each in some
        ]
    value = st.sampled_from([*some, None, None])
    where: list[Any] | dict[Any, Any]
    if side in log.tables and draw(st.booleans()):
        where = {raw: draw(value) for raw in log.tables[side]}
    else:
        where = draw(st.lists(value, min_size=len(log), max_size=len(log)))
    return Feature(Column(name=name, side=side, **having), where)


@st.composite
def logs(draw: st.DrawFn, form: Form) -> Log:
    names = iter(draw(st.permutations(NAMES)))
    count = draw(st.integers(10, 30))
    ids: dict[Side, Column] = {}
    raw: dict[Side, list[Any]] = {}
    tables: dict[Side, list[Any]] = {}
    for side in SIDES:
        kind = draw(st.sampled_from(["int", "text"]))
        pool = draw(st.lists(whole() if kind == "int" else texts(form), min_size=1, max_size=6, unique=True))
        raw[side] = draw(st.lists(st.sampled_from(pool), min_size=count, max_size=count))
        limits: dict[str, Any] = {"min_frequency": draw(st.integers(1, 3))}
        limits["max_vocabulary"] = draw(st.none() | st.integers(1, 4)) if form == "raw" else None
        ids[side] = Column(name=next(names), side=side, kind="categorical", role="id", **limits)
        if draw(st.booleans()):
            tables[side] = draw(st.lists(st.sampled_from(pool), min_size=1, unique=True))
    target = draw(st.sampled_from([None, "clicks", "ratings"]))
    positive = {"positive_from": 3.5} if target == "ratings" else {}
    timed = draw(st.booleans())
    by = draw(st.sampled_from(["time", "user", "random"] if timed else ["user", "random"]))
    seconds = st.integers(-(2**40), 2**40) if form == "raw" else st.integers(10**9, 2 * 10**9)
    moments = draw(st.lists(seconds, min_size=1, max_size=12))
    log = Log(
        ids=ids,
        raw=raw,
        target=Column(name=next(names), side="target", kind="numeric", **positive) if target else None,
        targets=draw(st.lists(st.integers(0, 5 if target == "ratings" else 1), min_size=count, max_size=count)),
        time=Column(name=next(names), side="time", kind="numeric") if timed else None,
        times=draw(st.lists(st.sampled_from(moments), min_size=count, max_size=count)) if timed else [0] * count,
        dates=draw(st.booleans()) and max(map(abs, moments)) < 2**32,
        oracle=Column(name=next(names), side="target", kind="numeric", role="oracle"),
        features=[],
        history=None,
        split=Split(by=by, valid=draw(st.sampled_from([0.1, 0.3])), test=draw(st.sampled_from([0.1, 0.3]))),
        files=draw(st.integers(1, 3)),
        tables=tables,
    )
    for _ in range(draw(st.integers(0, 4))):
        log.features.append(draw(features(form, next(names), log)))
    if draw(st.booleans()):
        length = draw(st.integers(1, 3))
        log.history = Column(name=next(names), side="user", kind="multi-categorical", role="history", max_length=length)
    return log


# Files


def arrow(columns: dict[str, list[Any]], log: Log) -> pa.Table:
    """A table; lists with a separator become text."""
    joined = {f.column.name for f in log.features if f.column.separator}
    return pa.table({name: pa.array(as_text(values) if name in joined else values) for name, values in columns.items()})


def as_text(lists: list[Any]) -> list[str | None]:
    return [None if each is None else SEPARATOR.join(each) for each in lists]


def write_parquet(path: Path, columns: dict[str, list[Any]], log: Log) -> None:
    pq.write_table(arrow(columns, log), path.with_suffix(".parquet"))


def write_csv(path: Path, columns: dict[str, list[Any]], log: Log) -> None:
    with path.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in zip(*columns.values(), strict=True):
            writer.writerow([SEPARATOR.join(value) if isinstance(value, list) else value for value in row])


def write(log: Log, folder: Path, write_table: Callable[[Path, dict[str, list[Any]], Log], None]) -> None:
    """The log in parts, and the tables."""
    (folder / "interactions").mkdir(parents=True)
    log.schema.save(folder / "schema.yaml")
    size = -(-len(log) // log.files)
    for number in range(-(-len(log) // size)):
        chunk = {name: values[number * size : (number + 1) * size] for name, values in log.rows().items()}
        write_table(folder / "interactions" / f"part-{number}", chunk, log)
    for side in log.tables:
        write_table(folder / f"{side}s", log.table(side), log)


@contextmanager
def encoded(log: Log, form: Form) -> Iterator[Dataset]:
    """The dataset of a log; examples with an empty part are skipped, since these are refused."""
    with tempfile.TemporaryDirectory() as folder:
        given, raw = Path(folder) / "given", Path(folder) / "raw"
        write(log, given, write_csv if form == "csv" else write_parquet)
        if form == "raw":
            raw = given
        else:
            files = {f"{side}s": given / f"{side}s.{form}" for side in log.tables}
            tabular.read(given / "interactions", given / "schema.yaml", raw, **files)
        try:
            encode(raw, Path(folder) / "dataset", log.split)
        except DataError as error:
            if "is empty" not in str(error):
                raise
            reject()
        event(f"split by {log.split.by}")
        yield Dataset(Path(folder) / "dataset")


# Expectations


class Expected:
    """Tables that the documentation promises for a log, given each row's part and the last part to learn from."""

    def __init__(self, log: Log, part_of: dict[int, int], last: int, same: Callable[[Any], Any]) -> None:
        self.log, self.part_of, self.same = log, part_of, same
        self.training = {row for row, part in part_of.items() if part <= last}
        self.order = sorted(range(len(log)), key=lambda row: (log.times[row], row))
        self.counts: dict[Side, Counter[Any]] = {}
        for side in SIDES:
            everybody = [*log.raw[side], *log.tables.get(side, [])]
            self.counts[side] = Counter({same(raw): 0 for raw in everybody})
            self.counts[side].update(same(log.raw[side][row]) for row in self.training)

    def value(self, feature: Feature, raw: Any) -> Any:
        """The value of an entity: from its table, or the newest known of training, or the oldest of a newcomer."""
        log, side = self.log, feature.column.side
        assert side == "user" or side == "item"
        if isinstance(feature.values, dict):
            return known(next((v for key, v in feature.values.items() if self.same(key) == raw), None))
        told = [
            row for row in self.order if self.same(log.raw[side][row]) == raw and known(feature.values[row]) is not None
        ]
        if self.counts[side][raw]:
            told = [row for row in told if row in self.training][::-1]
        return known(feature.values[told[0]]) if told else None

    def vocabulary(self, feature: Feature) -> list[Any]:
        """Values seen often enough, most frequent first."""
        column = feature.column
        assert column.side == "user" or column.side == "item"
        seen: Counter[Any] = Counter()
        for raw, count in self.counts[column.side].items():
            value = self.value(feature, raw)
            for each in value if isinstance(value, list) else [] if value is None else [value]:
                seen[self.same(each)] += count
        often = [value for value, count in seen.items() if count >= column.min_frequency]
        return sorted(often, key=lambda value: (-seen[value], value))[: column.max_vocabulary]

    def positives(self, user: Any) -> list[Any]:
        """Raw items of a user in training, newest first; of those at one time, the one of a later part."""
        log, found = self.log, []
        for row in sorted(self.order, key=lambda row: (log.times[row], self.part_of[row], row), reverse=True):
            limit = log.target.positive_from or 1 if log.target else None
            clicked = limit is None or log.targets[row] >= limit
            if row in self.training and clicked and self.same(log.raw["user"][row]) == user:
                found.append(self.same(log.raw["item"][row]))
        return found


def known(value: Any) -> Any:
    """A value as it counts; None if it is missing."""
    if isinstance(value, list):
        return [each for each in value if each not in (None, "")] or None
    return None if value == "" or value != value else value


def check(log: Log, dataset: Dataset, same: Callable[[Any], Any]) -> None:
    """Compare a dataset with the log that it was made of; ``same`` normalises the values before."""
    part_of = check_rows(log, dataset, same)
    training, before_test = (Expected(log, part_of, last, same) for last in (0, 1))
    check_order(dataset, training, before_test)
    check_tables(log, dataset, training)
    check_tables(log, dataset.refit, before_test)


def check_order(dataset: Dataset, training: Expected, before_test: Expected) -> None:
    """Check that ids that are frequent in training come first, then those that become so before the test."""
    for side in SIDES:
        entities, counts = dataset.users if side == "user" else dataset.items, training.counts[side]
        raw = [training.same(each) for each in entities.raw_ids.tolist()]
        assert sorted(raw) == sorted(counts)
        least = dataset.schema.id_column(side).min_frequency

        def place(each: Any, side: Side = side, counts: Counter[Any] = counts, least: int = least) -> tuple[int, ...]:
            frequent = counts[each] >= least
            return (not frequent, -(counts[each] if frequent else before_test.counts[side][each]), -counts[each])

        assert [place(each) for each in raw] == sorted(map(place, raw))


def check_tables(log: Log, dataset: Dataset, expected: Expected) -> None:
    """Compare users and items with those expected of the rows that a model learns from."""
    same = expected.same
    for side in SIDES:
        entities = dataset.users if side == "user" else dataset.items
        raw = [same(each) for each in entities.raw_ids.tolist()]
        check_ids(log, dataset, side, raw, expected.counts[side])
        for feature in (f for f in log.features if f.column.side == side):
            check_feature(dataset, feature, raw, expected)
    if log.history:
        items = [same(each) for each in dataset.items.raw_ids.tolist()]
        column = dataset.schema.history
        assert column is not None
        assert column.cardinality == dataset.schema.id_column("item").cardinality
        for user, row in zip(dataset.users.raw_ids.tolist(), dataset.users.categorical, strict=True):
            newest = [items.index(item) + 1 for item in expected.positives(same(user))][: column.width]
            ids = [number if number < column.cardinality else 0 for number in newest]
            assert row[dataset.schema.slots(column)].tolist() == ids + [0] * (column.width - len(ids))


def check_rows(log: Log, dataset: Dataset, same: Callable[[Any], Any]) -> dict[int, int]:
    """Check that every row is unchanged in one part, in time order; return the number of each row's part."""
    place: dict[int, int] = {}
    unit = dataset.schema.time.unit if dataset.schema.time else None
    ticks = TICKS[unit] if unit else 1
    for number, part in enumerate(PARTS):
        for file in sorted((dataset.path / part).iterdir()):
            rows = [round(each * 1024) for each in pq.read_table(file)["oracle"].to_pylist()]
            assert rows == sorted(rows, key=lambda row: (log.times[row], row))
        rows = dataset.rows(part)
        assert rows.oracle is not None
        for at, row in enumerate((rows.oracle * 1024).round().astype(int).tolist()):
            assert row not in place
            place[row] = number
            assert same(dataset.users.raw_ids[rows.user[at] - 1]) == same(log.raw["user"][row])
            assert same(dataset.items.raw_ids[rows.item[at] - 1]) == same(log.raw["item"][row])
            assert rows.time[at] == log.times[row] * ticks
            clicked = 1 if log.target is None else log.targets[row]
            if log.target and log.target.positive_from:
                clicked = int(clicked >= log.target.positive_from)
            assert rows.target[at] == clicked
    assert len(place) == len(log)
    if log.split.by == "time":
        assert [place[row] for row in sorted(place, key=lambda row: log.times[row])] == sorted(place.values())
    if log.split.by == "user":
        for user in set(log.raw["user"]):
            mine = [row for row in range(len(log)) if log.raw["user"][row] == user]
            assert [place[row] for row in sorted(mine, key=lambda row: log.times[row])] == sorted(map(place.get, mine))  # type: ignore[type-var]
    return place


def check_ids(log: Log, dataset: Dataset, side: Side, raw: list[Any], counts: Counter[Any]) -> None:
    """Check that the most frequent entities have ids of their own, equal to their numbers."""
    column, entities = dataset.schema.id_column(side), dataset.users if side == "user" else dataset.items
    often = [each for each in raw if counts[each] >= column.min_frequency][: column.max_vocabulary]
    assert len(read_vocabulary(dataset.path, dataset.schema, column)) == len(often)
    assert column.cardinality == len(often) + 1
    ids = entities.categorical[:, dataset.schema.slots(column)][:, 0].tolist()
    assert ids == [number if number <= len(often) else 0 for number in range(1, len(raw) + 1)]


def check_feature(dataset: Dataset, feature: Feature, raw: list[Any], expected: Expected) -> None:
    """Check that every entity has the expected value, as far as there is an id for it."""
    column = next(c for c in dataset.schema.columns if c.name == feature.column.name)
    entities = dataset.users if column.side == "user" else dataset.items
    wanted = [expected.value(feature, each) for each in raw]
    if column.role == "label":
        found = entities.labels[column.name] if column.side == "item" else labels_of_users(dataset, column.name)
        assert found == ["" if each is None else each for each in wanted]
        return
    if column.kind == "numeric":
        assert column.mean is not None
        assert column.std is not None
        counts = [expected.counts[column.side][each] for each in raw]  # type: ignore[index]
        told = [(value, count) for value, count in zip(wanted, counts, strict=True) if value is not None and count]
        if told:
            values, weights = map(np.array, zip(*told, strict=True))
            mean = np.average(values, weights=weights)
            assert column.mean == pytest.approx(mean, rel=1e-9, abs=1e-9 * np.abs(values).max())
            spread = np.sqrt(np.average((values - mean) ** 2, weights=weights))
            if spread > 1e-6 * np.abs(values).max():
                assert column.std == pytest.approx(spread, rel=1e-6)
        place = [c.name for c in dataset.schema.numeric(column.side)].index(column.name)  # type: ignore[arg-type]
        decoded = entities.numeric[:, place].astype(float) * column.std + column.mean
        exact = [column.mean if each is None else each for each in wanted]
        scale = max(map(abs, exact)) + abs(column.mean)
        assert decoded.tolist() == pytest.approx(exact, rel=1e-5, abs=1e-5 * scale)
        return
    vocabulary = [expected.same(value) for value in read_vocabulary(dataset.path, dataset.schema, column).to_pylist()]
    often = expected.vocabulary(feature)
    assert sorted(vocabulary) == sorted(often)
    if feature.column.max_vocabulary:
        assert vocabulary == often
    assert column.cardinality == len(often) + 1
    for value, slots in zip(wanted, entities.categorical[:, dataset.schema.slots(column)].tolist(), strict=True):
        several = value if isinstance(value, list) else [] if value is None else [value]
        first = [expected.same(each) for each in several if expected.same(each) in vocabulary][: column.width]
        assert slots[len(first) :] == [0] * (column.width - len(first))
        assert [vocabulary[number - 1] for number in slots[: len(first)]] == first


def labels_of_users(dataset: Dataset, name: str) -> list[str]:
    """The labels of users, which nothing reads so far."""
    return pq.ParquetFile(dataset.path / "users.parquet").read([name])[name].to_pylist()  # type: ignore[no-any-return]


def itself(value: Any) -> Any:
    return value


@bounded(150)
@given(logs("raw"))
def test_a_raw_folder_comes_back_equal(log: Log) -> None:
    with encoded(log, "raw") as dataset:
        check(log, dataset, itself)


@bounded(60)
@given(logs("parquet"))
def test_parquet_comes_back_equal(log: Log) -> None:
    with encoded(log, "parquet") as dataset:
        check(log, dataset, str)  # texts that are all whole numbers become such


@bounded(60)
@given(logs("csv"))
def test_a_csv_comes_back_equal(log: Log) -> None:
    with encoded(log, "csv") as dataset:
        check(log, dataset, str)
