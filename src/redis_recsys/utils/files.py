"""Outputs that appear whole or not at all, replace only their own kind, and have one writer at a time."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType

from ..errors import DataError, RecsysError
from .output_kinds import Kind, refusal

# Claims of this thread, so that a claim inside another one of the same target does not wait: resolved target ->
# whether another kind may be replaced.
_claims: ContextVar[Mapping[Path, bool]] = ContextVar("_claims", default=MappingProxyType({}))


@contextmanager
def claimed(target: Path, kind: Kind | None = None, force: bool = False, wait: bool = False) -> Iterator[Path]:
    """Keep other runs from writing ``target`` during the block, in which a folder is made to replace it.

    Targets that :func:`written_aside` would refuse in the end are refused at once. The claim is a lock on a file
    beside the target, which ends with the process, however that ends. Claims of one target may be nested.

    Args:
        target: folder to be written. A symbolic link stays, and what it points to is replaced.
        kind: kind of the folder; None: nothing, or only an empty folder, may be there yet.
        force: whether a folder of another of this project's kinds may be replaced.
        wait: whether to wait for another run to end, instead of failing.

    Yields:
        The target without symbolic links.

    Raises:
        DataError: something else is there, another run is writing the target, or it cannot be written.
    """
    held = _claims.get()
    with ExitStack() as claim:
        try:
            resolved = Path(os.path.realpath(target))
            if resolved not in held:
                _refuse(resolved, kind, force)
                claim.enter_context(_locked(resolved, wait))
                _refuse(resolved, kind, force)
                claim.callback(_claims.set, held)
                _claims.set({**held, resolved: force})
        except OSError as error:
            raise disk_error(error, target) from error
        yield resolved


@contextmanager
def written_aside(target: Path, kind: Kind | None = None, wait: bool = False) -> Iterator[Path]:
    """Yield an empty directory beside ``target`` that replaces it when the block ends without an error.

    On any error, Ctrl-C included, the directory is removed and ``target`` stays as it was. An existing
    ``target`` is replaced by two renames, so that readers find either the old one or the new one.

    Args:
        target, kind, wait: see :func:`claimed`.

    Raises:
        DataError: something else is there, another run is writing the target, the disk is full or the folder cannot
            be written.
    """
    with claimed(target, kind, wait=wait) as resolved:
        token = uuid.uuid4().hex[:8]
        aside = resolved.parent / f".{resolved.name}.writing-{token}"
        try:
            aside.mkdir(parents=True)
            yield aside
            _refuse(resolved, kind, _claims.get()[resolved])
            _replace(resolved, aside, resolved.parent / f".{resolved.name}.old-{token}")
        except OSError as error:
            raise disk_error(error, target) from error
        except Exception as error:
            if "No space left" in str(error) and not isinstance(error, RecsysError):  # one of Polars' own error types
                raise disk_error(OSError(str(error)), target) from error
            raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _refuse(target: Path, kind: Kind | None, force: bool) -> None:
    reason = refusal(target, kind, force)
    if reason is not None:
        raise DataError(reason)


def _replace(target: Path, aside: Path, old: Path) -> None:
    if not target.exists():
        aside.rename(target)
        return
    target.rename(old)
    try:
        aside.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old)


@contextmanager
def _locked(target: Path, wait: bool) -> Iterator[None]:
    """Hold the lock of a target: a file beside it with the number of this process, which exists only meanwhile."""
    path = target.parent / f".{target.name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                break
        except BlockingIOError:
            process = os.pread(descriptor, 20, 0).decode()
            os.close(descriptor)
            who = f" (process {process})" if process else ""  # one that has just begun has not written its number yet
            raise DataError(
                f"{target} is being written by another run{who}: wait until it ends, or choose another folder"
            ) from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its run has ended meanwhile and removed the file
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


@contextmanager
def written_aside_file(target: Path, begins: tuple[bytes, ...] = (b"",)) -> Iterator[Path]:
    """Yield the path of a file beside ``target`` that replaces it when the block ends without an error.

    Args:
        target: file to be written. A symbolic link stays, and what it points to is replaced.
        begins: see :func:`check_file`.

    Raises:
        DataError: something else is there, the disk is full or the file cannot be written.
    """
    check_file(target, begins)
    resolved = Path(os.path.realpath(target))
    aside = resolved.parent / f".{resolved.name}.writing-{uuid.uuid4().hex[:8]}"
    try:
        resolved.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        check_file(target, begins)
        aside.rename(resolved)
    except OSError as error:
        raise disk_error(error, target) from error
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


def check_file(target: Path, begins: tuple[bytes, ...] = (b"",)) -> None:
    """Refuse a ``target`` that a file must not replace.

    Args:
        target: file to be written.
        begins: possible first bytes of files that may be replaced; an empty file always may.

    Raises:
        DataError: a folder or a device is there, or a file of another format.
    """
    resolved = Path(os.path.realpath(target))
    if not os.path.lexists(resolved):
        return
    if not resolved.is_file():
        raise DataError(f"{target} is a folder or a device, not a file: choose another name")
    try:
        with resolved.open("rb") as file:
            start = file.read(max(map(len, begins)))
    except OSError as error:
        raise disk_error(error, target) from error
    if start and not start.startswith(begins):
        raise DataError(f"{target} exists and is no {resolved.suffix or 'such'} file: choose another name")


def keep_inputs(target: Path, *inputs: Path | None) -> None:
    """Refuse a ``target`` whose writing would replace one of the ``inputs``.

    Raises:
        DataError: an input is the target or lies in it.
    """
    for path in inputs:
        if path is not None and Path(path).resolve().is_relative_to(Path(target).resolve()):
            raise DataError(f"writing {target} would replace {path}, which is read: move one of them")


def keep_apart(target: Path, *inputs: Path | None) -> None:
    """Refuse a ``target`` that exists in one of the ``inputs``, where it would be read as data.

    Raises:
        DataError: the target lies in an input.
    """
    for path in inputs:
        if path is not None and target.exists() and target.resolve().is_relative_to(path.resolve()):
            raise DataError(f"{target} lies in {path} and would be read as data: choose a folder outside of it")


def disk_error(error: OSError, target: Path) -> DataError:
    """Turn ``error`` into one clear line about writing ``target``."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
        return DataError(f"the disk is full while writing {target}: nothing was kept; free some space and run again")
    return DataError(f"cannot write {target}: {error.strerror or error}")


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
