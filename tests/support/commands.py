"""Helpers that run verbs of the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """Result of a command."""

    code: int
    out: str
    err: str

    def error(self) -> str:
        """The one line that a failed command must leave on stderr."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert self.code not in (0, None), self
        assert len(lines) == 1, self
        assert self.err.splitlines()[-1] == lines[0], self
        assert "Traceback" not in self.err + self.out, self
        return lines[0]


Recsys = Callable[..., Outcome]


def good(outcome: Outcome) -> str:
    """Output of a command that must succeed."""
    assert outcome.code == 0, outcome
    return outcome.out
