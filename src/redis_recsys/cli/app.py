"""The command line's frame, and the options that verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from rich.text import Text

app = typer.Typer(
    help="""Recommendation systems with NVIDIA Merlin and Redis.

    Ahead of time: recsys data movielens -> recsys train -> recsys evaluate -> recsys batch -> recsys get 1

    From NVIDIA Merlin: recsys train --trainer merlin, or recsys import merlin FOLDER, then as above

    On demand: recsys deploy -> recsys serve -> recsys recommend 1 -> recsys event 1 50 click

    Tables larger than one device: recsys data criteo-synthetic -> recsys dlrm train -> recsys dlrm configure
    -> recsys dlrm serve -> recsys dlrm infer

    Settings come from the YAML file named by RECSYS_CONFIG, then RECSYS_* variables (RECSYS_REDIS_HOST,
    RECSYS_TRAIN_DEVICE, ...), then flags. With no Redis configured, recsys starts its own in data/redis.""",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out = Console()

DATASET, BUNDLE = Path("data/dataset"), Path("data/bundle")


def setting(section: type[BaseModel], name: str) -> Any:
    """An option that overrides a setting; its help and default are the setting's."""
    field = section.model_fields[name]
    default = "" if field.default is None else f" (default: {field.default})"
    return typer.Option(help=f"{field.description or name}{default}", show_default=False)


Dataset_ = Annotated[Path, typer.Argument(help="dataset folder")]
Bundle_ = Annotated[Path, typer.Argument(help="bundle folder")]
Out = Annotated[Path, typer.Option("--out", help="dataset folder to write")]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]


def titles(bundle: Path) -> dict[str, str]:
    """Raw item id as text -> the first label that the bundle has of it; empty if it has none."""
    from ..bundle import Bundle

    items = Bundle(bundle, verify=False).items
    texts = next(iter(items.labels.values()), [])
    return dict(zip(map(str, items.raw_ids.tolist()), texts, strict=False))


def ranked(title: str, items: list[Any], scores: list[float], labels: dict[str, str]) -> Table:
    """A table of recommended items, best first."""
    heading = Text(title)
    table = Table(title=heading, title_justify="left", min_width=heading.cell_len)
    for name in ("#", "item", *(["label"] if labels else []), "score"):
        table.add_column(name)
    for rank, (item, score) in enumerate(zip(items, scores, strict=True), 1):
        label = [labels.get(str(item), "")] if labels else []
        # as Text, since Rich would read brackets in a plain string as markup
        table.add_row(*map(Text, (str(rank), str(item), *label, f"{score:.4g}")))
    return table
