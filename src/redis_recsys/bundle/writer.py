"""Writing of bundles: whole or not at all, and the last step of every trainer."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..dataset.entities import ITEM_VALUES, ROW_GROUP, write_entities
from ..dataset.interactions import PARTS, Dataset, Part
from ..dataset.popularity import Clicks
from ..dataset.schema import Schema
from ..dataset.user_history import History, users_after
from ..errors import BundleError
from ..utils.files import sha256, written_aside
from ..utils.output_kinds import BUNDLE
from .bundle import (
    BUNDLE_VERSION,
    EMBEDDINGS,
    HISTORY,
    MANIFEST,
    POPULARITY,
    SCHEMA,
    File,
    Manifest,
    features_file,
    tower_file,
)
from .models import Tower


@contextmanager
def writing_bundle(target: Path) -> Iterator[Path]:
    """Yield a directory to fill; it becomes ``target`` if the block ends without an error (see ``finish``)."""
    with written_aside(target, BUNDLE) as aside:
        (aside / "vocab").mkdir()
        yield aside
        if not (aside / MANIFEST).exists():
            raise BundleError(f"the bundle for {target} was not finished")


def write_tables(folder: Path, item_embeddings: np.ndarray, clicks: Clicks, history: History, users: int) -> None:
    """Write the parquet files that are not copied from the dataset.

    Args:
        folder: a directory from :func:`writing_bundle`.
        item_embeddings: float32[items, D].
        clicks: clicks of each item.
        history: items that each user has interacted with.
        users: number of users.
    """
    flat = pa.array(np.ascontiguousarray(item_embeddings, np.float32).reshape(-1))
    embedding = pa.FixedSizeListArray.from_arrays(flat, item_embeddings.shape[1])
    pq.write_table(pa.table({"embedding": embedding}), folder / EMBEDDINGS)
    order = np.argsort(-clicks.scores, kind="stable")
    order = order[clicks.ever[order] > 0]
    table = {"item": (order + 1).astype(np.int32), "count": clicks.ever[order].astype(np.int64)}
    if clicks.recent is not None:
        table["recent"] = clicks.recent[order].astype(np.int64)
    pq.write_table(pa.table(table), folder / POPULARITY)
    offsets = history.starts[1 : users + 2]
    # int64 offsets: a catalogue's whole history may hold more than 2^31 items
    lists = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(history.items, type=pa.int32()))
    pq.write_table(pa.table({"items": lists}), folder / HISTORY, row_group_size=ROW_GROUP)


def finish(
    folder: Path,
    schema: Schema,
    trainer: str,
    metrics: dict[str, Any],
    embedding_dim: int,
    users: int,
    items: int,
    learned_from: dict[Part, int] | None = None,
    final: bool = False,
) -> None:
    """Write schema and manifest, the last step before the bundle moves into place; see :class:`Manifest`."""
    schema.save(folder / SCHEMA)
    files = {
        path.relative_to(folder).as_posix(): File(bytes=path.stat().st_size, sha256=sha256(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    manifest = Manifest(
        version=BUNDLE_VERSION,
        trainer=trainer,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        embedding_dim=embedding_dim,
        users=users,
        items=items,
        metrics=metrics,
        learned_from=learned_from or {},
        final=final,
        files=files,
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")


def complete(
    folder: Path, dataset: Dataset, trainer: str, metrics: dict[str, Any], learned: Sequence[Part], final: bool
) -> None:
    """Write everything but the ONNX files, which must be there.

    Histories, newest items and popularity include every row, whatever the models have learned from: items that users
    had yesterday are not recommended today.

    Args:
        folder: a directory from :func:`writing_bundle`.
        dataset: dataset on which the models were trained.
        trainer: name for the manifest.
        metrics: metrics of the training.
        learned: parts of the dataset that the models have learned from.
        final: whether these are all parts, for production.
    """
    rows = dataset.rows(*PARTS)
    users, history = users_after(dataset, rows)
    embeddings = Tower(folder / tower_file("item")).embed(dataset.items.categorical, dataset.items.numeric)
    write_tables(folder, embeddings, Clicks.of(rows, len(dataset.items)), history, len(users))
    write_entities(folder / features_file("user"), dataset.schema, "user", users)
    write_entities(folder / features_file("item"), dataset.schema, "item", dataset.items)
    if (dataset.path / ITEM_VALUES).exists():  # data sets of earlier releases have none
        shutil.copyfile(dataset.path / ITEM_VALUES, folder / ITEM_VALUES)
    shutil.copytree(dataset.path / "vocab", folder / "vocab", dirs_exist_ok=True)
    counts_of = {part: dataset.count(part) for part in learned}
    finish(
        folder, dataset.schema, trainer, metrics, embeddings.shape[1], len(users), len(dataset.items), counts_of, final
    )
