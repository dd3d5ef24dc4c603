"""Logs that broke something once, from their files to lists ahead of time and on demand, by the command line.

Each folder beside this file is a log and its ``schema.yaml``; all of it is made up. What must come out of one is worked
out from its files alone.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from redis_recsys.embedded.redis_server import EmbeddedRedis
from tests.support.commands import Outcome, good
from tests.support.paths import ROOT

RECSYS = str(Path(sys.executable).with_name("recsys"))
FREE_PORTS = ("--grpc-port", "0", "--http-port", "0", "--metrics-port", "0")
LIST = 200  # recommendations asked for: more than most of these catalogues have

Recsys = Callable[..., Outcome]


@dataclass(frozen=True)
class Case:
    """A log that ends in lists.

    Attributes:
        name: of its folder.
        train: further flags of ``recsys train``.
        denied: items that no list may hold.
    """

    name: str
    train: tuple[str, ...] = ()
    denied: frozenset[str] = frozenset()

    @property
    def folder(self) -> Path:
        return Path(__file__).parent / self.name

    @property
    def log(self) -> Path:
        return next(self.folder.glob("log*"))

    @property
    def items(self) -> Path | None:
        return next(self.folder.glob("items.csv"), None)

    def catalogue(self) -> set[str]:
        """Raw ids of the log and of the table of items."""
        known = set(self.rows()["item"])
        return known | (set(pl.read_csv(self.items)["item"]) if self.items else set())

    def rows(self) -> pl.DataFrame:
        """Users and items of the log as text, and whether the row is a click."""
        files = sorted(self.log.iterdir()) if self.log.is_dir() else [self.log]
        read = {".csv": pl.read_csv, ".parquet": pl.read_parquet}
        clicked = pl.col("bought").cast(pl.Int64)
        return pl.concat(
            frame.select(
                pl.col("user", "item").cast(pl.String), click=clicked if "bought" in frame.columns else pl.lit(1)
            )
            for frame in (read[file.suffix](file) for file in files)
        )

    def had(self) -> dict[str, set[str]]:
        """Items that every user has clicked in any row; an empty set for the others of the log."""
        rows = self.rows()
        clicks = rows.filter(pl.col("click") == 1).group_by("user").agg(pl.col("item").unique())
        return {user: set() for user in rows["user"]} | {user: set(items) for user, items in clicks.iter_rows()}


RULES = Case("business_rules", denied=frozenset({"i1", "i2", "i4", "i6", "i7", "new0", "new1", "new2"}))
TEXT = [RULES, Case("dictionary_id"), Case("halflife_ms", train=("--half-life", "7"))]
WHOLE = [
    Case("column_slash"),
    Case("null_cat"),
    Case("null_in_one_part"),
    Case("seven_items"),
    Case("sparse_feature"),
    Case("three_hundred_items"),
    Case("time_parts_mixed"),
]
DENY = json.dumps({"brand": ["alcohol", "rare-brand"], "tags": ["adult"]})


@dataclass
class Server:
    """A Redis of its own, what serves its deployments, and the variables with which verbs find both."""

    variables: dict[str, str]
    serving: subprocess.Popen[str]
    generations: list[str] = field(default_factory=list)


@contextmanager
def serving(folder: Path, **online: str) -> Iterator[Server]:
    """``recsys serve`` over an empty Redis: it waits for the first deployment and follows the later ones."""
    with EmbeddedRedis(folder / "redis", persist=False) as redis:
        variables = {
            "RECSYS_REDIS_HOST": redis.host,
            "RECSYS_REDIS_PORT": str(redis.port),
            "RECSYS_REDIS_PASSWORD": redis.password,
            "RECSYS_DATA": str(folder / "data"),
            "RECSYS_DEPLOY_MODELS": str(folder / "deployed"),
            "RECSYS_TRITON_REPOSITORY": str(folder / "triton"),
            "RECSYS_TRITON_ENVIRONMENT": str(ROOT / ".venv-serving"),
            "RECSYS_ONLINE_TIMEOUT": "1",
            "RECSYS_ONLINE_TOPK": str(LIST),
            **online,
        }
        process = subprocess.Popen(
            [RECSYS, "serve", "--wait", *FREE_PORTS],
            cwd=folder, env=os.environ | variables, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            yield Server(variables, process)
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)


@pytest.fixture(scope="module")
def text_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """For logs whose ids are texts; it denies what ``business_rules`` wants denied."""
    with serving(tmp_path_factory.mktemp("text")) as server:
        yield server


@pytest.fixture(scope="module")
def whole_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """For logs whose ids are whole numbers."""
    with serving(tmp_path_factory.mktemp("whole")) as server:
        yield server


@pytest.fixture(scope="module")
def ruled_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """For the log with rules."""
    with serving(tmp_path_factory.mktemp("ruled"), RECSYS_ONLINE_DENY=DENY) as server:
        yield server


def encoded(recsys: Recsys, case: Case) -> Outcome:
    """``recsys data tabular`` of a case."""
    tables = ("--items", case.items) if case.items else ()
    return recsys("data", "tabular", case.log, "--schema", case.folder / "schema.yaml", *tables, "--out", "dataset")


def check_lists(case: Case, lists: dict[str, list[str]], most: int) -> None:
    """Every user gets as many items as there are, up to ``most``: none twice, none had in any row, none denied."""
    for user, had in case.had().items():
        left = case.catalogue() - had - case.denied
        assert len(lists[user]) == len(set(lists[user])) == min(most, len(left)), user
        assert set(lists[user]) <= left, user


def recommended(recsys: Recsys, server: Server, users: list[str], generation: str) -> list[dict[str, Any]]:
    """Answers of the serving Triton, once it has come to a deployment."""
    deadline = time.monotonic() + 120
    while True:
        asked = recsys("recommend", *users, "--json")
        answers = json.loads(asked.out) if asked.code == 0 else []
        if answers and {str(answer["generation"]) for answer in answers} == {generation}:
            return answers
        assert server.serving.poll() is None, server.serving.communicate()
        assert time.monotonic() < deadline, (asked, generation)
        time.sleep(0.2)


@pytest.mark.parametrize("case", [*TEXT, *WHOLE], ids=lambda case: case.name)
def test_a_log_becomes_lists_that_keep_what_is_promised(
    case: Case, recsys: Recsys, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    of = "ruled_server" if case is RULES else "text_server" if case in TEXT else "whole_server"
    server: Server = request.getfixturevalue(of)
    for name, value in server.variables.items():
        monkeypatch.setenv(name, value)
    good(encoded(recsys, case))
    sizes = ("--epochs", 2, "--embedding-dim", 8, "--device", "cpu")
    good(recsys("train", "dataset", "--out", "bundle", *sizes, *case.train))
    assert set(json.loads(good(recsys("evaluate", "bundle", "--dataset", "dataset", "--json")))["retrieval"]) > {
        "popularity",
        "two-tower",
    }
    users = sorted(case.had())
    good(recsys("batch", "bundle", "--topk", LIST))
    read = json.loads(good(recsys("get", *users, "--json")))
    check_lists(case, {each["user"]: [str(item) for item in each["items"]] for each in read}, LIST)
    generation = json.loads(good(recsys("deploy", "bundle", "--json")))["generation"]
    answers = recommended(recsys, server, users, generation)
    assert not any(answer["degraded"] for answer in answers)
    check_lists(case, {str(each["user"]): [str(item) for item in each["items"]] for each in answers}, LIST)


def test_an_empty_id_is_named_by_file_row_and_column(recsys: Recsys) -> None:
    error = encoded(recsys, Case("quoted_empty_id")).error()
    assert "log.csv, row 8: column 'user'" in error


def test_a_reserved_name_is_refused_by_the_schema(recsys: Recsys) -> None:
    error = encoded(recsys, Case("column_raw_id")).error()
    assert "'raw_id'" in error
    assert "schema.yaml" in error


def test_parts_with_times_in_milliseconds_and_in_words_are_cut_at_one_moment(recsys: Recsys) -> None:
    good(encoded(recsys, Case("time_parts_mixed")))
    rows = [
        pl.read_parquet(file)
        for part in ("train", "valid", "test")
        for file in sorted(Path("dataset", part).glob("*.parquet"))
    ]
    assert [len(part) for part in rows] == [480, 60, 60]
    moments = pl.concat(rows)["time"]
    assert moments.is_sorted()  # part a, in milliseconds, is the older half
    assert (moments[-1] - moments[0]) / (moments[1] - moments[0]) == pytest.approx(599, abs=0.5)


def test_a_feature_that_only_an_older_row_has_is_kept(recsys: Recsys) -> None:
    good(encoded(recsys, Case("sparse_feature")))
    items = pl.read_parquet("dataset/items.parquet")
    assert len(items) == 40
    assert (items["brand"] > 0).all()
    assert (items["price"] != 0).all()
