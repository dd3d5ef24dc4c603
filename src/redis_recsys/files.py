"""Outputs appear whole or not at all: directories are written aside and renamed, files are checksummed."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import DataError, RecsysError


@contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """Yield an empty directory beside ``target`` that takes its place when the block ends without an error.

    On any error, Ctrl-C included, the directory is removed and ``target`` stays as it was. An existing
    ``target`` is replaced by two renames, so that readers find either the old one or the new one.

    Raises:
        DataError: the disk is full or the folder cannot be written.
    """
    target = Path(os.path.abspath(target))
    token = uuid.uuid4().hex[:8]
    aside = target.parent / f".{target.name}.writing-{token}"
    try:
        aside.mkdir(parents=True)
        yield aside
        if target.exists():
            old = target.parent / f".{target.name}.old-{token}"
            target.rename(old)
            try:
                aside.rename(target)
            except BaseException:
                old.rename(target)
                raise
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        else:
            aside.rename(target)
    except OSError as error:
        raise disk_error(error, target) from error
    except Exception as error:
        if "No space left" in str(error) and not isinstance(error, RecsysError):  # an error type of Polars' own
            raise disk_error(OSError(str(error)), target) from error
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def written_aside_file(target: Path) -> Iterator[Path]:
    """Yield the path of a file beside ``target`` that takes its place when the block ends without an error.

    Raises:
        DataError: the disk is full or the file cannot be written.
    """
    target = Path(os.path.abspath(target))
    aside = target.parent / f".{target.name}.writing-{uuid.uuid4().hex[:8]}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        aside.rename(target)
    except OSError as error:
        raise disk_error(error, target) from error
    finally:
        aside.unlink(missing_ok=True)


def keep_inputs(target: Path, *inputs: Path | None) -> None:
    """Refuse a ``target`` whose writing would replace one of the ``inputs``.

    Raises:
        DataError: an input is the target or lies in it.
    """
    for path in inputs:
        if path is not None and Path(path).resolve().is_relative_to(Path(target).resolve()):
            raise DataError(f"writing {target} would replace {path}, which is read: move one of them")


def disk_error(error: OSError, target: Path) -> DataError:
    """``error`` as one clear line about writing ``target``."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
        return DataError(f"the disk is full while writing {target}: nothing was kept; free some space and run again")
    return DataError(f"cannot write {target}: {error.strerror or error}")


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256(file)


def _sha256(file) -> str:  # type: ignore[no-untyped-def]  # Python 3.10 has no hashlib.file_digest
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
