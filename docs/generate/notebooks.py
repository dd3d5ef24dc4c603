"""Notebooks as pages: their text, code and stored results. Nothing is run."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import nbformat

STYLE = re.compile(r"<style.*?</style>", re.DOTALL)


def notebook_page(path: Path, prefix: str) -> tuple[str, dict[str, bytes]]:
    """Markdown of a notebook, and its pictures.

    Args:
        path: of the notebook.
        prefix: begins the pictures' names; they lie beside the page.
    """
    parts, pictures = [], {}
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
        elif cell.source.strip():
            parts.append(f"```python\n{cell.source}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{prefix}-{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode(data["image/png"])
                parts.append(f"![result of the cell above]({name})")
            elif "text/html" in data and "<table" in data["text/html"]:
                parts.append(f'<div class="result" markdown="0">{_on_one_line(data["text/html"])}</div>')
            else:
                text = output.get("text") or data.get("text/plain", "")
                parts.append(f'```text title="Result"\n{text.strip(chr(10))}\n```')
    return "\n\n".join(parts), pictures


def _on_one_line(html: str) -> str:
    """HTML without styles and empty lines, which would end the block."""
    return " ".join(STYLE.sub("", html).split())
