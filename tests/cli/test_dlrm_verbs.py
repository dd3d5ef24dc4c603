"""``recsys dlrm``: from a trained model to answers, as a user would do it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from redis_recsys.config import load_settings
from redis_recsys.demos import large_scale_demo as demonstration
from redis_recsys.hugectr import dense, network, sparse
from redis_recsys.hugectr.network import DlrmShape
from redis_recsys.utils.output_kinds import DENSE, NETWORK, SPARSE
from tests.support.commands import Recsys
from tests.support.paths import ROOT

RECSYS = Path(sys.executable).parent / "recsys"
SHAPE = DlrmShape(13, (20,) * 26, 8, (16, 8), (16, 1))


def variables(work: Path) -> dict[str, str]:
    """A user's environment without settings of their own, with free ports."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RECSYS_")} | own(work)


def own(work: Path) -> dict[str, str]:
    """Settings of everything that is made in a folder."""
    return {
        "RECSYS_TRITON_ENVIRONMENT": str(ROOT / ".venv-serving"),
        "RECSYS_TRITON_REPOSITORY": str(work / "triton"),
        "RECSYS_LOOKUP_CLUSTER": str(work / "cluster"),
    }


def command(work: Path, *arguments: str | Path, columns: int = 200) -> str:
    """Output of a command on a terminal of a given width."""
    words = [str(RECSYS), *map(str, arguments)]
    environment = variables(work) | {"COLUMNS": f"{columns}"}
    done = subprocess.run(words, cwd=work, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained model in ``data/dlrm``; all of its rows are 0, so that changes show."""
    work = tmp_path_factory.mktemp("work")
    random = np.random.default_rng(0)
    model = work / "data" / "dlrm"
    network.write(model / NETWORK, SHAPE)
    shapes = SHAPE.layers()
    dense.write(
        model / DENSE,
        [(random.standard_normal(shape, np.float32) / 4, np.zeros(shape[1], np.float32)) for shape in shapes],
    )
    count = sum(SHAPE.slot_sizes)
    sparse.write(model / SPARSE, [(np.arange(count), np.zeros((count, 8), np.float32))])
    keys = random.integers(0, 20, (30, 26)) + np.array(SHAPE.offsets())
    features = random.random((30, 13), np.float32)
    np.savez(model / "sample.npz", dense=features, keys=keys)
    sparse.write(work / "changed", [(keys[0], random.standard_normal((26, 8)).astype(np.float32))])
    return work


@contextmanager
def served(work: Path) -> Iterator[None]:
    """``recsys dlrm serve`` in a terminal of its own."""
    ports = ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]
    process = subprocess.Popen(
        [str(RECSYS), "dlrm", "serve", *ports], cwd=work, env=variables(work), stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert "Triton serves 'dlrm'" in process.stdout.readline()
        yield
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


def hits(work: Path) -> dict[str, int]:
    """The counts of the only table."""
    counts: dict[str, int] = json.loads(command(work, "dlrm", "hits", "--json"))["dlrm.sparse_embedding0"]
    return counts


def test_from_configure_to_answers_updates_and_back(work: Path) -> None:
    assert "wrote data/dlrm/ps.json" in command(work, "dlrm", "configure")
    assert json.loads(command(work, "dlrm", "load", "--json")) == {"dlrm.sparse_embedding0": 520}
    assert "is there already" in command(work, "dlrm", "load")
    with served(work):
        before = json.loads(command(work, "dlrm", "infer", "--rows", "2", "--json"))["probability"]
        assert "trained model" in command(work, "dlrm", "infer", "--rows", "2")
        assert "26 rows of dlrm.sparse_embedding0 published" in command(work, "dlrm", "update", "changed")
        deadline = time.monotonic() + 10
        while (after := json.loads(command(work, "dlrm", "infer", "--rows", "2", "--json"))["probability"]) == before:
            assert time.monotonic() < deadline
        assert after[0] != before[0]
        for where in ("data/dlrm", "data/dlrm/sample.npz"):
            assert json.loads(command(work, "dlrm", "infer", where, "--rows", "2", "--json"))["probability"] == after
        deadline = time.monotonic() + 10
        while (counts := hits(work))["keys"] < 4 * 26:
            assert time.monotonic() < deadline
        assert counts["default"] == 0
        shown = command(work, "dlrm", "hits", columns=80)
        assert "in the cache" in shown
        assert "…" not in shown
        assert max(map(len, shown.splitlines())) <= 80
    assert "520 rows" in command(work, "dlrm", "dump", "dumped")
    dumped, changed = sparse.SparseModel(work / "dumped", 8), sparse.SparseModel(work / "changed", 8)
    rows = dict(zip(dumped.keys.tolist(), dumped.rows.tolist(), strict=True))
    for key, row in zip(changed.keys.tolist(), changed.rows.tolist(), strict=True):
        assert rows[key] == row
    assert "520 rows loaded" in command(work, "dlrm", "load", "--again")


@pytest.fixture
def in_work(recsys: Recsys, work: Path, monkeypatch: pytest.MonkeyPatch) -> Recsys:
    """Runs the command line in this process, in the folder with the trained model."""
    monkeypatch.chdir(work)
    monkeypatch.setenv("COLUMNS", "200")
    for name, value in own(work).items():
        monkeypatch.setenv(name, value)
    return recsys


def test_configure_writes_what_nvidias_container_wants(in_work: Recsys, work: Path) -> None:
    address = ("--address", "redis-1:6373,redis-2:6374")
    assert in_work("dlrm", "configure", "--hugectr", "nvidia", *address).code == 0
    assert 'backend: "hugectr"' in (work / "nvidia" / "config.pbtxt").read_text()
    document = json.loads((work / "nvidia" / "ps.json").read_text())
    assert document["volatile_db"]["address"] == "redis-1:6373,redis-2:6374"
    assert document["models"][0]["dense_file"] == "/model-data/dlrm/1/dlrm_dense.model"
    assert in_work("dlrm", "configure").code == 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("configure", "nowhere"), "no network file at nowhere/dlrm.json"),
        (("load", "nowhere/ps.json"), "cannot read nowhere/ps.json: No such file"),
        (("infer", "nowhere.npz"), "training leaves a sample.npz beside the model"),
        (("infer",), "is 'recsys dlrm serve' running\\?"),
        (("infer", "changed"), "cannot read changed/sample.npz: .*No such file"),
        (("hits", "--metrics-port", "1"), "is 'recsys dlrm serve' running\\?"),
        (("update", "nowhere"), "cannot read nowhere/key"),
        (("update", "changed", "--table", "other.table"), "there is no table 'other.table'"),
    ],
)
def test_what_goes_wrong_is_one_line(in_work: Recsys, work: Path, arguments: tuple[str, ...], reason: str) -> None:
    if not (work / "data" / "dlrm" / "ps.json").exists():
        assert in_work("dlrm", "configure").code == 0
    error = in_work("dlrm", *arguments).error()
    assert re.search(reason, error), error


def test_the_demonstration_shows_what_it_promises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("RECSYS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(demonstration, "ROWS", 30_000)
    monkeypatch.setattr(demonstration, "REQUESTS", 40)
    settings = load_settings(
        dlrm={"epochs": 1, "log": tmp_path / "dlrm.log"}, triton={"environment": ROOT / ".venv-serving"}
    ).model_copy(update={"data": tmp_path})
    shown = demonstration.demo(settings)
    cold, warm, dead = shown.phases
    assert shown.report["processes"] == 2
    assert shown.difference < 1e-5
    assert cold.counts.redis > 0
    assert warm.shares()["cache"] > cold.shares()["cache"]
    assert dead.counts.unreachable > 0
    assert dead.counts.default == 0
    assert shown.after != shown.before
    assert shown.update_ms < 1000
