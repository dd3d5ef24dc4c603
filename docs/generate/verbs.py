"""Verbs of the command line, and the page that Typer writes about them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import typer
import typer.main
from typer.cli import get_docs_for_click

from redis_recsys.cli.main import app

HELP = re.compile(r"^\* `--help`: .*\n", re.MULTILINE)
OVERVIEW = re.compile(r"\*\*Options\*\*:\n\n(?=\n|\*\*Commands|#|\Z)")


def verbs(command: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every verb with its path below ``recsys``, groups before what they hold."""
    for name, child in getattr(command, "commands", {}).items():
        below = f"{path} {name}".strip()
        yield below, child
        yield from verbs(child, below)


def command_line_page() -> str:
    """Markdown of every verb: its help, usage, arguments and options, without ``--help``, which all have."""
    command: Any = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command, info_name="recsys"), name="recsys")
    text = OVERVIEW.sub("", HELP.sub("", text))
    return text[text.index("\n## ") :].replace("```console\n$ ", "```text\n")
