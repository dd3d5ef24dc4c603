"""Times in any form and unit, in one part or many: their order and their days are right."""

from __future__ import annotations

import gzip
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from redis_recsys.config import TrainSettings
from redis_recsys.dataset.split import Split
from redis_recsys.errors import DataError, SchemaError, TrainingError
from redis_recsys.trainers.torch.train import Trainer, recency_weights
from tests.support.people import AT, BOUGHT, People
from tests.support.planted import TINY

START = datetime(2026, 3, 1, tzinfo=UTC)
DAY = 86_400


@pytest.fixture
def people(tmp_path: Path) -> People:
    return People(tmp_path)


def log(*times: object) -> str:
    return "user,item,at\n" + "".join(f"{n % 3},{n % 5},{time}\n" for n, time in enumerate(times))


def moments(people: People, rows: pl.DataFrame) -> list[datetime]:
    """The written times, as datetimes in UTC."""
    unit = people.time().unit
    assert unit is not None
    ticks = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}[unit]
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    return [epoch + timedelta(microseconds=value * 1_000_000 // ticks) for value in rows["at"].to_list()]


def test_parts_in_milliseconds_and_in_iso_split_old_from_new(people: People, capsys: pytest.CaptureFixture) -> None:
    old = [START + timedelta(hours=n) for n in range(50)]
    new = [START + timedelta(days=30, hours=n) for n in range(50)]
    people.write("log/a.csv", log(*(f"{moment.timestamp() * 1000:.0f}" for moment in old)))
    people.write("log/b.csv", log(*(moment.isoformat() for moment in new)))
    assert moments(people, people.read("log", [AT])) == old + new
    assert people.time().unit == "ms"
    said = capsys.readouterr().err
    assert "at: milliseconds since 1970, from 2026-03-01 00:00:00 to 2026-04-02 01:00:00 UTC" in said
    test = people.dataset().rows("test")
    assert test.time.tolist() == [round(moment.timestamp() * 1000) for moment in new[-10:]]


@pytest.mark.parametrize(
    ("unit", "ticks"), [("s", 1), ("ms", 1_000), ("us", 1_000_000), ("ns", 1_000_000_000)], ids=lambda v: str(v)
)
@pytest.mark.parametrize("form", ["csv", "csv.gz", "parquet", "parquet of floats", "scientific"])
def test_the_unit_of_numbers_is_found(people: People, unit: str, ticks: int, form: str) -> None:
    seconds = [int(START.timestamp()) + n * DAY for n in range(5)]
    values: list[Any] = [second * ticks for second in seconds]
    if form == "parquet":
        name, content = "log.parquet", {"user": [1] * 5, "item": [2] * 5, "at": values}
    elif form == "parquet of floats":
        name, content = "log.parquet", {"user": [1] * 5, "item": [2] * 5, "at": [float(value) for value in values]}
    elif form == "scientific":
        name, content = "log.csv", log(*(f"{value:.9E}" for value in values))  # type: ignore[assignment]
    else:
        name, content = f"log.{form}", log(*values)  # type: ignore[assignment]
        if form == "csv.gz":
            content = gzip.compress(content.encode())  # type: ignore[attr-defined]
    people.write(name, content)
    rows = people.read(name, [AT])
    assert people.time().unit == unit
    assert rows["at"].to_list() == values
    assert rows["at"].dtype == pl.Int64


@pytest.mark.parametrize(
    ("texts", "expected", "unit"),
    [
        (["2026-03-01 12:00:00"], [START + timedelta(hours=12)], "s"),
        (["2026-03-01"], [START], "s"),
        (["2026-03-01 12:00"], [START + timedelta(hours=12)], "s"),
        (["2026-03-01T12:00:00Z"], [START + timedelta(hours=12)], "s"),
        (["2026-03-01T12:00+02:00"], [START + timedelta(hours=10)], "s"),
        (["2026-03-01 12:00:00 -0530"], [START + timedelta(hours=17, minutes=30)], "s"),
        (["2026-03-01 12:00:00 UTC"], [START + timedelta(hours=12)], "s"),
        (["2026-03-01 12:00:00.250 UTC"], [START + timedelta(hours=12, milliseconds=250)], "us"),
        (['"2026-03-01 12:00:00,250"'], [START + timedelta(hours=12, milliseconds=250)], "us"),
        (["2026-03-01T12:00:00.000001+00:00"], [START + timedelta(hours=12, microseconds=1)], "us"),
        (["2026-03-01", "2026-03-01 12:00:00", "2026-03-01T12:00:00+01:00"],
         [START, START + timedelta(hours=12), START + timedelta(hours=11)], "s"),
        ([" 2026-03-01 ", "\u00a02026-03-02"], [START, START + timedelta(days=1)], "s"),
        (["1965-01-01", "1969-12-31 23:59:59.5"],
         [datetime(1965, 1, 1, tzinfo=UTC), datetime(1969, 12, 31, 23, 59, 59, 500_000, UTC)], "us"),
        # the night in which Berlin's clocks go back: 02:30 twice, told apart by the offset
        (["2025-10-26T02:30:00+02:00", "2025-10-26T02:30:00+01:00"],
         [datetime(2025, 10, 26, 0, 30, tzinfo=UTC), datetime(2025, 10, 26, 1, 30, tzinfo=UTC)], "s"),
        (["1772323200.125"], [START + timedelta(milliseconds=125)], "us"),
        (["1772323200123.5"], [START + timedelta(milliseconds=123, microseconds=500)], "us"),
    ],
)  # fmt: skip
def test_texts_of_every_common_form_are_moments(
    people: People, texts: list[str], expected: list[datetime], unit: str
) -> None:
    people.write("log.csv", log(*texts))
    assert moments(people, people.read("log.csv", [AT])) == expected
    assert people.time().unit == unit


@pytest.mark.parametrize(
    "column",
    [
        pl.Series([START], dtype=pl.Datetime("ns", "UTC")),
        pl.Series([START.replace(tzinfo=None)], dtype=pl.Datetime("ms")),
        pl.Series([START.astimezone(timezone(timedelta(hours=1)))]).dt.convert_time_zone("Europe/Berlin"),
        pl.Series([START.date()]),
        pl.Series([START.timestamp()], dtype=pl.Float64),
        pl.Series([int(START.timestamp())], dtype=pl.UInt64),
        pl.Series([str(int(START.timestamp()))]),
        pl.Series([START.isoformat()], dtype=pl.Categorical),
        pl.Series([int(START.timestamp())], dtype=pl.Decimal(20, 3)),
    ],
    ids=lambda column: str(column.dtype),
)
def test_every_type_of_parquet_that_holds_times_is_read(people: People, column: pl.Series) -> None:
    people.write("log.parquet", {"user": ["a"], "item": ["b"], "at": column})
    assert moments(people, people.read("log.parquet", [AT])) == [START]
    assert people.time().unit == "s"


def test_parts_may_mix_dates_datetimes_texts_and_numbers_of_one_unit(people: People) -> None:
    expected = [START + timedelta(days=n) for n in range(5)]
    stamps = [moment.timestamp() for moment in expected]
    people.write("log/1.parquet", {"user": [1], "item": [1], "at": [expected[0].date()]})
    people.write("log/2.parquet", {"user": [1], "item": [1], "at": [expected[1]]})
    people.write("log/3.csv", log(expected[2].isoformat()))
    people.write("log/4.csv", log(f"{stamps[3]:.0f}"))
    people.write("log/5.parquet", {"user": [1], "item": [1], "at": [stamps[4]]})
    assert moments(people, people.read("log", [AT])) == expected


def test_events_within_a_second_keep_their_order(people: People) -> None:
    times = [1_772_323_200_000 + n for n in (7, 3, 9, 1, 5, 0, 8, 2, 6, 4)]
    people.write("log.csv", "user,item,at\n" + "".join(f"u,i{time % 10},{time}\n" for time in times))
    people.read("log.csv", [AT])
    dataset = people.dataset()
    items = dataset.items.raw_ids
    assert [items[n - 1] for n in dataset.rows("train").item] == [f"i{n}" for n in range(8)]
    assert [items[n - 1] for n in dataset.rows("test").item] == ["i9"]


def test_nanoseconds_stay_exact(people: People) -> None:
    times = [1_772_323_200_000_000_001, 1_772_323_200_000_000_003, 1_772_323_200_000_000_002]
    people.write("log/a.parquet", {"user": [1], "item": [1], "at": pl.Series(times[:1]).cast(pl.Datetime("ns"))})
    people.write("log/b.csv", log(*times[1:]))
    assert people.read("log", [AT])["at"].to_list() == times


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ([1772323200], [1772323200000], r"a\.csv, row 1, holds 1772323200 \(seconds\) but .*b\.csv, row 1, holds "
         r"1772323200000 \(milliseconds\)"),
        ([1772323200000], [1772323200000000], r"a\.csv.*\(milliseconds\) but .*b\.csv.*\(microseconds\)"),
        ([1772323200, 1772323201], ["1772323201", "1772323300000"], r"a\.csv.*\(seconds\) but .*b\.csv, row 2"),
        ([1772323200, 1772323300000], [1772323200], r"a\.csv, row 1, holds 1772323200 \(seconds\) but "
         r".*a\.csv, row 2, holds 1772323300000 \(milliseconds\)"),
        ([1, 2], [1772323200], r"b\.csv, row 1, holds 1772323200 \(seconds\) but .*a\.csv, row 1, holds 1 \(no time"),
        ([1772323200, 0], [1772323200], r"a\.csv, row 1, holds 1772323200 \(seconds\) but .*a\.csv, row 2, holds 0"),
        ([1, 2], ["2026-03-01"], r"a\.csv, row 1, holds 1 \(no time since 1970 in any unit\) but .*b\.csv, row 1, "
         r"holds 2026-03-01 \(a time\)"),
    ],
)  # fmt: skip
def test_times_that_contradict_each_other_are_an_error_with_both_examples(
    people: People, first: list[Any], second: list[Any], message: str
) -> None:
    people.write("log/a.csv", log(*first))
    people.write("log/b.csv", log(*second))
    with pytest.raises(DataError, match=f"'at' has times of different kinds: .*{message}.*give the column its unit"):
        people.read("log", [AT])
    assert not people.raw.exists()


