"""The repository that Merlin Systems writes can be loaded, moved, and holds no secret."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from redis_recsys.config import MerlinSettings, TritonSettings
from redis_recsys.embedded.triton_server import EmbeddedTriton
from redis_recsys.errors import ConfigError, DataError, TrainingError
from redis_recsys.trainers.merlin.exporting import export_systems
from tests.support.commands import Outcome
from tests.support.paths import ROOT
from tests.support.planted import MERLIN_ENVIRONMENT, Trained

CONNECTION = "redis.internal:6379,password=${REDIS_PASSWORD}"

Recsys = Callable[..., Outcome]

# Script for the Merlin environment that checks the graph after the move.
INSPECT = """
import json, sys
from pathlib import Path
from merlin.dag import postorder_iter_nodes
from merlin.systems.dag.ensemble import Ensemble
ensemble = Ensemble.load(sys.argv[1])
print(json.dumps([
    {
        "op": type(node.op).__name__,
        "reads": node.input_schema.column_names,
        "gets": [name for parent in node.parents_with_dependencies for name in parent.output_schema.column_names],
        "makes": node.output_schema.column_names,
        "repo": getattr(node.op, "repo_path", None),
    }
    for node in postorder_iter_nodes(ensemble.graph.output_node)
]))
"""


@pytest.fixture(scope="module")
def written(by_merlin: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both repositories, moved away from where they were written."""
    folder = tmp_path_factory.mktemp("systems")
    assert by_merlin.export is not None
    merlin = MerlinSettings(environment=MERLIN_ENVIRONMENT, log=folder / "merlin.log")
    later = folder / "moved" / "feature_repo"
    export_systems(by_merlin.export, folder / "written", merlin, CONNECTION, later, candidates=20, topk=8)
    return Path(shutil.move(folder / "written", folder / "moved"))


def configs(folder: Path) -> dict[str, Any]:
    found = {}
    for path in (folder / "ensemble").glob("*/config.pbtxt"):
        found[path.parent.name] = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    return found


def test_every_model_has_a_configuration_that_triton_can_read_and_a_version(written: Path) -> None:
    found = configs(written)
    assert {name: config.backend for name, config in found.items()} == {
        "executor_model": "python",
        "0_predicttensorflowtriton": "tensorflow",
        "1_predicttensorflowtriton": "tensorflow",
    }
    for name, config in found.items():
        assert config.name == name
        assert (written / "ensemble" / name / "1").is_dir()
    inputs = [(each.name, list(each.dims)) for each in found["executor_model"].input]
    assert inputs == [("user_raw", [-1])]
    assert [each.name for each in found["executor_model"].output] == ["ordered_ids", "ordered_scores"]
    assert len(found["0_predicttensorflowtriton"].output) == 1
    assert {each.name for each in found["0_predicttensorflowtriton"].input} >= {"user", "group", "age"}


def test_the_operators_are_merlins_own_and_each_gets_what_it_reads(written: Path) -> None:
    folder = written / "ensemble" / "executor_model" / "1" / "ensemble"
    command = [MERLIN_ENVIRONMENT / "bin" / "python", "-c", INSPECT, folder]
    nodes = json.loads(subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout)
    names = [node["op"] for node in nodes]
    for name in ("QueryFeast", "PredictTensorflowTriton", "QueryFaiss", "UnrollFeatures", "SoftmaxSampling"):
        assert name in names
    for node in nodes:
        if node["gets"]:
            assert set(node["reads"]) <= set(node["gets"]), node
    assert {node["repo"] for node in nodes if node["repo"]} == {str(written / "feature_repo")}


class WithMerlin(EmbeddedTriton):
    """A Triton whose Python models run in the Merlin environment."""

    def _prepared(self) -> dict[str, str]:
        found = super()._prepared()
        path = f"{MERLIN_ENVIRONMENT / 'bin'}{os.pathsep}{found['PATH']}"
        return found | {"PATH": path, "VIRTUAL_ENV": str(MERLIN_ENVIRONMENT), "FEAST_USAGE": "False"}


def test_real_triton_loads_the_executor(written: Path, tmp_path: Path) -> None:
    """Triton's own Python backend, with Merlin's packages; current servers have no TensorFlow backend."""
    settings = TritonSettings(
        repository=tmp_path, environment=ROOT / ".venv-serving", grpc_port=0, http_port=0, metrics_port=0
    )

    def write(folder: Path) -> None:
        shutil.copytree(written / "ensemble" / "executor_model", folder / "executor_model")

    with WithMerlin(settings, write) as server:
        assert server.ready()
    assert "successfully loaded 'executor_model'" in server.log.read_text()


