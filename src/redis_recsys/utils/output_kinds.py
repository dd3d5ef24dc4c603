"""Kinds of folders that this project writes and recognises, so that nothing else is ever replaced.

A folder is of a kind if its manifest says so and if it holds only files of that kind: a bundle with somebody's notes
in it is left alone.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

NETWORK, DENSE, SPARSE = (
    "dlrm.json",
    "dlrm_dense.model",
    "dlrm0_sparse.model",
)  # files of a trained DLRM
PARTS = ("train/*.parquet", "valid/*.parquet", "test/*.parquet", "vocab/*.parquet")
MODELS_OF_MERLIN = ("query_tower", "candidate_tower", "dlrm", "categories", "workflow")
OF_THE_DESKTOP = (".DS_Store", "Thumbs.db", "desktop.ini")  # file managers leave these in folders that they show
NAMED = 3  # number of a folder's entries that a message names
READY, UNFINISHED = ".ready", ".unfinished"  # marks of an environment
MOUNTS = Path("/proc/self/mountinfo")


@dataclass(frozen=True)
class Kind:
    """Kind of folder.

    Attributes:
        name: name with its article.
        made: test whether the manifest of a folder says that it is of this kind.
        files: patterns of all files that such a folder may hold. ``*`` stands for a name or a part of one, and ``**``
            at the end for everything below.
    """

    name: str
    made: Callable[[Path], bool]
    files: tuple[str, ...]


def _fields(path: Path) -> dict[str, Any]:
    """Content of a JSON or YAML file; empty if it does not exist or holds something else."""
    try:
        text = path.read_text()
        document = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return document if isinstance(document, dict) else {}


def _has(name: str, *fields: str) -> Callable[[Path], bool]:
    """Test whether the manifest ``name`` of a folder has all ``fields``."""
    return lambda folder: _fields(folder / name).keys() >= set(fields)


def _is_raw(folder: Path) -> bool:
    return (folder / "interactions").is_dir() and _has("schema.yaml", "name", "columns")(folder)


def _is_table(folder: Path) -> bool:
    return (folder / "key").is_file() and (folder / "emb_vector").is_file()


def _is_repository(folder: Path) -> bool:
    models = list(folder.glob("*/1/model.py"))
    return bool(models) and all(b"redis_recsys" in model.read_bytes() for model in models)


def _is_environment(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (READY, UNFINISHED))


def _is_movielens(folder: Path) -> bool:
    return any(folder.glob("ml-100k.*"))


TABLES = ("schema.yaml", "*.parquet", "vocab/*.parquet")  # of users and items
RAW = Kind("raw tables", _is_raw, ("schema.yaml", "truth.json", "*.parquet", "interactions/*.parquet"))
DATASET = Kind(
    "a dataset",
    _has("manifest.json", "version", "split", "rows"),
    (
        "manifest.json",
        "schema.yaml",
        "*.parquet",
        *PARTS,
        *(f"{folder}/{file}" for folder in ("refit", "final") for file in TABLES),
    ),
)
BUNDLE = Kind(
    "a bundle",
    _has("manifest.json", "version", "trainer", "files"),
    ("manifest.json", "schema.yaml", "*.onnx", "*.parquet", "vocab/*.parquet"),
)
CRITEO = Kind("a Criteo dataset", _has("criteo.json", "version", "slot_sizes", "rows"), ("criteo.json", *PARTS))
DLRM = Kind(
    "a trained DLRM",
    _has("report.json", "slot_sizes", "embedding_dim"),
    (NETWORK, DENSE, f"{SPARSE}/key", f"{SPARSE}/emb_vector", "sample.npz", "report.json", "ps.json"),
)
TABLE = Kind("a table of HugeCTR", _is_table, ("key", "emb_vector"))
REPOSITORY = Kind("a model repository", _is_repository, ("*/config.pbtxt", "*/1/model.py", "*/1/__pycache__/*"))
EXPORT = Kind(
    "an export of Merlin's models",
    _has("export.json", "version", "trainer"),
    ("*.json", "*.parquet", *(f"{name}/**" for name in MODELS_OF_MERLIN)),
)
MOVIELENS = Kind("a copy of MovieLens 100k", _is_movielens, ("ml-100k.*",))
ENVIRONMENT = Kind("an environment of 'recsys setup'", _is_environment, ("**",))

KINDS = (RAW, DATASET, BUNDLE, CRITEO, DLRM, TABLE, REPOSITORY, EXPORT, MOVIELENS, ENVIRONMENT)


def kind_of(folder: Path) -> Kind | None:
    """Kind of a folder according to its manifest; None if this project has not made it."""
    return next((kind for kind in KINDS if kind.made(folder)), None)


def refusal(target: Path, kind: Kind | None, force: bool = False) -> str | None:
    """Reason why a folder must not replace ``target``; None if it may.

    Args:
        target: path without symbolic links.
        kind: kind of the folder to be written, and of the one it may replace; None: nothing may be replaced.
        force: whether any other kind may be replaced, too.

    Raises:
        OSError: ``target`` cannot be accessed.
    """
    if not os.path.lexists(target):
        return None
    if not target.is_dir():
        return f"{target} is {_special(target)}, not a folder: choose another name"
    if os.path.ismount(target):
        return f"{target} is a mount point: choose a folder in it"
    for fixed, what in _untouchable():
        if fixed == target:
            return f"{target} is {what}: choose another folder"
        if fixed.is_relative_to(target):
            return f"{target} holds {what} ({fixed}): choose another folder"
    current = kind_of(target)
    foreign = next(_foreign(target, current), None)
    if foreign is None and (current is None or current == kind):
        return None
    if current is None:
        mismatch = f"is not {kind.name}" if kind is not None else "is not empty"
        return f"{target} exists and {mismatch}: it holds {_contents(target)}; choose another folder, or move that away"
    if foreign is not None:
        return f"{target} is {current.name} in which {foreign} lies, too: move that away, or choose another folder"
    if not force:
        mismatch = f", not {kind.name}" if kind is not None else ""
        return f"{target} is {current.name}{mismatch}: choose another folder, or replace it with --force"
    return None


def _foreign(folder: Path, kind: Kind | None) -> Iterator[PurePosixPath]:
    """Files below a folder that its kind does not have; all entries of a folder without a kind."""
    if kind is None:
        yield from (PurePosixPath(name) for name in sorted(os.listdir(folder)) if name not in OF_THE_DESKTOP)
        return
    for parent, folders, files in os.walk(folder, onerror=_raise):
        for name in sorted([*files, *(entry for entry in folders if os.path.islink(os.path.join(parent, entry)))]):
            path = PurePosixPath(Path(parent, name).relative_to(folder))
            if name not in OF_THE_DESKTOP and not any(_matches(path.parts, pattern) for pattern in kind.files):
                yield path


def _matches(parts: tuple[str, ...], pattern: str) -> bool:
    expected = pattern.split("/")
    if expected[-1] == "**":
        expected, parts = expected[:-1], parts[: len(expected) - 1]
    return len(parts) == len(expected) and all(map(fnmatchcase, parts, expected))


def _raise(error: OSError) -> None:
    raise error


def _untouchable() -> Iterator[tuple[Path, str]]:
    """Places that must stay where they are, each with its description."""
    yield Path.cwd(), "the working directory"
    yield Path(os.path.realpath(Path.home())), "the home directory"
    try:
        lines = MOUNTS.read_text().splitlines()
    except OSError:  # another system than Linux
        lines = []
    for line in lines:
        mount = line.split(" ")[4].encode().decode("unicode_escape")  # a blank in it is \\040
        yield Path(mount.encode("latin-1").decode(errors="surrogateescape")), "a mount point"


def _special(path: Path) -> str:
    mode = path.lstat().st_mode
    names = {stat.S_IFREG: "a file", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFIFO: "a pipe"}
    return names.get(stat.S_IFMT(mode), "something else")


def _contents(folder: Path) -> str:
    """A few entries of a folder; data of Redis and RocksDB by name."""
    for lock in (*folder.glob("server.lock"), *folder.glob("*/server.lock"), *folder.glob("*/*/server.lock")):
        return f"the data of Redis in {lock.parent}"
    for current in (*folder.glob("CURRENT"), *folder.glob("*/CURRENT")):
        return f"a RocksDB in {current.parent}"
    names = sorted(os.listdir(folder))
    others = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + others