def test_the_schema_can_say_the_unit(people: People) -> None:
    """Times from the sixties to today, whose magnitude does not tell them apart from steps."""
    people.write("log.csv", log(-100_000_000, 0, 5_000, 1772323200))
    rows = people.read("log.csv", [AT | {"unit": "s"}])
    assert rows["at"].to_list() == [-100_000_000, 0, 5_000, 1772323200]
    assert moments(people, rows)[0] == datetime(1966, 10, 31, 14, 13, 20, tzinfo=UTC)


def test_a_unit_that_the_numbers_cannot_have_is_an_error(people: People) -> None:
    people.write("log.csv", log(1772323200, 1772323200000))
    with pytest.raises(
        DataError, match=r"row 2: column 'at' holds '1772323200000': it must be .* in seconds, as the sch"
    ):
        people.read("log.csv", [AT | {"unit": "s"}])


@pytest.mark.parametrize(
    ("times", "written"),
    [
        ([5, 3, 900], [5, 3, 900]),
        ([20240501, 20240502], [20240501, 20240502]),
        ([20240501120000, 20240501120001], [20240501120000, 20240501120001]),
        ([0.5, 0.25, 3], [500_000, 250_000, 3_000_000]),
        ([-2, -1], [-2, -1]),
    ],
    ids=["small", "dates as numbers", "clocks as numbers", "fractions", "negative"],
)
def test_numbers_that_are_no_times_since_1970_are_steps(
    people: People, times: list[Any], written: list[int], capsys: pytest.CaptureFixture
) -> None:
    people.write("log.csv", log(*times))
    assert people.read("log.csv", [AT])["at"].to_list() == written
    assert people.time().unit is None
    assert "at: steps from" in capsys.readouterr().err


