"""The one exception family. Each message says what was wrong, where, and what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class RecsysError(Exception):
    """Base of every error this project raises on purpose; the command line prints it as one line.

    Attributes:
        exit_code: code with which the command line ends.
    """

    exit_code = 1


class ConfigError(RecsysError):
    """A setting is missing or has a wrong value."""


class SchemaError(RecsysError):
    """``schema.yaml`` is invalid, or data does not have the columns that it declares."""


class DataError(RecsysError):
    """Input data is missing, truncated or holds values that it must not hold."""


class TrainingError(RecsysError):
    """A model cannot be trained on what it was given."""


class BundleError(RecsysError):
    """A bundle is missing, incomplete, altered, or of a version this code does not read."""


class StoreError(RecsysError):
    """Redis cannot be reached, refuses, or does not hold what was asked for."""


class AcceptedError(RecsysError):
    """An event is accepted, and it is not known to be applied, or never will be: it must not be sent again."""

    exit_code = 3


class ServingError(RecsysError):
    """Triton cannot be started or reached, or refuses a request."""


def one_line(error: object, most: int | None = None) -> str:
    """Text of an error with every run of blanks and line breaks as one blank, cut after ``most`` characters."""
    return " ".join(f"{error}".split())[:most]


def explain_validation(error: ValidationError) -> str:
    """One line for a pydantic error: every wrong field with its place and reason."""
    parts = []
    for item in error.errors():
        place = ".".join(str(part) for part in item["loc"]) or "document"
        reason = (
            "is not a known field" if item["type"] == "extra_forbidden" else item["msg"].removeprefix("Value error, ")
        )
        parts.append(f"{place}: {reason}")
    return "; ".join(parts)
