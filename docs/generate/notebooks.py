"""Notebooks as pages: their text, code and stored results. Nothing is run."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import nbformat

STYLE = re.compile(r"<style.*?</style>", re.DOTALL)
COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # of a terminal


def notebook_page(path: Path, prefix: str) -> tuple[str, dict[str, bytes]]:
    """Markdown of a notebook, and its pictures.

    Args:
        path: of the notebook.
        prefix: begins the pictures' names; they lie beside the page.
    """
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
        elif cell.source.strip():
            parts.append(f"```python\n{cell.source}\n```")
        lines: list[str] = []
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{prefix}-{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode(data["image/png"])
                parts += [*_text(lines), f"![result of the cell above]({name})"]
            elif "<table" in data.get("text/html", ""):
                parts += [*_text(lines), f'<div class="result" markdown="0">{_on_one_line(data["text/html"])}</div>']
            else:
                lines.append(output.get("text") or data.get("text/plain", ""))
        parts += _text(lines)
    return "\n\n".join(parts), pictures


def _text(lines: list[str]) -> list[str]:
    """One block of all text since the last table or picture, which is taken out of ``lines``."""
    text = COLOUR.sub("", "".join(line if line.endswith("\n") else f"{line}\n" for line in lines))
    lines.clear()
    return [f'```text title="Result"\n{text}```'] if text.strip() else []


def _on_one_line(html: str) -> str:
    """HTML without styles and empty lines, which would end the block."""
    return " ".join(STYLE.sub("", html).split())