def test_a_time_that_is_missing_is_named(people: People) -> None:
    people.write("log.parquet", {"user": [1, 2], "item": [1, 2], "at": pl.Series([None, None], dtype=pl.Null)})
    with pytest.raises(DataError, match="row 1: column 'at' is empty: it must be a time"):
        people.read("log.parquet", [AT])


@pytest.mark.parametrize(
    ("values", "advice"),
    [([timedelta(days=1)], "make it a number of days or seconds"), ([[1]], "cast it"), ([True], "make it a number")],
)
def test_types_without_times_are_refused_with_advice(people: People, values: list[Any], advice: str) -> None:
    people.write("log.parquet", {"user": [1], "item": [1], "at": values})
    with pytest.raises(SchemaError, match=f"which a time column cannot be: {advice}"):
        people.read("log.parquet", [AT])


# Days


def clicks(people: People, times: list[Any]) -> None:
    rows = {"user": [n % 7 for n in range(len(times))], "item": [n % 5 for n in range(len(times))], "at": times}
    people.write("log.parquet", rows | {"bought": [int(n % 3 > 0) for n in range(len(times))]})


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns", "date"])
def test_a_half_life_is_in_days_whatever_the_unit(people: People, unit: str) -> None:
    days = [START + timedelta(days=n) for n in range(100)]
    if unit == "date":
        times: list[Any] = [date(day.year, day.month, day.day) for day in days]
    else:
        times = [round(day.timestamp()) * 1_000 ** ["s", "ms", "us", "ns"].index(unit) for day in days]
    clicks(people, times)
    people.read("log.parquet", [AT, BOUGHT])
    dataset = people.dataset()
    weights = recency_weights(dataset, dataset.rows("train"), 10.0)
    assert weights is not None
    newest = np.sort(weights)[::-1]
    assert newest[[0, 10, 20]] == pytest.approx([1, 0.5, 0.25])


def test_a_half_life_of_steps_is_refused(people: People, tmp_path: Path) -> None:
    clicks(people, list(range(100)))
    people.read("log.parquet", [AT, BOUGHT])
    settings = TrainSettings(**TINY | {"half_life": 10.0})
    with pytest.raises(
        TrainingError, match=r"--half-life is in days, and the times of .* are steps.*column 'at' its unit"
    ):
        Trainer(people.dataset(), settings, tmp_path / "bundle")


def test_a_half_life_without_times_is_refused(people: People, tmp_path: Path) -> None:
    clicks(people, list(range(100)))
    people.read("log.parquet", [BOUGHT])
    settings = TrainSettings(**TINY | {"half_life": 10.0})
    with pytest.raises(TrainingError, match=r"--half-life needs times, and .* has no time column"):
        Trainer(people.dataset(Split(by="random")), settings, tmp_path / "bundle")
