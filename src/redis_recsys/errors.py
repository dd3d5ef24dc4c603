"""Exceptions of the project. Each message says what was wrong, where, and what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class RecsysError(Exception):
    """Base of all errors that this project raises on purpose; the command line prints one as one line.

    Attributes:
        exit_code: exit code of the command line.
    """

    exit_code = 1


class ConfigError(RecsysError):
    """A setting is missing or has a wrong value."""


class SchemaError(RecsysError):
    """``schema.yaml`` is invalid, or data does not have the columns that it declares."""


class DataError(RecsysError):
    """Input data is missing or truncated, or holds invalid values."""


class TrainingError(RecsysError):
    """A model cannot be trained on the given data."""


class BundleError(RecsysError):
    """A bundle is missing, incomplete, altered, or of a version this code does not read."""


class StoreError(RecsysError):
    """Redis cannot be reached, refuses, or does not hold what was asked for."""


class AcceptedError(RecsysError):
    """An event was accepted but is not known to be applied, or never will be: it must not be sent again."""

    exit_code = 3


class ServingError(RecsysError):
    """Triton cannot be started or reached, or refuses a request."""


def one_line(error: object, most: int | None = None) -> str:
    """Text of an error with runs of whitespace collapsed to one blank, cut after ``most`` characters."""
    return " ".join(f"{error}".split())[:most]


def explain_validation(error: ValidationError) -> str:
    """One line for a pydantic error: every wrong field with its path and the reason."""
    parts = []
    for item in error.errors():
        path = ".".join(str(key) for key in item["loc"]) or "document"
        reason = (
            "is not a known field" if item["type"] == "extra_forbidden" else item["msg"].removeprefix("Value error, ")
        )
        parts.append(f"{path}: {reason}")
    return "; ".join(parts)