def test_the_saved_models_in_it_are_the_exported_ones(written: Path, by_merlin: Trained) -> None:
    assert by_merlin.export is not None
    script = """
import sys, numpy as np, tensorflow as tf
for pair in zip(sys.argv[1::2], sys.argv[2::2]):
    one, other = (tf.train.load_checkpoint(path + "/variables") for path in pair)
    names = [name for name in one.get_variable_to_shape_map() if name in other.get_variable_to_shape_map()
             and not name.startswith(("_CHECKPOINTABLE", "save_counter"))]
    same = [np.array_equal(one.get_tensor(name), other.get_tensor(name)) for name in names]
    print(len(same), all(same))
"""
    command = [MERLIN_ENVIRONMENT / "bin" / "python", "-c", script]
    for number, name in enumerate(("query_tower", "dlrm")):
        copy = written / "ensemble" / f"{number}_predicttensorflowtriton" / "1" / "model.savedmodel" / "variables"
        command += [by_merlin.export / name / "variables", copy]
    run = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
    lines = run.stdout.splitlines()
    assert len(lines) == 2
    for count, same in map(str.split, lines):
        assert int(count) > 4
        assert same == "True"


def test_the_index_has_every_item_and_feast_its_tables(written: Path, by_merlin: Trained) -> None:
    script = "import sys, faiss; index = faiss.read_index(sys.argv[1]); print(index.ntotal, index.nprobe)"
    path = written / "ensemble" / "executor_model" / "1" / "ensemble" / "items.faiss"
    command = [MERLIN_ENVIRONMENT / "bin" / "python", "-c", script, path]
    total, probes = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout.split()
    assert by_merlin.export is not None
    import polars as pl

    assert int(total) == len(pl.read_parquet(by_merlin.export / "item_features.parquet"))
    assert int(probes) >= 8
    repo = written / "feature_repo"
    assert {"user_raw", "group", "datetime", "created"} <= set(pl.read_parquet(repo / "user_features.parquet").columns)
    assert {path.name for path in repo.iterdir()} >= {"feature_store.yaml", "definitions.py", "registry.db"}


def test_a_secret_stays_a_variable(written: Path, by_merlin: Trained, merlin: MerlinSettings, tmp_path: Path) -> None:
    assert CONNECTION in (written / "feature_repo" / "feature_store.yaml").read_text()
    assert by_merlin.export is not None
    with pytest.raises(ConfigError, match=r"write password=\$\{VARIABLE\}"):
        export_systems(by_merlin.export, tmp_path / "out", merlin, "redis:6379,password=secret")
    assert not (tmp_path / "out").exists()


def test_what_is_there_is_not_replaced(by_merlin: Trained, merlin: MerlinSettings, tmp_path: Path) -> None:
    assert by_merlin.export is not None
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes").write_text("mine")
    with pytest.raises(DataError, match="out exists and is not empty: it holds notes"):
        export_systems(by_merlin.export, tmp_path / "out", merlin)
    assert (tmp_path / "out" / "notes").read_text() == "mine"


@pytest.mark.usefixtures("use_merlin")
def test_a_small_catalogue_is_named_on_the_command_line_and_nothing_is_left(
    recsys: Recsys, by_merlin: Trained, tmp_path: Path
) -> None:
    error = recsys("export", "merlin-systems", by_merlin.export, "--out", "out").error()
    assert re.search(r"index needs 100 items or more, these are \d\d", error)
    assert {path.name for path in tmp_path.iterdir()} == {"data"}  # with the log


def test_kinds_that_merlin_systems_does_not_know_are_named(
    by_merlin: Trained, merlin: MerlinSettings, tmp_path: Path
) -> None:
    assert by_merlin.export is not None
    export = Path(shutil.copytree(by_merlin.export, tmp_path / "export"))
    import polars as pl

    path = export / "user_features.parquet"
    pl.read_parquet(path).with_columns(age=pl.col("age").cast(pl.Float64)).write_parquet(path)
    with pytest.raises(TrainingError, match=r"age \(float64\): Merlin Systems' QueryFeast knows only int32"):
        export_systems(export, tmp_path / "out", merlin, candidates=20)
    assert np.array_equal(sorted(each.name for each in tmp_path.iterdir()), ["export", "merlin.log"])
