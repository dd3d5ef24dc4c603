"""Other Python environments, Triton's and Merlin's, for those that run programs in them and for ``recsys setup``.

``located`` and ``require`` find an environment. ``interpreter``, ``make``, ``install`` and ``install_this`` make one,
whole or not at all. Both need ``home``, the folder in which environments are made, so both are here.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from ..errors import ConfigError, one_line
from .files import claimed
from .output_kinds import ENVIRONMENT, READY, UNFINISHED
from .progress import progress

DISTRIBUTION = "redis-recsys"
PIP = ("-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--progress-bar=off")
UNREACHABLE = re.compile(
    r"NewConnectionError|NameResolutionError|ConnectTimeout|Max retries|ProxyError|Connection broken"
)
MISSING = re.compile(r"No matching distribution found for (\S+)")


def located(environment: Path) -> Path:
    """The absolute path of an environment: in the working folder, beside the running environment, or where
    :func:`home` is.

    A notebook runs in its own folder, but ``.venv-serving`` means the one beside ``.venv``.

    Raises:
        ConfigError: it is half made.
    """
    here = Path(os.path.abspath(environment))
    places = (here, Path(sys.prefix).parent / environment, home() / environment)
    found = next((place for place in places if place.exists()), here)
    with suppress(OSError):
        verb = (found / UNFINISHED).read_text().splitlines()[0]
        raise ConfigError(f"the environment in {found} is half made: run '{verb}', or wait until it is through")
    return found


def require(environment: Path, verb: str) -> None:
    """Check that there is an environment, before something long begins that needs it in the end.

    Raises:
        ConfigError: there is none.
    """
    if not located(environment).exists():
        raise ConfigError(f"no Python environment in {environment}, which this needs: make it with '{verb}'")


def home() -> Path:
    """The folder in which environments are made: the checkout, or this version's folder in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return checkout() or cache / DISTRIBUTION / version()


