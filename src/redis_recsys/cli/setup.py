"""``recsys setup``: the Python environments of Triton and of Merlin, and TorchRec."""

from __future__ import annotations

import hashlib
import platform
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

from ..config import MerlinSettings, Settings, TritonSettings
from ..errors import ConfigError, TrainingError
from .app import app, out
from .options import options

setup = typer.Typer(
    help="Set up what needs an installation of its own: Triton, Merlin, TorchRec.", no_args_is_help=True
)
app.add_typer(setup, name="setup")

PACKAGE = Path(__file__).parents[1]
SERVING = PACKAGE / "triton" / "requirements.txt"
MERLIN = PACKAGE / "trainers" / "merlin" / "requirements.txt"
TORCHREC = PACKAGE / "trainers" / "torchrec" / "requirements.txt"
# NumPy 1.26, which the stub of Triton's Python backend needs, has no wheel for Python 3.13.
SERVING_PYTHONS = ((3, 11), (3, 12))
MERLIN_PYTHONS = ((3, 11), (3, 10))
GLIBC = (2, 35)  # of nvidia-pytriton's wheel
TORCHREC_PYTHONS = ((3, 11), (3, 12), (3, 13))

Python = Annotated[
    Path | None, typer.Option(help="Python to make it with (default: the running one, or else a fitting one on PATH)")
]
Again = Annotated[bool, typer.Option("--again", help="make it anew, although it is ready")]


@setup.command()
@options("triton.environment")
def serving(settings: Settings, python: Python = None, again: Again = False) -> None:
    """Make the environment of Triton and its models: Linux, Python 3.11 or 3.12, about a minute.

    In a checkout it is .venv-serving there, else it lies in the user's cache folder, or where --environment or
    RECSYS_TRITON_ENVIRONMENT says. One that is ready stays; one that fails leaves nothing behind.
    """
    from ..utils.environments import checkout, install, install_this, version

    def fill(made: Path) -> None:
        install(made, "installing packages", "--only-binary=:all:", "-r", SERVING, total=len(_pins(SERVING)))
        install_this(made)

    _check_machine("Triton", "x86_64", "aarch64")
    _check_glibc("Triton", GLIBC)
    contents = _digest(SERVING, f"{checkout() or version()}")
    _set_up("serving", settings.triton, SERVING_PYTHONS, python, contents, fill, again)


@setup.command()
@options("merlin.environment")
def merlin(settings: Settings, python: Python = None, again: Again = False) -> None:
    """Make the environment of NVIDIA Merlin and try it out: Linux on x86-64, Python 3.10 or 3.11, 2.3 GB, two minutes.

    In a checkout it is .venv-merlin there, else it lies in the user's cache folder, or where --environment or
    RECSYS_MERLIN_ENVIRONMENT says. One that is ready stays; one that fails leaves nothing behind.
    """
    from tempfile import TemporaryDirectory

    from ..trainers.merlin.worker_process import Worker
    from ..utils.environments import install
    from ..utils.progress import step

    def fill(made: Path) -> None:
        # All packages by name, without looking at what they say they need: TensorFlow 2.12 and Feast 0.31 contradict
        # each other there, and yet they work together.
        install(made, "installing packages", "--no-deps", "-r", MERLIN, total=len(_pins(MERLIN)))
        with step("train with Merlin on a few rows"), TemporaryDirectory(prefix="recsys-setup-") as folder:
            log = Path(folder) / "merlin.log"
            try:
                with Worker(MerlinSettings(environment=made, log=log), "check") as worker:
                    worker.finish()
            except TrainingError as error:
                raise TrainingError(f"{error}".partition(" (see ")[0]) from error

    _check_machine("Merlin", "x86_64")
    _set_up("Merlin", settings.merlin, MERLIN_PYTHONS, python, _digest(MERLIN, ""), fill, again)


