"""Pages of the library reference: one per package, with every module in it, which mkdocstrings fills in."""

from __future__ import annotations

from pathlib import Path

PACKAGE = "redis_recsys"
DOCSTRING = "    options:\n      members: false\n      show_root_heading: false\n      show_root_toc_entry: false"


def reference_pages(root: Path) -> dict[str, str]:
    """Path of a page below ``docs/`` -> its Markdown.

    Args:
        root: of the repository.
    """
    library = root / "src" / PACKAGE
    folders = sorted(path.parent for path in library.rglob("__init__.py"))
    return {f"reference/{_name(folder, root)}.md": _page(_name(folder, root), folder) for folder in folders}


def _name(folder: Path, root: Path) -> str:
    return ".".join(folder.relative_to(root / "src").parts)


def _page(name: str, folder: Path) -> str:
    modules = sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("__"))
    parts = [f"# {name}", f"::: {name}\n{DOCSTRING}", *(f"::: {name}.{module}" for module in modules)]
    return "\n\n".join(parts)
