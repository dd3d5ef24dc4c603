"""README and generated pages, which show what the code has."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from links import Links
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File
from mkdocs.structure.pages import Page
from notebooks import notebook_page
from reference import reference_pages
from settings_page import settings_page
from site_hooks import on_post_page
from verbs import command_line_page, verbs

from redis_recsys.cli.main import app
from redis_recsys.config import Settings
from tests.support.paths import ROOT
from tests.support.planted import planted

README = (ROOT / "README.md").read_text()
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
LIBRARY = ROOT / "src" / "redis_recsys"


def test_the_readme_is_short_and_has_its_picture_on_the_first_screen() -> None:
    assert len(README.split()) <= 1300
    assert "assets/multi-stage.png" in "".join(README.splitlines(keepends=True)[:10])


def test_the_python_of_the_readme_writes_recommendations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in {"EPOCHS": "1", "DEVICE": "cpu", "EMBEDDING_DIM": "8", "REFIT": "false"}.items():
        monkeypatch.setenv(f"RECSYS_TRAIN_{name}", value)
    monkeypatch.setattr("redis_recsys.data.movielens.fetch", lambda raw, name, cache: planted(raw))
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(code, {})
    assert re.search(r"\[\d+(, \d+){19}\]", capsys.readouterr().out)


def test_every_folder_and_file_of_the_library_that_a_recipe_names_is_there() -> None:
    for path in re.findall(r"`((?:src|tests|docs|\.ci)/[\w./-]*)`", (ROOT / "CONTRIBUTING.md").read_text()):
        if "NAME" not in path:
            assert (ROOT / path).exists(), path


def test_the_settings_page_has_every_setting_with_its_variable() -> None:
    page = settings_page()
    for section, field in Settings.model_fields.items():
        model: Any = field.annotation
        for name in getattr(model, "model_fields", {}):
            assert f"| `{name}` |" in page
            assert f"`RECSYS_{section.upper()}_{name.upper()}`" in page
    assert "| `half_life` | number, > 0 | none | `RECSYS_TRAIN_HALF_LIFE` | `--half-life` of train |" in page
    assert "`RECSYS_MERLIN_RANKING_BATCH` | `--merlin-ranking-batch` of train |" in page
    without_flag = {row.split("`")[1] for row in page.splitlines() if re.search(r"` \|  \| [^|]*\|$", row)}
    assert without_flag == {"password", "token"}


def test_the_command_line_page_has_every_verb_with_its_options() -> None:
    page = command_line_page()
    for path, command in verbs(typer.main.get_command(app)):
        section = page.split(f"# `recsys {path}`\n")[1].split("\n#")[0]
        options = [each.opts[0] for each in command.params if each.param_type_name == "option" and each.name != "help"]
        assert all(f"`{option}" in section for option in options), path


def test_the_library_reference_has_every_module() -> None:
    text = "\n".join([*reference_pages(ROOT).values(), ""])
    for path in LIBRARY.rglob("*.py"):
        if not path.stem.startswith("__"):
            assert f"::: {'.'.join(path.relative_to(ROOT / 'src').with_suffix('').parts)}\n" in text


@pytest.mark.parametrize("path", sorted(ROOT.glob("*/*.ipynb")), ids=lambda path: path.name)
def test_a_notebook_becomes_a_page_with_its_results(path: Path) -> None:
    text, pictures = notebook_page(path, "result")
    assert all(content.startswith(b"\x89PNG") and f"]({name})" in text for name, content in pictures.items())
    assert len(pictures) >= 2
    assert '<div class="result"' in text


@pytest.mark.parametrize(
    "loading", ['<script src="https://cdn.example/a.js">', '<link rel="stylesheet" href="//fonts.example/f.css">']
)
def test_a_page_that_loads_something_from_the_internet_ends_the_build(loading: str) -> None:
    page = Page("Home", File("index.md", "", "", True), MkDocsConfig())
    with pytest.raises(PluginError, match=r"index.md loads .*example"):
        on_post_page(f"<head>{loading}</head>", page, MkDocsConfig())
    kept = '<a href="https://redis.io">Redis</a><img src="../assets/a.png">'
    assert on_post_page(kept, page, MkDocsConfig()) == kept


def test_links_lead_to_pages_pictures_and_the_repository() -> None:
    text = "[a](../../CONTRIBUTING.md#rules) ![b](../../assets/multi-stage.png) [c](../../Makefile) `[d](x.md)`"
    links = Links(ROOT, {"CONTRIBUTING.md": "contributing.md"}, "https://git.example/us/it/")
    assert links.on_site(text, "docs/examples/page.md", "examples/page.md") == (
        "[a](../contributing.md#rules) ![b](../assets/multi-stage.png) "
        "[c](https://git.example/us/it/blob/main/Makefile) `[d](x.md)`"
    )
    assert Links(ROOT, {}, None).on_site("see [c](../Makefile)", "docs/page.md", "page.md") == "see c"
    with pytest.raises(FileNotFoundError, match=r"docs/page.md links to gone.md"):
        links.on_site("[gone](gone.md)", "docs/page.md", "page.md")


def test_workflows_follow_their_schema() -> None:
    checker = Path(sys.executable).with_name("check-jsonschema")
    done = subprocess.run([checker, "--builtin-schema", "vendor.github-workflows", *WORKFLOWS], capture_output=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_calls_targets_and_tests_that_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    steps = [step for job in yaml.safe_load(path.read_text())["jobs"].values() for step in job["steps"]]
    called = {
        word for step in steps for word in re.findall(r"^make (?:-j\d )?([a-z -]+)", step.get("run", ""), re.MULTILINE)
    }
    assert {target for words in called for target in words.split()} <= targets
    tests = [word for step in steps for word in re.findall(r"\S*tests/\S*", step.get("run", ""))]
    assert all((ROOT / test.strip("\"'").removeprefix('TESTS="').split("::")[0]).exists() for test in tests)


def test_the_workflows_run_every_part_of_ci() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    runs = "\n".join(step.get("run", "") for job in jobs.values() for step in job["steps"])
    parts = re.findall(r"^make ([a-z-]+)", script, re.MULTILINE)
    assert {"test", "cloud-test", "compose-test"} <= set(parts)
    assert all(f"make {part}" in runs for part in parts)


def test_the_hooks_before_a_commit_are_valid() -> None:
    tool = Path(sys.executable).with_name("pre-commit")
    subprocess.run([tool, "validate-config", ROOT / ".pre-commit-config.yaml"], check=True, capture_output=True)
