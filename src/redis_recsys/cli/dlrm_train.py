"""``recsys data criteo``, ``recsys data criteo-synthetic`` and ``recsys dlrm train``: from Criteo rows to a DLRM."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ..config import Settings
from ..utils import output_kinds
from ..utils.files import claimed
from .app import Force, Json, out
from .data import data
from .dlrm import dlrm
from .options import options

CRITEO, DLRM = Path("data/criteo"), Path("data/dlrm")

Target = Annotated[Path, typer.Option("--out", help="Criteo dataset folder to write")]
Valid = Annotated[float, typer.Option("--valid", help="share of the rows for validation")]
Test = Annotated[float, typer.Option("--test", help="share of the rows for the test")]


@data.command()
def criteo(
    source: Annotated[Path, typer.Argument(help="Criteo's TSV file, plain or .gz, or a folder of such files")],
    target: Target = CRITEO,
    min_count: Annotated[int, typer.Option(min=1, help="rarer values, in the training part, become id 0")] = 10,
    max_size: Annotated[int | None, typer.Option(min=1, help="ids of a slot at most; default: no limit")] = None,
    valid: Valid = 0.1,
    test: Test = 0.1,
    force: Force = False,
) -> None:
    """The public Criteo click logs (Kaggle, Terabyte), split by time."""
    from ..data.criteo.tsv import read

    with claimed(target, output_kinds.CRITEO, force):
        read(source, target, min_count, max_size, valid, test)
    _tell(target)


@data.command("criteo-synthetic")
def criteo_synthetic(
    rows: Annotated[int, typer.Option(min=1, help="impressions")] = 1_000_000,
    scale: Annotated[
        float | None, typer.Option(help="of the public slot sizes; default: grows with the rows, at most 1")
    ] = None,
    seed: Annotated[int, typer.Option(help="same seed, same data")] = 42,
    target: Target = CRITEO,
    valid: Valid = 0.1,
    test: Test = 0.1,
    force: Force = False,
) -> None:
    """Criteo-shaped clicks with planted effects, so that the best possible AUC is known."""
    from ..data.criteo.generate import generate

    with claimed(target, output_kinds.CRITEO, force):
        generate(target, rows, scale=scale, seed=seed, valid=valid, test=test)
    _tell(target)


@dlrm.command()
@options("dlrm")
def train(
    settings: Settings,
    dataset: Annotated[Path, typer.Argument(help="Criteo dataset folder")] = CRITEO,
    target: Annotated[Path, typer.Option("--out", help="folder to write in HugeCTR's layout")] = DLRM,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Train a DLRM whose tables are sharded over processes, with TorchRec, and export it in HugeCTR's formats."""
    from ..trainers.torchrec.launch import train as fit

    with claimed(target, output_kinds.DLRM, force):
        report = fit(dataset, target, settings.dlrm)
    if as_json:
        print(json.dumps(report))
        return
    test = report["test"]
    oracle = f" (oracle {test['oracle_auc']:.4f})" if "oracle_auc" in test else ""
    out.print(
        f"test AUC {test['auc']:.4f}{oracle}, log loss {test['log_loss']:.4f}, "
        f"{report['samples_per_s']:,.0f} rows/s on {report['processes']} processes; exported to {target}",
        highlight=False,
    )


def _tell(path: Path) -> None:
    from ..data.criteo.dataset import PARTS, CriteoDataset

    made = CriteoDataset(path)
    counts = ", ".join(f"{made.count(part):,} {part}" for part in PARTS)
    out.print(f"criteo: {counts} rows, {sum(made.slot_sizes):,} keys in {len(made.slot_sizes)} slots in {path}")
