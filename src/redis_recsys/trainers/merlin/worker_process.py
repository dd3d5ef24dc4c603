"""The Merlin environment as a process: started, listened to, and ended from here."""

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

# The trainers' folder is the only code of ours that the Merlin environment sees, and by another name: this package
# may be installed beside libraries that must not get into that environment.
BOOT = """
import runpy, sys, types
package = types.ModuleType("recsys_trainers")
package.__path__ = [sys.argv.pop(1)]
sys.modules["recsys_trainers"] = package
runpy.run_module("recsys_trainers.merlin.worker", run_name="__main__", alter_sys=True)
"""
SAID = 20  # last lines of the log that an error may quote


class Worker:
    """A run of the worker; iterate over it for its events.

    Example:
        >>> with Worker(settings, "convert", export, folder) as worker:  # doctest: +SKIP
        ...     for event in worker: print(event)
    """

    def __init__(self, settings: MerlinSettings, verb: str, *arguments: Path) -> None:
        """Start it.

        Raises:
            ConfigError: there is no Merlin environment.
            DataError: its log cannot be written.
        """
        self._verb, self._log = verb, settings.log
        home = Path(__file__).parents[1]
        paths = [str(Path(each).absolute()) for each in arguments]
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
        """Events until the worker ends; versions that drift from the pins are told here.

        Raises:
            TrainingError: it did not end well.
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
        """Wait for its end, and tell how long each step took.

        Raises:
            TrainingError: it did not end well.
        """
        for event in self:
            if event["event"] == "end":
                tell(event)

    def close(self) -> None:
        """End it, if it still runs."""
        kill(self._process)

    def _reason(self, code: int) -> str:
        if code == -signal.SIGKILL:
            return "its process was killed, most likely for want of memory: use fewer rows or smaller batches"
        if code < 0:
            return f"its process was ended by {signal.Signals(-code).name}"
        with self._log.open(errors="replace") as log:
            said = [line.strip() for line in deque(log, SAID) if line.strip()]
        return said[-1] if said else f"it ended with code {code}"


def tell(event: dict[str, Any]) -> None:
    """Show that a step has ended."""
    console.print(f"merlin {event['step']}: {event['seconds']:.1f} s", highlight=False)


def interpreter(settings: MerlinSettings) -> Path:
    """The Python of the Merlin environment.

    Raises:
        ConfigError: there is none.
    """
    path = located(settings.environment)
    python = path / "bin" / "python" if path.is_dir() else path
    if not python.exists():
        raise ConfigError(
            f"no Merlin environment in {settings.environment}: make it with 'recsys setup merlin', or set "
            "RECSYS_MERLIN_ENVIRONMENT"
        )
    return python
