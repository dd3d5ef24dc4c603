"""The benchmarks page shows what the stored results say."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import benchmarks.large_scale.__main__ as large_scale
import benchmarks.merlin.__main__ as merlin
import benchmarks.offline.__main__ as offline
import benchmarks.online.__main__ as online
from benchmarks import report
from benchmarks.large_scale import tables_report
from benchmarks.offline import quality
from tests.support.paths import ROOT


def large_scale_tables(results: dict) -> str:
    """With what was measured on other machines."""
    return tables_report.tables(results, large_scale.others())


@pytest.mark.parametrize(
    ("marker", "tables", "results"),
    [
        ("results", offline.tables, offline.RESULTS),
        ("merlin", merlin.tables, merlin.RESULTS),
        ("online", online.tables, online.RESULTS),
        ("tables", large_scale_tables, large_scale.RESULTS),
    ],
)
def test_the_page_shows_the_stored_results(
    marker: str, tables: Callable[[dict], str], results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    (shown,) = re.findall(f"<!-- {marker} -->\n(.*?)\n<!-- /{marker} -->", report.PAGE.read_text(), re.DOTALL)
    assert shown == tables(json.loads(results.read_text()))


def test_the_page_shows_what_is_stored_of_the_quality(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (shown,) = re.findall("<!-- quality -->\n(.*?)\n<!-- /quality -->", report.PAGE.read_text(), re.DOTALL)
    assert shown == quality.tables(quality.stored())


def test_new_tables_take_the_place_of_the_old_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "benchmarks.md"
    page.write_text("before\n<!-- online -->\nold\n<!-- /online -->\nafter\n")
    monkeypatch.setattr(report, "PAGE", page)
    report.into_page("online", r"new \1")
    assert page.read_text() == "before\n<!-- online -->\nnew \\1\n<!-- /online -->\nafter\n"
