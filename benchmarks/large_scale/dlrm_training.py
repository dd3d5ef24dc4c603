"""Training of a DLRM with sharded tables: rows per second by number of processes, and AUC beside the best possible.

python -m benchmarks.large_scale.dlrm_training
python -m benchmarks.large_scale.dlrm_training --public --rows 8000000 --scale 1 --batch 131072    # for two large GPUs
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.measure import FOLDER, machine
from benchmarks.report import markdown
from redis_recsys.config import DlrmSettings
from redis_recsys.data.criteo.dataset import CriteoDataset
from redis_recsys.data.criteo.generate import generate
from redis_recsys.trainers.torchrec.launch import train

PROCESSES = (1, 2)
# The public model. Its learning rates are for the larger batches of GPUs.
PUBLIC: dict[str, Any] = {
    "embedding_dim": 128,
    "bottom": [512, 256],
    "top": [1024, 1024, 512, 256],
    "learning_rate": 0.0005,
    "embedding_lr": 0.05,
}


def measure(
    rows: int = 1_000_000, scale: float | None = None, public: bool = False, batch: int | None = None
) -> dict[str, Any]:
    """Train on 1 and on 2 processes with the same total batch.

    Args:
        rows: number of synthetic clicks.
        scale: scale of the public slot sizes; default: grows with the rows.
        public: whether to use the public model's shape instead of the small default one.
        batch: rows per step of all processes together; default: that of the settings.

    Returns:
        Size of the data, and by number of processes the rows per second of the median epoch, the epochs, the seconds
        from start to export, and the test metrics.
    """
    path = FOLDER / (f"criteo-{rows}" if scale is None else f"criteo-{rows}-{scale:g}")
    if not path.exists():
        generate(path, rows, scale=scale)
    dataset = CriteoDataset(path)
    defaults = DlrmSettings(log=FOLDER / "dlrm.log", **(PUBLIC if public else {}))
    whole = batch or defaults.batch * defaults.processes
    found: dict[str, Any] = {"rows": rows, "keys": sum(dataset.slot_sizes), "dim": defaults.embedding_dim, "runs": {}}
    for processes in PROCESSES:
        print(f"training on {processes} processes ...", flush=True)
        settings = defaults.model_copy(update={"processes": processes, "batch": whole // processes})
        started = time.perf_counter()
        report = train(path, FOLDER / f"dlrm-{processes}", settings)
        seconds = time.perf_counter() - started
        test = report["test"]
        found["runs"][str(processes)] = {
            "samples_per_s": report["samples_per_s"],
            "epochs": len(report["records"]),
            "seconds": seconds,
            **test,
            "share_of_oracle_auc": (test["auc"] - 0.5) / (test["oracle_auc"] - 0.5),
        }
    return found


def table(results: dict[str, Any]) -> str:
    """Render the results as Markdown."""
    rows = [
        [
            processes,
            f"{run['samples_per_s']:,.0f}",
            f"{run['epochs']}",
            f"{run['seconds']:.0f}",
            f"{run['auc']:.4f}",
            f"{run['oracle_auc']:.4f}",
            f"{run['share_of_oracle_auc']:.1%}",
            f"{run['log_loss']:.4f}",
        ]
        for processes, run in results["runs"].items()
    ]
    headings = ["processes", "rows/s", "epochs", "seconds", "AUC", "oracle's", "of the oracle's", "log loss"]
    return "\n".join(markdown(headings, rows))


def main(
    rows: Annotated[int, typer.Option(min=20_000, help="Synthetic rows.")] = 1_000_000,
    scale: Annotated[float | None, typer.Option(help="Scale of the slot sizes; default: grows with the rows.")] = None,
    public: Annotated[bool, typer.Option("--public", help="The public model: dimension 128, 8 layers.")] = False,
    batch: Annotated[int | None, typer.Option(min=2, help="Rows per step of all processes together.")] = None,
    target: Annotated[Path | None, typer.Option("--out", help="Write the results to this JSON file.")] = None,
) -> None:
    """Measure training."""
    results = {"machine": machine(), **measure(rows, scale, public, batch)}
    print(table(results))
    if target:
        target.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