@setup.command()
def torchrec() -> None:
    """Add TorchRec to the running environment, for 'recsys dlrm train': Linux on x86-64. What is there stays."""
    from ..utils.environments import execute, externally_managed, install, interpreter
    from ..utils.progress import step

    pins = _pins(TORCHREC)
    if all(_installed(name) == pinned for name, pinned in pins.items()):
        out.print(f"TorchRec is ready in {sys.prefix}", highlight=False)
        return
    _check_machine("TorchRec", "x86_64")
    python = interpreter(Path(sys.executable), TORCHREC_PYTHONS, "TorchRec")
    torch = _installed("torch")
    if torch is None:
        raise ConfigError("TorchRec needs PyTorch: install 'redis-recsys[train]' into this environment first")
    if externally_managed():
        raise ConfigError(f"{sys.prefix} belongs to the system: install this library into an environment of its own")
    with step(f"add TorchRec to {sys.prefix}"):
        # Without looking at what they say they need: that would be builds of PyTorch for GPUs.
        install(python, "installing packages", "--no-deps", "-r", TORCHREC, total=len(pins))
        said: list[str] = []
        if execute([python, "-c", "import torchrec"], said.append):
            raise ConfigError(f"TorchRec {pins['torchrec']} does not load with PyTorch {torch}: {said[-1].strip()}")
    out.print(f"TorchRec is ready in {sys.prefix}", highlight=False)


def _set_up(
    name: str,
    section: TritonSettings | MerlinSettings,
    versions: Sequence[tuple[int, int]],
    python: Path | None,
    contents: str,
    fill: Callable[[Path], None],
    again: bool,
) -> None:
    """Make an environment unless it is ready, and print which of both it was.

    Args:
        name: name of the environment; in small letters, the verb of ``recsys setup``.
        section: settings with its folder.
        versions: accepted versions of Python, the best first.
        python: Python that the user named.
        contents, fill, again: see :func:`redis_recsys.utils.environments.make`.
    """
    from ..utils.environments import interpreter, make, version_of
    from ..utils.progress import step

    chosen = interpreter(python, versions, f"the {name} environment")
    place = _place(section)
    there = place / "bin" / "python"
    of_another = python is not None and there.exists() and version_of(there) != version_of(python)
    with step(f"set up {place}"):
        made = make(place, chosen, f"recsys setup {name.lower()}", contents, fill, again or of_another)
    out.print(f"{place} is {'made' if made else 'ready'}", highlight=False, soft_wrap=True)


def _check_machine(name: str, *machines: str) -> None:
    if platform.system() != "Linux" or platform.machine() not in machines:
        raise ConfigError(
            f"{name}'s packages exist for Linux on {' and '.join(machines)} only, this is {platform.system()} on "
            f"{platform.machine()}: use a container, see docker/Dockerfile"
        )


def _check_glibc(name: str, least: tuple[int, int]) -> None:
    family, found = platform.libc_ver()
    if family != "glibc" or tuple(map(int, found.split(".")[:2])) < least:
        raise ConfigError(
            f"{name}'s packages need glibc {'.'.join(map(str, least))} or newer, this machine has "
            f"{f'{family} {found}'.strip() or 'another libc'}: use a container, see docker/Dockerfile"
        )


def _place(section: TritonSettings | MerlinSettings) -> Path:
    """The folder of an environment: where the setting says, or else the one of this installation."""
    from ..utils.environments import home

    if "environment" in section.model_fields_set:
        return section.environment.absolute()
    return home() / type(section).model_fields["environment"].default


def _pins(requirements: Path) -> dict[str, str]:
    """Package -> version, of a list of requirements."""
    lines = (line.partition("==") for line in requirements.read_text().splitlines() if not line.startswith("#"))
    return {name: pinned for name, _, pinned in lines}


def _digest(requirements: Path, library: str) -> str:
    """A text that differs when an environment of these would."""
    return hashlib.sha256(f"{_pins(requirements)} {library}".encode()).hexdigest()


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
