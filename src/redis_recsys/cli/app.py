"""The command line's frame, and the options that verbs share."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from difflib import get_close_matches
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from typer.core import TyperCommand


def _version(wanted: bool) -> None:
    if wanted:
        from ..utils.environments import version

        print(version())
        raise typer.Exit


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


@app.callback()
def recsys(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """See the help of ``app``."""


BEHIND = "; a text that begins with a minus sign goes behind --"
NEGATIVE = re.compile(r"-\d")
DATASET, BUNDLE = Path("data/dataset"), Path("data/bundle")
T = TypeVar("T")

Dataset_ = Annotated[Path, typer.Argument(help="dataset folder")]
Bundle_ = Annotated[Path, typer.Argument(help="bundle folder")]
Out = Annotated[Path, typer.Option("--out", help="dataset folder to write")]
Force = Annotated[
    bool, typer.Option("--force", help="replace what this project made there, though it is of another kind")
]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]


@contextmanager
def until_ctrl_c(starting: AbstractContextManager[T]) -> Iterator[T]:
    """Block that Ctrl-C ends well; before the block, while ``starting`` is entered, it is an interrupt as anywhere."""
    begun = False
    try:
        with starting as started:
            begun = True
            yield started
    except KeyboardInterrupt:
        if not begun:
            raise


class TakesIds(TyperCommand):
    """Verb whose arguments are ids: ``-5`` is one, too; a text that begins with a minus sign is one behind ``--``."""

    ignore_unknown_options = True

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse what begins with a minus sign and is neither an option, its value, a number nor behind ``--``."""
        takes_value = {
            option: not getattr(parameter, "is_flag", True)
            for parameter in self.get_params(ctx)
            for option in (*parameter.opts, *parameter.secondary_opts)
        }
        before = ""
        for text in takewhile(lambda each: each != "--", args):
            known = text.partition("=")[0] in takes_value or takes_value.get(before) or NEGATIVE.match(text)
            if text[:1] == "-" and text != "-" and not known:
                close = [f"; did you mean {option}?" for option in get_close_matches(text, takes_value, n=1)]
                ctx.fail(f"No such option: {text}{''.join(close)} (an id that begins so goes behind --)")
            before = text
        return super().parse_args(ctx, args)


def titles(bundle: Path) -> dict[str, str]:
    """Raw item id as text -> the first label that the bundle has of it; empty if it has none."""
    from ..bundle.bundle import Bundle

    items = Bundle(bundle, verify=False).items
    texts = next(iter(items.labels.values()), [])
    return dict(zip(map(str, items.raw_ids.tolist()), texts, strict=False))
