"""Markdown tables, and their insertion into the documentation."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

PAGE = Path("docs/benchmarks.md")


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table; the first column holds words, the others numbers."""
    lines = [headings, ["---", *["--:"] * (len(headings) - 1)], *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def picture(title: str, path: Path) -> str:
    """Markdown of a picture, as linked from the benchmarks page."""
    return f"![{title}]({Path(os.path.relpath(path, PAGE.parent)).as_posix()})"


def into_page(marker: str, text: str) -> None:
    """Put ``text`` between ``<!-- marker -->`` and ``<!-- /marker -->`` of the benchmarks page."""
    start, end = f"<!-- {marker} -->", f"<!-- /{marker} -->"
    page = PAGE.read_text()
    PAGE.write_text(re.sub(f"{start}.*?{end}", lambda _: f"{start}\n{text}\n{end}", page, flags=re.DOTALL))
