"""Export of Merlin Systems' repository, for a Triton that still has the TensorFlow backend (up to 25.02)."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from ...config import MerlinSettings
from ...dataset.schema import SIDES
from ...errors import BundleError, ConfigError
from ...utils.files import keep_inputs, written_aside
from .importing import check_pieces, read_table
from .worker_job import SystemsJob, save
from .worker_process import Worker

SECRET = re.compile(r"password=(?!\$\{\w+\}(?:,|$))")


def export_systems(
    export: Path,
    target: Path,
    settings: MerlinSettings,
    redis: str = "localhost:6379",
    feast_path: Path | None = None,
    candidates: int = 100,
    topk: int = 20,
    temperature: float = 20.0,
) -> None:
    """Write ``ensemble/`` (for Triton) and ``feature_repo/`` (for Feast) to a new folder, atomically.

    Args:
        export: folder written by the public notebooks, or by ``recsys train --trainer merlin --export``.
        target: folder to write.
        settings: settings of the Merlin environment.
        redis: Feast's connection string; a password as ``${VARIABLE}``.
        feast_path: path of ``feature_repo`` when it is served; default: the path where it is written.
        candidates: number of items from the index.
        topk: number of items in an answer.
        temperature: factor on the scores in softmax sampling: higher values sample closer to strict order.

    Raises:
        BundleError: a piece is missing.
        ConfigError: there is no Merlin environment, or the connection string holds a secret.
        TrainingError: Merlin Systems cannot build an ensemble from the export.
    """
    if SECRET.search(redis):
        raise ConfigError("the connection string holds a password: write password=${VARIABLE}, Feast fills it in")
    if '"' in redis or "\n" in redis:
        raise ConfigError("the connection string must be one line without quotes")
    check_pieces(export)
    keep_inputs(target, export)
    tables = {side: read_table(export, side, []) for side in SIDES}
    for side, table in tables.items():
        if f"{table.id}_raw" not in table.frame.columns:
            raise BundleError(f"{side}_features.parquet has no {table.id}_raw, by which the ensemble is asked")
    with tempfile.TemporaryDirectory() as scratch, written_aside(target) as aside:
        job = SystemsJob(
            export=str(export.absolute()),
            target=str(aside),
            feast_path=str(feast_path or target.absolute() / "feature_repo"),
            redis=redis,
            user_id=tables["user"].id,
            item_id=tables["item"].id,
            candidates=candidates,
            topk=topk,
            temperature=temperature,
        )
        save(job, Path(scratch) / "job.json")
        with Worker(settings, "systems", Path(scratch) / "job.json") as worker:
            worker.finish()
