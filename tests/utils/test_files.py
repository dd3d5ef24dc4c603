"""Outputs replace only their own kind, are refused before any work starts, and have one writer at a time."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from redis_recsys.bundle.writer import finish, writing_bundle
from redis_recsys.data import synthetic
from redis_recsys.data.criteo import generate as criteo_synthetic
from redis_recsys.data.criteo.dataset import CriteoDataset
from redis_recsys.dataset.encode import encode
from redis_recsys.dataset.interactions import Dataset
from redis_recsys.dataset.schema import Column, Schema
from redis_recsys.dataset.split import Split
from redis_recsys.dlrm.configure import Place, configure_hugectr
from redis_recsys.embedded.redis_server import EmbeddedRedis
from redis_recsys.errors import ConfigError, DataError
from redis_recsys.evaluation import plots
from redis_recsys.hugectr import sparse
from redis_recsys.hugectr.network import DlrmShape
from redis_recsys.utils.files import written_aside, written_aside_file
from redis_recsys.utils.output_kinds import BUNDLE
from tests.support.commands import Outcome
from tests.support.planted import Trained

Recsys = Callable[..., Outcome]
RECSYS = Path(sys.executable).with_name("recsys")
SMALL = ("data", "synthetic", "--rows", 500, "--users", 20, "--items", 10)
FORCE = pytest.mark.parametrize("force", [(), ("--force",)], ids=["", "force"])


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder, hidden ones included; None for entries that are not files."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")
    }


# Existing contents


def a_dataset(folder: Path) -> None:
    raw = folder.parent / f"raw of {folder.name}"
    synthetic.generate(raw, 500, 20, 10)
    encode(raw, folder, Split())


def raw_tables(folder: Path) -> None:
    synthetic.generate(folder, 500, 20, 10)


def a_bundle(folder: Path) -> None:
    """A bundle as its writer leaves it, without anything that could be served."""
    columns = [Column(name=side, side=side, kind="categorical", role="id", cardinality=9) for side in ("user", "item")]
    with writing_bundle(folder) as aside:
        for name in ("ranker.onnx", "history.parquet", "vocab/user.parquet"):
            (aside / name).write_bytes(name.encode())
        finish(aside, Schema(name="x", columns=columns), "torch", {}, 8, 3, 4)


def a_criteo_dataset(folder: Path) -> None:
    criteo_synthetic.generate(folder, 100, slot_sizes=[4] * 26)


def a_table_of_hugectr(folder: Path) -> None:
    sparse.write(folder, [(np.arange(3), np.ones((3, 4), np.float32))])


MADE = (a_dataset, a_bundle, a_criteo_dataset, a_table_of_hugectr)


@pytest.fixture
def thesis(tmp_path: Path) -> Path:
    """A folder that belongs to somebody."""
    (tmp_path / "thesis" / "figures").mkdir(parents=True)
    (tmp_path / "thesis" / "thesis.docx").write_text("three years")
    return tmp_path / "thesis"


VERBS = [
    ("data", "synthetic", "--out"),
    ("data", "movielens", "--out"),
    ("data", "aliccp", "nowhere", "--out"),
    ("data", "tabular", "nowhere", "--schema", "schema.yaml", "--out"),
    ("data", "criteo", "nowhere", "--out"),
    ("data", "criteo-synthetic", "--out"),
    ("dlrm", "train", "nowhere", "--out"),
    ("dlrm", "dump"),
    ("import", "merlin", "nowhere", "--out"),
]


@FORCE
@pytest.mark.parametrize("verb", VERBS, ids=[" ".join(verb[:2]) for verb in VERBS])
def test_every_verb_leaves_a_foreign_folder_alone(
    recsys: Recsys, thesis: Path, verb: tuple[str, ...], force: tuple[str, ...]
) -> None:
    before = contents(thesis)
    error = recsys(*verb, thesis, *force).error()
    assert f"{thesis} exists and is not" in error
    assert "it holds figures, thesis.docx" in error
    assert contents(thesis) == before


@FORCE
def test_training_is_refused_before_it_starts(
    recsys: Recsys, trained: Trained, thesis: Path, tmp_path: Path, force: tuple[str, ...]
) -> None:
    endless = ("--epochs", 1_000_000, "--patience", 1_000_000)
    before = contents(thesis)
    assert "thesis.docx" in recsys("train", trained.dataset.path, "--out", thesis, *endless, *force).error()
    export = ("--out", "bundle", "--trainer", "merlin", "--export", thesis)
    assert "thesis.docx" in recsys("train", trained.dataset.path, *export, *force).error()
    assert contents(thesis) == before
    assert [path.name for path in tmp_path.iterdir()] == ["thesis"]


def test_a_bundle_never_takes_the_place_of_the_dataset_it_learns_from(recsys: Recsys, tmp_path: Path) -> None:
    a_dataset(tmp_path / "dataset")
    before = contents(tmp_path / "dataset")
    for flags in ((), ("--force",)):
        assert "would replace" in recsys("train", "dataset", "--out", "dataset", *flags).error()
    export = ("--trainer", "merlin", "--out", "bundle", "--export", "bundle")
    assert "would replace" in recsys("train", "dataset", *export).error()
    assert contents(tmp_path / "dataset") == before


@pytest.mark.parametrize("make", MADE)
def test_another_kind_of_the_projects_own_is_replaced_by_force_alone(
    recsys: Recsys, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    target = tmp_path / "target"
    make(target)
    verb: tuple[object, ...] = SMALL
    if make is a_dataset:
        verb = ("data", "criteo-synthetic", "--rows", 100, "--scale", 1e-4)
    before = contents(target)
    error = recsys(*verb, "--out", target).error()
    assert f"{target} is {make.__name__.replace('_', ' ').replace('criteo', 'Criteo').replace('huge', 'Huge')}" in (
        error.replace("HugeCTR", "Hugectr")
    )
    assert "replace it with --force" in error
    assert contents(target) == before
    assert recsys(*verb, "--out", target, "--force").code == 0
    read: Callable[[Path], object] = CriteoDataset if make is a_dataset else Dataset
    assert read(target)


@pytest.mark.parametrize("make", [a_dataset, a_bundle, a_criteo_dataset, a_table_of_hugectr, raw_tables])
def test_last_nights_output_is_replaced_without_a_flag_unless_something_else_lies_in_it(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    target = tmp_path / "target"
    make(target)
    first = contents(target)
    make(target)
    assert contents(target).keys() == first.keys()
    (target / ".DS_Store").write_text("left by a file manager")
    make(target)
    assert contents(target).keys() == first.keys()
    (target / "notes").mkdir()
    (target / "notes" / "mine.txt").write_text("mine")
    before = contents(target)
    with pytest.raises(DataError, match=r"in which notes/mine\.txt lies, too: move that away"):
        make(target)
    assert contents(target) == before


def test_a_folder_that_merely_looks_like_a_dataset_is_foreign(recsys: Recsys, tmp_path: Path) -> None:
    (tmp_path / "mine" / "train").mkdir(parents=True)
    (tmp_path / "mine" / "train" / "part-00000.parquet").write_bytes(b"my only copy")
    for manifest in ("{}", "[1]", '{"version": 3, "name": "an extension"}', "not JSON"):
        (tmp_path / "mine" / "manifest.json").write_text(manifest)
        before = contents(tmp_path / "mine")
        assert "is not a dataset: it holds manifest.json, train" in recsys(*SMALL, "--out", "mine", "--force").error()
        assert contents(tmp_path / "mine") == before


@FORCE
def test_what_is_no_folder_is_never_replaced(recsys: Recsys, tmp_path: Path, force: tuple[str, ...]) -> None:
    (tmp_path / "file").write_text("thesis")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/null")
    for name, what in (("file", "a file"), ("pipe", "a pipe"), ("link", "a device"), ("/dev/null", "a device")):
        assert f"is {what}, not a folder" in recsys(*SMALL, "--out", name, *force).error()
        assert "cannot write" in recsys(*SMALL, "--out", f"{name}/below", *force).error()
    assert (tmp_path / "file").read_text() == "thesis"
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "link").readlink() == Path("/dev/null")
    assert Path("/dev/null").is_char_device()


@FORCE
def test_places_that_must_stay_are_never_replaced(
    recsys: Recsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, force: tuple[str, ...]
) -> None:
    (tmp_path / "users" / "me").mkdir(parents=True)
    (tmp_path / "here" / "below").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "users" / "me"))
    monkeypatch.chdir(tmp_path / "here" / "below")
    for target, reason in (
        (".", "is the working directory"),
        ("..", "holds the working directory"),
        (tmp_path / "here", "holds the working directory"),
        (tmp_path / "users" / "me", "is the home directory"),
        (tmp_path / "users", "holds the home directory"),
        ("/", "is a mount point"),
        ("/proc", "is a mount point"),
        ("/dev", "is a mount point"),
    ):
        assert reason in recsys(*SMALL, "--out", target, *force).error()
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")} == {
        "here", "here/below", "users", "users/me",
    }  # fmt: skip


@FORCE
def test_the_folder_of_a_running_redis_is_never_replaced(
    recsys: Recsys, tmp_path: Path, force: tuple[str, ...]
) -> None:
    with EmbeddedRedis(tmp_path / "data" / "redis"):
        a_dataset(tmp_path / "data" / "dataset")
        before = contents(tmp_path / "data").keys()
        for target in ("data", "data/redis"):
            error = recsys(*SMALL, "--out", target, *force).error()
            assert f"it holds the data of Redis in {tmp_path / 'data' / 'redis'}" in error
        a_bundle(tmp_path / "data" / "bundle")
        with EmbeddedRedis(tmp_path / "data" / "bundle" / "redis"):
            for name in ("data/bundle",):
                assert "in which redis/" in recsys(*SMALL, "--out", name, *force).error()
        assert before < contents(tmp_path / "data").keys()


def test_an_empty_folder_is_taken(recsys: Recsys, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert recsys(*SMALL, "--out", "empty").code == 0
    assert len(Dataset(tmp_path / "empty").users) > 1


def test_a_link_stays_and_the_folder_it_points_to_is_replaced(recsys: Recsys, tmp_path: Path, thesis: Path) -> None:
    a_dataset(tmp_path / "big disk" / "dataset")
    (tmp_path / "dataset").symlink_to(tmp_path / "big disk" / "dataset")
    (tmp_path / "new").symlink_to(tmp_path / "big disk" / "new")  # which does not exist yet
    (tmp_path / "mine").symlink_to(thesis)
    for name in ("dataset", "new"):
        assert recsys(*SMALL[:2], "--rows", 700, "--out", name).code == 0
        assert (tmp_path / name).is_symlink()
        assert sum(Dataset(tmp_path / "big disk" / name).count(part) for part in ("train", "valid", "test")) == 700
    before = contents(thesis)
    assert f"{thesis} exists" in recsys(*SMALL, "--out", "mine", "--force").error()
    assert contents(thesis) == before


def test_what_appears_while_an_output_is_written_stays(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    with pytest.raises(DataError, match=r"is not a bundle: it holds thesis\.docx"), written_aside(target, BUNDLE):  # noqa: PT012
        target.mkdir()
        (target / "thesis.docx").write_text("three years")
    assert contents(tmp_path) == {"bundle": None, "bundle/thesis.docx": b"three years"}


def test_the_raw_tables_take_no_foreign_place_either(recsys: Recsys, thesis: Path) -> None:
    raw = thesis.rename(thesis.with_name("mine.raw"))
    before = contents(raw)
    assert "mine.raw exists and is not raw tables" in recsys(*SMALL, "--out", "mine", "--force").error()
    assert contents(raw) == before


def test_outputs_among_the_sources_are_not_read_as_data(recsys: Recsys, tmp_path: Path) -> None:
    (tmp_path / "schema.yaml").write_text(SCHEMA)
    (tmp_path / "log.csv").write_text(log("a"))
    assert recsys("data", "tabular", ".", "--schema", "schema.yaml").code == 0
    before = contents(tmp_path / "data")
    error = recsys("data", "tabular", ".", "--schema", "schema.yaml").error()
    assert "data/dataset lies in . and would be read as data: choose a folder outside of it" in error
    assert contents(tmp_path / "data") == before


# Files


def test_a_plot_replaces_nothing_but_a_picture_of_its_format(recsys: Recsys, tmp_path: Path, thesis: Path) -> None:
    metrics = ("ndcg@10", "recall@10", "mrr")
    values = {"random": {name: 0.1 for each in metrics for name in (each, f"{each}_low", f"{each}_high")}}
    (tmp_path / "plot.png").write_text("a text of mine")
    (tmp_path / "folder.svg").mkdir()
    (tmp_path / "null.png").symlink_to("/dev/null")
    before = contents(tmp_path)
    for path, error, reason in (
        (thesis / "thesis.docx", ConfigError, "must end with .png or .svg"),
        (tmp_path / "plot.png", DataError, "plot.png exists and is no .png file"),
        (tmp_path / "folder.svg", DataError, "is a folder or a device, not a file"),
        (tmp_path / "null.png", DataError, "is a folder or a device, not a file"),
    ):
        with pytest.raises(error, match=re.escape(reason)):
            plots.metric_bars(values, 7, path=path)
        # the verb says so before it evaluates, which could not work here
        assert reason in recsys("evaluate", "no bundle", "--plot", path).error()
    assert contents(tmp_path) == before
    (tmp_path / "plot.png").unlink()
    plots.metric_bars(values, 7, path=tmp_path / "plot.png")
    first = (tmp_path / "plot.png").read_bytes()
    plots.metric_bars(values, 7, path=tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes() == first
    assert first.startswith(b"\x89PNG")


def test_files_for_hugectr_take_no_foreign_place(tmp_path: Path) -> None:
    shape = DlrmShape(2, (3, 4), 4, (8, 4), (8, 1))
    (tmp_path / "config.pbtxt").write_text("notes of mine")
    with pytest.raises(DataError, match=r"config\.pbtxt exists and is no \.pbtxt file"):
        configure_hugectr(shape, tmp_path, Place())
    assert contents(tmp_path) == {"config.pbtxt": b"notes of mine"}
    (tmp_path / "config.pbtxt").unlink()
    configure_hugectr(shape, tmp_path, Place())
    configure_hugectr(shape, tmp_path, Place())
    assert set(contents(tmp_path)) == {"config.pbtxt", "ps.json"}


def test_a_linked_file_is_replaced_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("old")
    (tmp_path / "link").symlink_to("there")
    with written_aside_file(tmp_path / "link") as aside:
        aside.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there").read_text() == "new"


# One writer at a time


SCHEMA = """
name: customers
columns:
- {name: user, side: user, kind: categorical, role: id}
- {name: item, side: item, kind: categorical, role: id}
- {name: time, side: time, kind: numeric}
"""


def log(customer: str, rows: int = 3000) -> str:
    """A log with the users of one customer."""
    lines = [f"{customer}{row % 60},i{row * 7 % 40},{row}" for row in range(rows)]
    return "\n".join(["user,item,time", *lines]) + "\n"


def users_of(dataset: Path) -> set[str]:
    """First letters of the user ids, one per customer."""
    return {str(user)[0] for user in Dataset(dataset).users.raw_ids}


def start(folder: Path, *args: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [RECSYS, *map(str, args)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> Outcome:
    out, err = process.communicate(timeout=120)
    return Outcome(process.returncode, out, err)


def test_two_at_once_whose_sources_have_one_name_never_meet(tmp_path: Path) -> None:
    (tmp_path / "schema.yaml").write_text(SCHEMA)
    for customer in "ab":
        (tmp_path / customer).mkdir()
        (tmp_path / customer / "log.csv").write_text(log(customer))
    for round_ in range(4):
        running = {
            customer: start(
                tmp_path, "data", "tabular", f"{customer}/log.csv", "--schema", "schema.yaml", "--out",
                f"{customer}/dataset",
            )
            for customer in "ab"
        }  # fmt: skip
        for customer, process in running.items():
            outcome = ended(process)
            assert outcome.code == 0, (round_, outcome)
            assert users_of(tmp_path / customer / "dataset") == {customer}
    assert not list(tmp_path.rglob(".*"))


def test_two_at_once_with_one_target_leave_one_of_the_two_whole(tmp_path: Path) -> None:
    (tmp_path / "schema.yaml").write_text(SCHEMA)
    for customer in "ab":
        (tmp_path / customer).mkdir()
        (tmp_path / customer / "log.csv").write_text(log(customer))
    refused = 0
    for _ in range(3):
        outcomes = [
            ended(process)
            for process in [
                start(tmp_path, "data", "tabular", f"{customer}/log.csv", "--schema", "schema.yaml", "--out", "dataset")
                for customer in "ab"
            ]
        ]
        done = {customer for customer, outcome in zip("ab", outcomes, strict=True) if outcome.code == 0}
        assert users_of(tmp_path / "dataset") in [{customer} for customer in done]
        for outcome in outcomes:
            if outcome.code:
                refused += 1
                assert re.search(r"dataset is being written by another run( \(process \d+\))?: wait", outcome.error())
    assert not list(tmp_path.rglob(".*"))


@pytest.fixture
def training(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A training that does not end by itself and has written a checkpoint of its first epoch."""
    a_dataset(tmp_path / "dataset")
    endless = ("--epochs", 1_000_000, "--patience", 1_000_000, "--embedding-dim", 4, "--device", "cpu")
    process = start(tmp_path, "train", "dataset", *endless)
    deadline = time.monotonic() + 60
    while not (tmp_path / "data" / ".bundle.checkpoint" / "retrieval.pt").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield process
    if process.poll() is None:
        process.kill()
    process.communicate()


def test_a_target_is_locked_while_its_run_lives_however_that_ends(
    recsys: Recsys, tmp_path: Path, training: subprocess.Popen[str]
) -> None:
    (tmp_path / "other name").symlink_to(tmp_path / "data")
    checkpoint = tmp_path / "data" / ".bundle.checkpoint" / "retrieval.pt"
    for target in ("data/bundle", "other name/bundle", "./data/../data/bundle"):
        for verb in (("train", "dataset", "--resume"), ("train", "dataset"), SMALL):
            error = recsys(*verb, "--out", target).error()
            assert f"is being written by another run (process {training.pid})" in error
    assert checkpoint.exists()
    assert training.poll() is None
    training.send_signal(signal.SIGKILL)
    training.wait()
    quick = ("--epochs", 1, "--embedding-dim", 4, "--device", "cpu", "--no-refit")
    assert recsys("train", "dataset", *quick).code == 0
    manifest = json.loads((tmp_path / "data" / "bundle" / "manifest.json").read_text())
    assert datetime.fromisoformat(manifest["created"]).tzinfo == UTC
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["bundle"]
