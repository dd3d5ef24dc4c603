"""An example's containers, as the tests use them."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from engine import ROOT, CommandError, Engine

PICTURES = ROOT / "build/compose"
RECSYS = ROOT / ".venv-compose/bin/recsys"
LABEL = "label=com.docker.compose.project"


def until(happens: Callable[[], Any], seconds: float, what: str) -> Any:
    """What the function returns, once that is true."""
    end = time.monotonic() + seconds
    while not (result := happens()):
        assert time.monotonic() < end, what
        time.sleep(0.5)
    return result


class Stack:
    """The containers of a compose file; they and what they wrote go with the block.

    Example:
        >>> with Stack(engine, "multi-stage") as stack:  # doctest: +SKIP
        ...     stack.up("jupyter")
    """

    def __init__(self, engine: Engine, example: str, file: str = "docker-compose.yml", **settings: str) -> None:
        """
        Args:
            engine: to run them.
            example: folder of the example.
            file: in that folder.
            settings: for ``.env``, beyond the password of Redis, which is drawn.
        """
        self.engine, self.example, self.file = engine, example, file
        self.project = f"test-{example}"  # which is not what its users have
        self.password = secrets.token_hex(24)
        self.settings = {"REDIS_PASSWORD": self.password, **settings}

    def __enter__(self) -> Stack:
        text = "".join(f"{name}={value}\n" for name, value in self.settings.items())
        self.engine.run(f"printf %s {shlex.quote(text)} > {self.folder}/.env")
        return self

    def __exit__(self, *_: object) -> None:
        self.compose("--profile '*' down --volumes --timeout 30")
        self.engine.run(f"rm {self.folder}/.env")

    @property
    def folder(self) -> str:
        return f"{self.engine.checkout}/{self.example}"

    def compose(self, command: str) -> str:
        """What ``docker compose`` prints; CommandError if it ends with another code than 0."""
        return self.engine.run(f"cd {self.folder} && docker compose -p {self.project} -f {self.file} {command}")

    def up(self, *names: str) -> None:
        """Start everything, and wait for the health of some services."""
        self.compose("up --detach")
        self.healthy(*names)

    def services(self) -> dict[str, dict[str, Any]]:
        """Service -> what is known of its container."""
        lines = self.compose("ps --all --format json").splitlines()
        return {each["Service"]: each for each in map(json.loads, lines)}

    def healthy(self, *names: str, seconds: float = 120) -> None:
        """Wait for the health of services."""

        def well() -> bool:
            found = self.services()
            return all(found.get(name, {}).get("Health") == "healthy" for name in names)

        try:
            until(well, seconds, f"{names} are not healthy")
        except AssertionError:
            raise AssertionError(self.compose("ps --all") + self.compose("logs --tail 40")) from None

    def link(self, service: str = "jupyter") -> str:
        """To JupyterLab, as its log prints it."""
        log = self.compose(f"logs --no-log-prefix {service}")
        found = re.findall(r"http://127\.0\.0\.1:\d+/\S+\?token=\w+", log)
        assert found, log
        return str(found[-1])

    def run_notebook(self, name: str, seconds: float, link: str = "", service: str = "jupyter") -> dict[str, Any]:
        """Run a notebook in a browser; what it then is on disk.

        Args:
            name: of the notebook, in the example's folder.
            seconds: that it may take.
            link: that opens it; else the one that the log prints is used.
            service: whose JupyterLab it is.
        """
        PICTURES.mkdir(parents=True, exist_ok=True)
        cells = code_cells(json.loads((ROOT / self.example / name).read_text()))
        picture = PICTURES / f"{Path(name).stem}-{service}.png"
        script = Path(__file__).with_name("browser.py")
        try:
            self.engine.beside(
                sys.executable, script, link or self.link(service), str(len(cells)), picture, str(seconds)
            )
        except CommandError as error:
            raise AssertionError(f"{name}, see {picture}: {error}") from None
        ran = self.notebook(name, service)
        assert [cell["execution_count"] for cell in code_cells(ran)] == list(range(1, len(cells) + 1))
        outputs = [output for cell in code_cells(ran) for output in cell["outputs"]]
        assert not [output for output in outputs if output["output_type"] == "error"]
        return ran

    def notebook(self, name: str, service: str = "jupyter") -> dict[str, Any]:
        """As it is in the container."""
        path = f"/home/recsys/{self.example}/{name}"
        ran: dict[str, Any] = json.loads(self.compose(f"exec -T {service} cat {shlex.quote(path)}"))
        return ran

    def library(self, *arguments: str, **settings: str) -> str:
        """What ``recsys`` prints outside of the containers, with the address and password of their Redis."""
        known = {"RECSYS_REDIS_HOST": "127.0.0.1", "RECSYS_REDIS_PASSWORD": self.password}
        return self.engine.beside(RECSYS, *arguments, **{**known, "RECSYS_TRITON_HOST": "127.0.0.1", **settings})

    def left(self) -> str:
        """What Docker still has of the project."""
        kinds = ("ps --all", "network ls", "volume ls")
        return "".join(self.engine.run(f"docker {kind} --quiet --filter {LABEL}={self.project}") for kind in kinds)


@contextlib.contextmanager
def container(engine: Engine, options: str, command: str) -> Iterator[None]:
    """A container of Redis' image beside those of an example."""
    engine.run(f"docker run --detach --name beside {options} redis:8 {command}")
    try:
        yield
    finally:
        engine.run("docker rm --force beside")


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
