"""Layout of the library: places of modules, descriptions in their folders, and exports."""

from __future__ import annotations

import ast
import importlib
import re
from collections import Counter
from pathlib import Path

import pytest

from tests.support.paths import ROOT

LIBRARY = ROOT / "src" / "redis_recsys"
FOLDERS = sorted(path.parent for path in LIBRARY.rglob("__init__.py") if path.parent != LIBRARY)
TWINS = {"train", "model", "export", "worker"}  # one in every trainer
EXPORTS = "__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)"


def name_of(folder: Path) -> str:
    return ".".join(folder.relative_to(LIBRARY.parent).parts)


def test_the_top_holds_settings_and_errors_alone() -> None:
    names = {path.name for path in LIBRARY.iterdir() if path.is_file()}
    assert names == {"__init__.py", "py.typed", "config.py", "errors.py"}


def test_no_two_modules_share_a_name() -> None:
    names = Counter(path.stem for path in LIBRARY.rglob("*.py") if not path.stem.startswith("__"))
    assert {name for name, count in names.items() if count > 1} <= TWINS
    for path in LIBRARY.rglob("*.py"):
        if names[path.stem] > 1:
            assert path.parent.parent == LIBRARY / "trainers", path


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_a_folder_says_what_each_of_its_files_is_for(folder: Path) -> None:
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
    assert text is not None
    told = set(re.findall(r"^- ``([\w/]+)``: \S", text, re.MULTILINE))
    files = {path.stem for path in folder.glob("*.py") if not path.stem.startswith("__")}
    assert told == files | {f"{path.parent.name}/" for path in folder.glob("*/__init__.py")}


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_a_folder_holds_no_code_of_its_own_and_exports_what_it_says(folder: Path) -> None:
    _, *code = ast.parse((folder / "__init__.py").read_text()).body
    stub = folder / "__init__.pyi"
    if not stub.exists():
        assert not code
        return
    assert [ast.unparse(line) for line in code] == [
        "from lazy_loader import attach_stub",
        EXPORTS.replace(", ", ", ", 1),
    ]
    package = importlib.import_module(name_of(folder))
    assert package.__all__
    for name in package.__all__:
        assert getattr(package, name) is not None


def test_docstrings_begin_with_a_noun_or_an_imperative() -> None:
    begins = re.compile(r"(What|Who|Whose|Which|Where|When|Why|How|Of|As|That)\b")
    for path in LIBRARY.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node)
                assert text is None or not begins.match(text), f"{path}: {text}"
