"""``recsys setup``, and the wheel that it works from."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from tests.support.commands import Recsys, good
from tests.support.paths import ROOT

INSTALL = """
import subprocess, sys
from pathlib import Path
from redis_recsys.cli import setup
from redis_recsys.utils import environments
assert environments.checkout() is None
environments.install_this(Path(sys.argv[1]))
print(environments.home(), setup.SERVING.exists(), setup.MERLIN.exists(), setup.TORCHREC.exists())
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of what it is made of and nothing else."""
    copy = tmp_path_factory.mktemp("copy")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", copy / "wheel", copy]
    subprocess.run(command, check=True, capture_output=True)
    (built,) = (copy / "wheel").iterdir()
    return built


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("redis_recsys/")}
    tracked = subprocess.run(
        ["git", "ls-files", "src/redis_recsys"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert packed == {name.removeprefix("src/") for name in tracked.stdout.splitlines() if (ROOT / name).exists()}


def test_a_wheel_installs_itself_into_another_environment(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    python = tmp_path / "env" / "bin" / "python"
    variables = os.environ | {"PYTHONPATH": str(tmp_path / "site"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", INSTALL, python], cwd=tmp_path, env=variables, capture_output=True, text=True
    )
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert done.stdout == f"{tmp_path / 'cache' / 'redis-recsys' / version} True True True\n", done.stderr
    shutil.rmtree(tmp_path / "site")
    code = "import importlib.metadata as m, redis_recsys.errors as e; print(m.version('redis-recsys'), e.__file__)"
    done = subprocess.run([python, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.startswith(f"{version} {tmp_path / 'env'}"), done.stderr


def test_the_version_is_the_projects(recsys: Recsys) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert good(recsys("--version")) == f"{version}\n"


@pytest.mark.parametrize("verb", ["serving", "merlin"])
def test_another_version_of_python_is_refused(recsys: Recsys, tmp_path: Path, verb: str) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 3 9\n")
    python.chmod(0o755)
    said = recsys("setup", verb, "--environment", "env", "--python", python).error()
    assert f"{python} is Python 3.9, and the {verb if verb == 'serving' else 'Merlin'} environment needs 3.1" in said
    assert not (tmp_path / "env").exists()


@pytest.mark.parametrize("verb", ["serving", "merlin"])
def test_another_machine_is_refused(recsys: Recsys, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert "packages exist for Linux on x86_64" in recsys("setup", verb, "--environment", "env").error()


@pytest.mark.parametrize(("libc", "there"), [(("glibc", "2.31"), "glibc 2.31"), (("", ""), "another libc")])
def test_an_older_libc_is_refused(
    recsys: Recsys, monkeypatch: pytest.MonkeyPatch, libc: tuple[str, str], there: str
) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: libc)
    said = recsys("setup", "serving", "--environment", "env").error()
    assert f"need glibc 2.35 or newer, this machine has {there}: use a container" in said


def test_what_is_installed_already_stays(recsys: Recsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    assert "TorchRec is ready" in good(recsys("setup", "torchrec"))


def test_torchrec_without_pytorch_is_refused(recsys: Recsys, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "version", missing)
    assert "TorchRec needs PyTorch: install 'redis-recsys[train]'" in recsys("setup", "torchrec").error()


@pytest.mark.parametrize("verb", [("demo",), ("dlrm", "demo")], ids=" ".join)
def test_a_demonstration_says_at_once_that_its_environment_is_missing(
    recsys: Recsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: tuple[str, ...]
) -> None:
    monkeypatch.setenv("RECSYS_TRITON_ENVIRONMENT", "nowhere")
    assert "make it with 'recsys setup serving'" in recsys(*verb).error()
    assert not list(tmp_path.iterdir())
