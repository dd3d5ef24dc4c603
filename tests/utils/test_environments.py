"""Environments: where they are found, and that they are made whole or not at all."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from redis_recsys.errors import ConfigError, DataError
from redis_recsys.utils import environments
from redis_recsys.utils.environments import install, interpreter, located, make, require
from redis_recsys.utils.output_kinds import READY, UNFINISHED

VERB = "recsys setup serving"
# Stands for `python -m venv PLACE`, which takes seconds.
VENV = f'mkdir -p "$3/bin" && ln -s {sys.executable} "$3/bin/python"'

Program = Callable[..., Path]


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """Makes a shell script."""

    def make(text: str, name: str = "python") -> Path:
        path = tmp_path / "programs" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return path

    return make


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without a checkout, with a working folder and an environment of their own."""
    monkeypatch.setattr(environments, "checkout", lambda: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "project" / ".venv"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def nothing(python: Path) -> None:
    """Install nothing."""


def test_an_environment_is_looked_for_here_then_beside_the_running_one_then_in_the_cache(elsewhere: Path) -> None:
    name = Path(".venv-serving")
    cache = elsewhere / "cache" / "redis-recsys" / environments.version() / name
    places = [cache, elsewhere / "project" / name, elsewhere / "work" / name]
    assert located(name) == places[-1]
    with pytest.raises(ConfigError, match=r"no Python environment in \.venv-serving.* make it with 'recsys setup"):
        require(name, VERB)
    for place in places:
        place.mkdir(parents=True)
        assert located(name) == place
    require(name, VERB)
    assert located(elsewhere / "other") == elsewhere / "other"


def test_one_that_is_half_made_is_not_taken_for_ready(elsewhere: Path) -> None:
    place = elsewhere / "work" / ".venv-serving"
    place.mkdir()
    (place / UNFINISHED).write_text(f"{VERB}\nx\n")
    with pytest.raises(ConfigError, match="is half made: run 'recsys setup serving'"):
        located(Path(".venv-serving"))


def test_it_is_made_once_and_again_when_its_contents_change(tmp_path: Path, program: Program) -> None:
    place, made = tmp_path / "env", []

    def fill(python: Path) -> None:
        assert (place / UNFINISHED).exists()
        assert not (place / READY).exists()
        made.append(python)

    python = program(VENV)
    assert make(place, python, VERB, "1", fill, False)
    assert not make(place, python, VERB, "1", fill, False)
    assert make(place, python, VERB, "2", fill, False)
    assert make(place, python, VERB, "2", fill, True)
    (place / "bin" / "python").unlink()
    assert make(place, python, VERB, "2", fill, False)
    assert made == [place / "bin" / "python"] * 4
    assert not (place / UNFINISHED).exists()
    assert sorted(os.listdir(tmp_path)) == ["env", "programs"]


@pytest.mark.parametrize("error", [ConfigError("pip failed"), KeyboardInterrupt()], ids=["failed", "interrupted"])
@pytest.mark.parametrize("before", [False, True], ids=["none", "one before"])
def test_if_it_cannot_be_made_everything_is_as_before(
    tmp_path: Path, program: Program, error: BaseException, before: bool
) -> None:
    place = tmp_path / "env"
    if before:
        make(place, program(VENV), VERB, "1", nothing, False)

    def fail(python: Path) -> None:
        raise error

    with pytest.raises(type(error)):
        make(place, program(VENV), VERB, "2", fail, False)
    assert sorted(os.listdir(tmp_path)) == (["env", "programs"] if before else ["programs"])
    if before:
        assert not make(place, program(VENV), VERB, "1", nothing, False)


def test_one_whose_maker_was_killed_is_made_anew(tmp_path: Path, program: Program) -> None:
    place = tmp_path / "env"
    place.mkdir()
    (place / UNFINISHED).write_text(f"{VERB}\n1\n")
    (place / "half").touch()
    assert make(place, program(VENV), VERB, "1", nothing, False)
    assert sorted(os.listdir(place)) == [READY, "bin"]


def test_a_folder_of_somebody_elses_stays(tmp_path: Path, program: Program) -> None:
    (tmp_path / "env" / "bin").mkdir(parents=True)
    (tmp_path / "env" / "bin" / "python").touch()
    with pytest.raises(DataError, match="exists and is not an environment of 'recsys setup'"):
        make(tmp_path / "env", program(VENV), VERB, "1", nothing, True)
    assert (tmp_path / "env" / "bin" / "python").exists()


def test_a_python_without_ensurepip_is_named(tmp_path: Path, program: Program) -> None:
    python = program("echo 'not created successfully because ensurepip is not available'; exit 1")
    with pytest.raises(ConfigError, match="lacks venv or ensurepip: install python3-venv"):
        make(tmp_path / "env", python, VERB, "1", nothing, False)
    assert not (tmp_path / "env").exists()


def test_the_python_is_the_given_one_or_the_running_one_or_one_on_the_path(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = program("echo 3 10", "python3.10")
    monkeypatch.setenv("PATH", str(other.parent))
    running = sys.version_info[:2]
    assert interpreter(None, [running, (3, 10)], "it") == Path(sys.executable)
    assert interpreter(None, [(3, 9), (3, 10)], "it") == other
    assert interpreter(other, [(3, 10)], "it") == other
    with pytest.raises(ConfigError, match=r"python3\.10 is Python 3\.10, and it needs 3\.11 or 3\.12"):
        interpreter(other, [(3, 12), (3, 11)], "it")
    with pytest.raises(ConfigError, match=r"it needs Python 3\.8, this one is 3\.1\d and no other is on PATH"):
        interpreter(None, [(3, 8)], "it")
    with pytest.raises(ConfigError, match="nowhere is no Python that runs"):
        interpreter(Path("nowhere"), [running], "it")


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("Retrying after NewConnectionError\nERROR: No matching distribution found for a==1", "look at the network"),
        ("ERROR: No matching distribution found for a==1", "there is no a==1 for this Python and this machine"),
        ("ERROR: [Errno 28] No space left on device", "the disk is full"),
        ("/x/python: No module named pip", "has no pip: run 'python -m ensurepip'"),
        ("Collecting a\nERROR: wheel is broken\nnote: bla", "pip failed: wheel is broken"),
        ("", "pip failed: it said nothing"),
    ],
)
def test_the_reason_for_which_pip_failed_is_one_line(program: Program, said: str, reason: str) -> None:
    python = program(f"cat <<'END'\n{said}\nEND\nexit 1" if said else "exit 1")
    with pytest.raises(ConfigError) as caught:
        install(python, "installing", "a")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
