"""Process of the Merlin environment: its start, its events, and its end."""

from __future__ import annotations

import json
import signal
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ...config import MerlinSettings
from ...embedded.process import kill, spawn
from ...errors import ConfigError, TrainingError
from ...utils.environments import located
from ...utils.files import disk_error
from ...utils.progress import console

# The Merlin environment sees only the trainers' folder of this package, under another name: the package may be
# installed beside libraries that must not get into that environment.
BOOT = """
import runpy, sys, types
package = types.ModuleType("recsys_trainers")
package.__path__ = [sys.argv.pop(1)]
sys.modules["recsys_trainers"] = package
runpy.run_module("recsys_trainers.merlin.worker", run_name="__main__", alter_sys=True)
"""
LAST_LINES = 20  # lines of the log from which an error quotes the last


class Worker:
    """Run of the worker; iterate over it for its events.

    Example:
        >>> with Worker(settings, "convert", export, folder) as worker:  # doctest: +SKIP
        ...     for event in worker: print(event)
    """

    def __init__(self, settings: MerlinSettings, verb: str, *arguments: Path) -> None:
        """Start the worker.

        Raises:
            ConfigError: there is no Merlin environment.
            DataError: the log cannot be written.
        """
        self._verb, self._log = verb, settings.log
        home = Path(__file__).parents[1]
        paths = [str(Path(argument).absolute()) for argument in arguments]
        command = [str(interpreter(settings)), "-c", BOOT, str(home), verb, *paths]
        try:
            settings.log.parent.mkdir(parents=True, exist_ok=True)
            with settings.log.open("wb") as log:
                self._process = spawn(command, log, listen=True)
        except OSError as error:
            raise disk_error(error, settings.log) from error

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield events until the worker ends, and warn of versions that differ from the pins.

        Raises:
            TrainingError: the worker failed.
        """
        problem = None
        output: IO[bytes] | None = self._process.stdout
        assert output is not None
        for line in output:
            event = json.loads(line)
            if event["event"] == "error":
                problem = event["message"]
            elif event["event"] == "drift":
                console.print(f"[yellow]warning:[/] {event['message']}", highlight=False)
            else:
                yield event
        code = self._process.wait()
        if code:
            raise TrainingError(f"Merlin {self._verb} failed: {problem or self._reason(code)} (see {self._log})")

    def finish(self) -> None:
        """Wait for the end of the worker, and print how long each step took.

        Raises:
            TrainingError: the worker failed.
        """
        for event in self:
            if event["event"] == "end":
                tell(event)

    def close(self) -> None:
        """Kill the worker if it still runs."""
        kill(self._process)

    def _reason(self, code: int) -> str:
        if code == -signal.SIGKILL:
            return "its process was killed, most likely for want of memory: use fewer rows or smaller batches"
        if code < 0:
            return f"its process was ended by {signal.Signals(-code).name}"
        with self._log.open(errors="replace") as log:
            lines = [line.strip() for line in deque(log, LAST_LINES) if line.strip()]
        return lines[-1] if lines else f"it ended with code {code}"


def tell(event: dict[str, Any]) -> None:
    """Print the end of a step."""
    console.print(f"merlin {event['step']}: {event['seconds']:.1f} s", highlight=False)


def interpreter(settings: MerlinSettings) -> Path:
    """Path of the Merlin environment's Python.

    Raises:
        ConfigError: there is no such environment.
    """
    path = located(settings.environment)
    python = path / "bin" / "python" if path.is_dir() else path
    if not python.exists():
        raise ConfigError(
            f"no Merlin environment in {settings.environment}: make it with 'recsys setup merlin', or set "
            "RECSYS_MERLIN_ENVIRONMENT"
        )
    return python