def version() -> str:
    """The installed version of this library."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:  # a source folder on PYTHONPATH
        return "uninstalled"


def checkout() -> Path | None:
    """The folder out of which this library was installed with ``pip install -e``; None if it was not."""
    try:
        text = metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return None
    root = Path(__file__).parents[3]
    editable = json.loads(text or "{}").get("dir_info", {}).get("editable", False)
    return root if editable and (root / "pyproject.toml").is_file() else None


def interpreter(given: Path | None, versions: Sequence[tuple[int, int]], purpose: str) -> Path:
    """A Python of one of ``versions``: the given one, or else the running one, or else one on PATH.

    Args:
        given: Python that the user named.
        versions: accepted versions, the best first.
        purpose: purpose of the environment, for errors.

    Raises:
        ConfigError: there is none.
    """
    wanted = " or ".join(f"{major}.{minor}" for major, minor in sorted(versions))
    if given is not None:
        found = version_of(given)
        if found not in versions:
            raise ConfigError(f"{given} is Python {found[0]}.{found[1]}, and {purpose} needs {wanted}")
        return given
    if sys.version_info[:2] in versions:
        return Path(sys.executable)
    for major, minor in versions:
        program = shutil.which(f"python{major}.{minor}")
        with suppress(ConfigError):
            if program is not None and version_of(Path(program)) == (major, minor):
                return Path(program)
    raise ConfigError(
        f"{purpose} needs Python {wanted}, this one is {sys.version_info[0]}.{sys.version_info[1]} and no other is on "
        "PATH: install one and name it with --python"
    )


def version_of(python: Path) -> tuple[int, int]:
    """Major and minor version of a Python.

    Raises:
        ConfigError: it does not run.
    """
    try:
        command = [str(python), "-c", "import sys; print(*sys.version_info[:2])"]
        major, minor = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        raise ConfigError(f"{python} is no Python that runs: name another with --python") from error
    return int(major), int(minor)


def make(place: Path, python: Path, verb: str, contents: str, fill: Callable[[Path], None], again: bool) -> bool:
    """Make an environment, unless it is there. If anything goes wrong, everything is as it was before.

    An environment cannot be moved once it is made. So it is made in its place, with a mark that it is half made, which
    becomes the mark that it is ready in one step.

    Args:
        place: folder of the environment.
        python: Python to make it with.
        verb: command that makes it, named by errors about a half-made one.
        contents: text that differs whenever the environment would.
        fill: called with the Python of the new environment and installs everything.
        again: whether to make it again although it is ready.

    Returns:
        Whether it was made; False if it was there.

    Raises:
        ConfigError: it cannot be made.
        DataError: something else is there, or another run is making it.
    """
    mark = f"{verb}\n{contents}\n"
    if not again and _text(place / READY) == mark and (place / "bin" / "python").exists():
        return False
    with claimed(place, ENVIRONMENT) as place:
        old = place.parent / f".{place.name}.old"
        shutil.rmtree(old, ignore_errors=True)
        if (place / READY).exists():
            place.rename(old)
        shutil.rmtree(place, ignore_errors=True)
        try:
            place.mkdir(parents=True, exist_ok=True)
            (place / UNFINISHED).write_text(mark)
            _create(place, python)
            fill(place / "bin" / "python")
            (place / UNFINISHED).rename(place / READY)
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            if old.exists():
                old.rename(place)
            raise
        shutil.rmtree(old, ignore_errors=True)
    return True


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


def _create(place: Path, python: Path) -> None:
    output: list[str] = []
    if execute([python, "-m", "venv", place], output.append):
        said = "".join(output)
        if "ensurepip" in said or "No module named venv" in said:
            raise ConfigError(
                f"{python} cannot make environments, it lacks venv or ensurepip: install python3-venv (Debian, "
                "Ubuntu), or name another Python with --python"
            )
        raise ConfigError(f"{python} cannot make an environment in {place}: {one_line(said)[-300:]}")


def install(python: Path, description: str, *arguments: str | Path, total: int | None = None) -> None:
    """Install packages into the environment of a Python.

    Args:
        python: Python of the environment.
        description: text of the progress bar.
        arguments: arguments of ``pip install``.
        total: number of packages.

    Raises:
        ConfigError: pip fails.
    """
    output: list[str] = []
    with progress(description, total=total) as advance:

        def tell(line: str) -> None:
            output.append(line)
            advance(line.startswith(("Collecting ", "Requirement already satisfied")))

        failed = execute([python, *PIP, *arguments], tell)
    if failed:
        raise ConfigError(_reason("".join(output)))


def _reason(said: str) -> str:
    """The reason for which pip failed, in one line."""
    if "No module named pip" in said:
        return "this environment has no pip: run 'python -m ensurepip', and then the same again"
    if "No space left" in said:
        return "the disk is full: nothing was kept; free some space and run again"
    if UNREACHABLE.search(said):
        return "packages cannot be fetched: look at the network, or set PIP_INDEX_URL, and run the same again"
    if found := MISSING.search(said):
        return f"there is no {found[1]} for this Python and this machine, or not in the package index that pip uses"
    errors = [line.removeprefix("ERROR: ") for line in said.splitlines() if line.startswith(("ERROR: ", "error: "))]
    return f"pip failed: {(errors or said.splitlines()[-1:] or ['it said nothing'])[0]}"


def install_this(python: Path) -> None:
    """Install this very library, without what it needs, into the environment of a Python.

    In a checkout, so that changes are seen there, too. Else as a copy of the installed files: the wheel that they came
    from need not exist any more.

    Raises:
        ConfigError: pip fails.
    """
    source = checkout()
    if source is not None:
        install(python, "installing redis-recsys", "--no-deps", "-e", source)
        return
    files = metadata.files(DISTRIBUTION) if version() != "uninstalled" else None
    if not files:
        raise ConfigError("this library is not installed: run 'pip install' on its wheel or checkout first")
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    target = Path(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip())
    for file in files:
        if ".." not in file.parts and file.suffix != ".pyc":  # what lies outside is the command
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(str(file.locate()), target / file)


def execute(command: Sequence[str | Path], tell: Callable[[str], object]) -> int:
    """Run a program, which ends with the call, and hand over each line that it prints; returns its exit code."""
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONHOME", "PYTHONPATH")}
    process = subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=variables | {"PYTHONUNBUFFERED": "1"},
        start_new_session=True,  # Ctrl-C is for this process, which then ends the program
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            tell(line)
        return process.wait()
    except BaseException:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    finally:
        process.stdout.close()


def externally_managed() -> bool:
    """Whether the system's package manager alone may add packages to the running Python (PEP 668)."""
    marker = Path(sysconfig.get_path("stdlib")) / "EXTERNALLY-MANAGED"
    return sys.prefix == sys.base_prefix and marker.exists()
