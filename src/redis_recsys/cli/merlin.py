"""``recsys import`` and ``recsys export``: to and from the files of NVIDIA Merlin."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..config import Settings
from ..utils import output_kinds
from ..utils.files import claimed
from .app import BUNDLE, Force, app, out
from .options import options

importing = typer.Typer(help="Make a bundle of models that were trained elsewhere.", no_args_is_help=True)
exporting = typer.Typer(help="Write models the way other servers read them.", no_args_is_help=True)
app.add_typer(importing, name="import")
app.add_typer(exporting, name="export")

Export = Annotated[
    Path,
    typer.Argument(
        help="folder with query_tower, dlrm, user_features.parquet, item_features.parquet, item_embeddings.parquet "
        "and categories, as the public Merlin notebooks write them"
    ),
]


@importing.command("merlin")
@options("merlin.environment", "merlin.log")
def import_merlin(
    settings: Settings,
    export: Export,
    target: Annotated[Path, typer.Option("--out", help="bundle folder to write")] = BUNDLE,
    force: Force = False,
) -> None:
    """Make a bundle of what the public Merlin notebooks exported; batch, deploy and serve then work as with any other.

    Needs the Merlin environment (recsys setup merlin), which alone loads SavedModels. An NVTabular workflow is never
    loaded.
    """
    from ..trainers.merlin.importing import import_export

    with claimed(target, output_kinds.BUNDLE, force):
        bundle = import_export(export, target, settings.merlin)
    out.print(f"bundle with {bundle.manifest.users:,} users and {bundle.manifest.items:,} items in {target}")


@exporting.command("merlin-systems")
@options("merlin.environment", "merlin.log")
def export_merlin_systems(
    settings: Settings,
    export: Export,
    target: Annotated[Path, typer.Option("--out", help="new or empty folder to write")] = Path("data/merlin-systems"),
    redis: Annotated[
        str, typer.Option(help="Feast's connection string, such as 'redis:6379,password=${REDIS_PASSWORD}'")
    ] = "localhost:6379",
    feast_path: Annotated[
        Path | None, typer.Option(help="where feature_repo will be in the container (default: where it is written)")
    ] = None,
    candidates: Annotated[int, typer.Option(min=1, help="items from the FAISS index")] = 100,
    topk: Annotated[int, typer.Option(min=1, help="items that are answered")] = 20,
    temperature: Annotated[float, typer.Option(min=0, help="of SoftmaxSampling; higher: closer to best first")] = 20.0,
) -> None:
    """Write the ensemble of Merlin Systems, for a Triton up to 25.02 with its TensorFlow backend.

    Its own operators: QueryFeast, PredictTensorflow, QueryFaiss, UnrollFeatures, SoftmaxSampling. What to choose, this
    or 'recsys serve', is in docs/migrating-from-merlin.md.
    """
    from ..trainers.merlin.exporting import export_systems

    export_systems(export, target, settings.merlin, redis, feast_path, candidates, topk, temperature)
    out.print(f"model repository in {target / 'ensemble'}, Feast repository in {target / 'feature_repo'}")
