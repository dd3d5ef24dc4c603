"""Notebooks as they are committed."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from tests.support.paths import ROOT


@pytest.mark.parametrize("path", sorted(ROOT.glob("*/*.ipynb")), ids=lambda path: path.name)
def test_a_notebook_that_is_committed_has_been_run_and_is_small(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert path.stat().st_size < 1_500_000
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]
