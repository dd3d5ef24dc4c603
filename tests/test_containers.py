"""Programs that containers start: the one that copies notebooks, and the check that runs before the others.

The containers themselves are run by `make compose-test`.
"""

from __future__ import annotations

import os
import subprocess
from datetime import date
from pathlib import Path

import pytest

from redis_recsys.embedded.redis_server import EmbeddedRedis
from redis_recsys.utils import machine
from redis_recsys.utils.machine import memory
from tests.support.commands import Outcome, Recsys, good
from tests.support.paths import ROOT

START = ROOT / "docker" / "start-jupyter.sh"
GIB = 1 << 30


class Container:
    """A home, an image's examples, and a program in place of JupyterLab that prints its arguments."""

    def __init__(self, folder: Path) -> None:
        self.home, self.examples = folder / "home", folder / "examples"
        self.mine = self.home / "one"
        for each in (self.mine, self.examples / "one" / "deeper", folder / "bin"):
            each.mkdir(parents=True)
        program = folder / "bin" / "jupyter"
        program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
        program.chmod(0o755)

    def start(self, **files: str) -> list[str]:
        """Start with an image that has these files, and return the output."""
        for name, text in files.items():
            (self.examples / "one" / name.replace("__", "/").replace("_", ".")).write_text(text)
        settings = {"HOME": str(self.home), "EXAMPLES": str(self.examples), "NOTEBOOK": "one/a.ipynb"}
        path = f"{self.home.parent / 'bin'}:{os.environ['PATH']}"
        environment = {**settings, "PATH": path, "JUPYTER_PORT": "8899"}
        done = subprocess.run([START], env=environment, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    def files(self) -> dict[str, str]:
        found = (path for path in self.mine.rglob("*") if path.is_file() and ".came" not in str(path))
        return {str(path.relative_to(self.mine)): path.read_text() for path in found}


@pytest.fixture
def container(tmp_path: Path) -> Container:
    return Container(tmp_path)


def test_jupyterlab_opens_on_the_notebook_which_is_put_in_its_place(container: Container) -> None:
    said = container.start(a_ipynb="1", deeper__b_py="x")
    assert said[:3] == ["lab", "--no-browser", "--ip=0.0.0.0"]
    assert {"--port=8899", "--LabApp.default_url=/lab/tree/one/a.ipynb"} <= set(said)
    assert container.files() == {"a.ipynb": "1", "deeper/b.py": "x"}


def test_what_was_run_stays_over_a_start(container: Container) -> None:
    container.start(a_ipynb="1")
    (container.mine / "a.ipynb").write_text("1 and its results")
    container.start()
    assert container.files() == {"a.ipynb": "1 and its results"}


def test_a_newer_notebook_replaces_one_that_nobody_touched(container: Container) -> None:
    container.start(a_ipynb="1", deeper__b_py="x")
    container.start(a_ipynb="2")
    assert container.files() == {"a.ipynb": "2", "deeper/b.py": "x"}


def test_a_newer_notebook_leaves_one_that_was_run_under_another_name(container: Container) -> None:
    container.start(a_ipynb="1", deeper__b_py="x")
    (container.mine / "a.ipynb").write_text("1 and its results")
    said = container.start(a_ipynb="2")
    kept = f"a (yours until {date.today()}).ipynb"
    assert said[0] == f"one/a.ipynb is newer in this image; yours is kept as {kept}"
    assert container.files() == {"a.ipynb": "2", kept: "1 and its results", "deeper/b.py": "x"}
    container.start()
    assert container.files()[kept] == "1 and its results"


def test_the_check_says_what_is_there(recsys: Recsys) -> None:
    assert "GiB of memory, a Redis of its own will be started" in good(recsys("check"))


def refused(outcome: Outcome) -> str:
    assert outcome.code == 1
    assert outcome.err.count("\n") == 1
    return outcome.err


def test_the_check_refuses_too_little_memory(recsys: Recsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "limit").write_text(f"{3 * GIB}\n")
    monkeypatch.setattr(machine, "LIMITS", (tmp_path / "none", tmp_path / "limit"))
    assert "there are 3.0 GiB of memory and 4 GiB are needed: raise" in refused(recsys("check", "--memory", 4))
    good(recsys("check", "--memory", 3))


def test_the_check_asks_redis(recsys: Recsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with EmbeddedRedis(tmp_path / "redis") as server:
        monkeypatch.setenv("RECSYS_REDIS_PASSWORD", server.password)
        said = good(recsys("check", "--host", server.host, "--port", server.port))
        assert f"Redis at {server.host}:{server.port} takes the login" in said
        monkeypatch.setenv("RECSYS_REDIS_PASSWORD", "wrong")
        said = refused(recsys("check", "--host", server.host, "--port", server.port))
        assert f"Redis at {server.host}:{server.port} refuses the login" in said


def test_memory_is_that_of_the_machine_unless_there_is_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "limit").write_text("max\n")
    monkeypatch.setattr(machine, "LIMITS", (tmp_path / "limit",))
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert memory() == pytest.approx(total, rel=0.01)
    (tmp_path / "limit").write_text(f"{2 * GIB}")
    assert memory() == 2 * GIB
