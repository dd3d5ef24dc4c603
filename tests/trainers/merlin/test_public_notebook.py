"""An export made by the public notebooks' own flow is imported, served, and recommends the same as Merlin."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import redis
import tritonclient.grpc as grpc

from redis_recsys.bundle.bundle import Bundle
from redis_recsys.config import load_settings
from redis_recsys.online.recommender_client import Client
from redis_recsys.online.serving import serving
from tests.support.commands import Outcome
from tests.support.paths import ROOT, SUPPORT
from tests.support.planted import MERLIN_ENVIRONMENT

Recsys = Callable[..., Outcome]
Lists = dict[str, list[list[Any]]]
CANDIDATES = 20  # as in the notebook


def run(script: str, folder: Path, *arguments: object) -> None:
    """Run a script beside this file in the Merlin environment."""
    path = SUPPORT / script
    command = [MERLIN_ENVIRONMENT / "bin" / "python", path, folder, *arguments]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="session")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The notebook's files in ``export``, and its recommendations in ``lists.json``. Do not alter them."""
    folder = tmp_path_factory.mktemp("notebook")
    run("notebook.py", folder, CANDIDATES)
    return folder


@pytest.fixture(scope="module")
def odd_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exports by the name of what is odd in them. Do not alter them."""
    folder = tmp_path_factory.mktemp("odd")
    run("odd_models.py", folder)
    return folder


def assert_same(found: list[tuple[list[Any], list[float]]], expected: Lists, tolerance: float = 5e-6) -> None:
    """Assert equal scores, and equal items except where scores tie."""
    assert len(found) == len(expected)
    for (items, scores), (wanted, wanted_scores) in zip(found, expected.values(), strict=True):
        np.testing.assert_allclose(scores, wanted_scores, atol=tolerance)
        apart = np.abs(np.subtract.outer(wanted_scores, wanted_scores)) > 2 * tolerance
        np.fill_diagonal(apart, True)
        alone = apart.all(axis=1)  # no other item has nearly this score
        assert alone.mean() > 0.5
        assert np.array(items)[alone].tolist() == np.array(wanted)[alone].tolist()
        assert set(items) == set(wanted)


def lists_of(folder: Path) -> Lists:
    found: Lists = json.loads((folder / "lists.json").read_text())
    return found


def ahead(recsys: Recsys, expected: Lists) -> list[tuple[list[Any], list[float]]]:
    """Output of ``recsys get`` for the users."""
    found = json.loads(recsys("get", *expected, "--json").out)
    assert {each["source"] for each in found} == {"model"}
    return [(each["items"], each["scores"]) for each in found]


def asked_as_before(url: str, user: int) -> list[int]:
    """Answer to the client of the public multi-stage example, a column of items."""
    given = np.array([user], dtype=np.int32).reshape(-1, 1)
    tensor = grpc.InferInput("user_id_raw", given.shape, "INT32")
    tensor.set_data_from_numpy(given)
    with grpc.InferenceServerClient(url=url) as client:
        answer = client.infer(model_name="ensemble-model", inputs=[tensor])
    (column,) = answer.as_numpy("ordered_ids").T.tolist()
    return list(column)


@pytest.mark.usefixtures("use_server", "use_merlin")
def test_the_notebooks_export_recommends_ahead_and_on_demand_what_the_notebook_did(
    recsys: Recsys, notebook: Path, client: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = lists_of(notebook)
    ended = recsys("import", "merlin", notebook / "export", "--out", "bundle")
    assert f"{len(expected):,} users" in ended.out, ended
    assert "user_id_raw" not in (tmp_path / "bundle" / "schema.yaml").read_text()
    recsys("batch", "bundle", "--candidates", CANDIDATES, "--topk", CANDIDATES)
    assert_same(ahead(recsys, expected), expected)

    recsys("deploy", "bundle")
    for name, value in {"NEAREST": CANDIDATES, "SIMILAR": 0, "POPULAR": 0, "TOPK": CANDIDATES}.items():
        monkeypatch.setenv(f"RECSYS_ONLINE_{name}", str(value))
    ports = dict.fromkeys(("grpc_port", "http_port", "metrics_port"), 0)
    own = {"environment": ROOT / ".venv-serving", "repository": tmp_path / "triton", "instances": 1}
    settings = load_settings(triton=ports | own | {"alias": "ensemble-model"})
    with serving(settings, events=False) as triton, Client(settings.triton) as asking:
        answers = asking.recommend([int(user) for user in expected])
        assert not any(answer.degraded for answer in answers)
        assert_same([(answer.items, answer.scores) for answer in answers], expected)
        for answer in [*answers[:10], *asking.recommend([2_000_000_000])]:  # the last one is unknown
            assert asked_as_before(f"{triton.host}:{triton.grpc_port}", int(answer.user)) == answer.items


@pytest.mark.usefixtures("use_server", "use_merlin")
def test_any_signature_is_taken_and_found_in_the_folders_of_the_public_multi_stage_example(
    recsys: Recsys, odd_models: Path, client: redis.Redis, tmp_path: Path
) -> None:
    """Export in the example's folders, plus NVTabular's categories and item embeddings, which the example lacks."""
    example = Path(shutil.copytree(odd_models / "plain", tmp_path / "example"))
    expected = lists_of(example)
    for name, stage in (("query_tower", "1-user-embeddings"), ("dlrm", "5-ranking")):
        (example / "models" / stage / "1").mkdir(parents=True)
        (example / name).rename(example / "models" / stage / "1" / "model.savedmodel")
    (example / "feature_repo" / "data").mkdir(parents=True)
    for side in ("user", "item"):  # its first notebook adds two times for Feast
        frame = pl.read_parquet(example / f"{side}_features.parquet")
        times = {name: pl.lit(0).cast(pl.Datetime("ns")) for name in ("datetime", "created")}
        (example / f"{side}_features.parquet").unlink()
        frame.with_columns(**times).write_parquet(example / "feature_repo" / "data" / f"{side}_features.parquet")
    ended = recsys("import", "merlin", example, "--out", "bundle")
    assert ended.code == 0, ended
    schema = Bundle(tmp_path / "bundle").schema
    assert [column.name for column in schema.numeric("user")] == ["age"]
    recsys("batch", "bundle", "--candidates", 4, "--topk", 4)
    assert_same(ahead(recsys, expected), expected)


@pytest.mark.usefixtures("use_merlin")
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("list", "reads genres as lists: only columns of one value per row can be carried over"),
        ("absent", "reads city, which neither user_features.parquet nor item_features.parquet has"),
        ("small", "cannot take the rows of the feature tables, of another run? "),
    ],
)
def test_what_cannot_be_carried_over_is_said_in_one_line(
    recsys: Recsys, odd_models: Path, tmp_path: Path, kind: str, reason: str
) -> None:
    assert reason in recsys("import", "merlin", odd_models / kind, "--out", "bundle").error()
    assert not (tmp_path / "bundle").exists()
