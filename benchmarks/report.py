"""Tables in Markdown, and where they go in the README."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

README = Path("README.md")


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table; the first column holds words, the others numbers."""
    lines = [headings, ["---", *["--:"] * (len(headings) - 1)], *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def into_readme(marker: str, text: str) -> None:
    """Put ``text`` between ``<!-- marker -->`` and ``<!-- /marker -->``."""
    start, end = f"<!-- {marker} -->", f"<!-- /{marker} -->"
    readme = README.read_text()
    README.write_text(re.sub(f"{start}.*?{end}", lambda _: f"{start}\n{text}\n{end}", readme, flags=re.DOTALL))
