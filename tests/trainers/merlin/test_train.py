"""Merlin trains in its own environment and writes a bundle like any other, or none at all."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil
import pytest
import redis

from redis_recsys.bundle.bundle import Bundle
from redis_recsys.bundle.models import Ranker
from redis_recsys.config import MerlinSettings, Settings, TrainSettings
from redis_recsys.dataset.encode import encode
from redis_recsys.dataset.entities import Entities
from redis_recsys.dataset.interactions import PARTS, Dataset
from redis_recsys.dataset.schema import SIDES, Column, Schema
from redis_recsys.dataset.split import Split
from redis_recsys.dataset.user_history import History
from redis_recsys.dataset.vocabularies import read_vocabulary
from redis_recsys.errors import DataError, TrainingError
from redis_recsys.evaluation.evaluate import evaluate
from redis_recsys.offline.recommender import BundleRecommender
from redis_recsys.trainers.merlin import flat
from redis_recsys.trainers.merlin.categories import Categories
from redis_recsys.trainers.merlin.importing import import_export
from redis_recsys.trainers.merlin.train import MerlinTrainer
from redis_recsys.trainers.merlin.worker_process import BOOT, Worker
from redis_recsys.trainers.training import train, trainer_of
from tests.support.commands import Outcome
from tests.support.paths import ROOT
from tests.support.planted import GROUPS, MERLIN_ENVIRONMENT, ODD_NAMES, Trained, planted_dataset, renamed

RECSYS = str(Path(sys.executable).parent / "recsys")

Recsys = Callable[..., Outcome]


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return planted_dataset(tmp_path, rows=1000)


def left_in(folder: Path) -> set[str]:
    """Files beside the dataset."""
    return {path.name for path in folder.iterdir()} - {"raw", "dataset", "merlin.log", "data"}


# It learns


def test_the_manifest_names_merlin_and_keeps_keras_metrics(by_merlin: Trained) -> None:
    manifest = by_merlin.bundle.manifest
    assert manifest.trainer == "merlin"
    names = {"retrieval": "NDCG@10 within a batch", "ranking": "AUC"}
    for name, metric in (("retrieval", "val_ndcg_at_10"), ("ranking", "val_auc")):
        for number, record in enumerate(manifest.metrics["curves"][name], 1):
            assert record["epoch"] == number
            assert record["metric"] == record["keras"][metric]
            assert record["metric_name"] == names[name]
            assert record["rows_per_s"] > 0


def test_clicks_are_told_from_non_clicks_and_the_own_group_is_retrieved(by_merlin: Trained) -> None:
    bundle, dataset = by_merlin.bundle, by_merlin.dataset
    towers, both = BundleRecommender(bundle, dataset, 20, ranked=False), BundleRecommender(bundle, dataset, 20)
    report = evaluate(dataset, [towers, both], predict=both.predict)
    assert report.ranker["auc"] > 0.7
    users = np.arange(1, len(dataset.users) + 1)
    items = towers.recommend(users, 3)
    own = dataset.items.raw_ids[items - 1] % GROUPS == dataset.users.raw_ids[:, None] % GROUPS
    assert own.mean() > 0.4  # at most 0.25 by chance, since part of the own group has been seen


def test_onnx_agrees_with_tensorflow_on_real_rows(by_merlin: Trained) -> None:
    differences = by_merlin.bundle.manifest.metrics["onnx_difference"]
    assert set(differences) == {"user_tower.onnx", "item_tower.onnx", "ranker.onnx"}
    assert all(difference <= 1e-5 for difference in differences.values())


def test_the_ranker_computes_what_dlrm_does_on_every_pair(by_merlin: Trained, tmp_path: Path) -> None:
    assert by_merlin.export is not None
    bundle, dataset = by_merlin.bundle, by_merlin.dataset
    users, _ = next(bundle.users(block=len(dataset.users)))
    items = bundle.items
    n, m = 30, len(items)
    of_user, of_item = np.repeat(np.arange(n), m), np.tile(np.arange(m), n)
    sides: list[tuple[Any, Entities]] = [("user", users.rows(of_user)), ("item", items.rows(of_item))]
    frame = pl.concat([encoded(dataset, by_merlin.export, *side) for side in sides], how="horizontal")
    frame.write_parquet(tmp_path / "pairs.parquet")
    script = """
import sys, numpy as np, pandas as pd, tensorflow as tf
rows = pd.read_parquet(sys.argv[2])
signature = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
specs = signature.structured_input_signature[1]
inputs = {k: tf.constant(rows[k].to_numpy(s.dtype.as_numpy_dtype)) for k, s in specs.items()}
np.save(sys.argv[3], next(iter(signature(**inputs).values())).numpy())
"""
    paths = [by_merlin.export / "dlrm", tmp_path / "pairs.parquet", tmp_path / "scores.npy"]
    run = [MERLIN_ENVIRONMENT / "bin" / "python", "-c", script, *paths]
    subprocess.run(list(map(str, run)), check=True, capture_output=True)
    everything = [np.repeat(part[None], n, axis=0) for part in (items.categorical, items.numeric)]
    actual = Ranker(bundle.path / "ranker.onnx")(users.categorical[:n], users.numeric[:n], *everything)
    np.testing.assert_allclose(actual, np.load(tmp_path / "scores.npy").reshape(n, m), atol=1e-5)


def encoded(dataset: Dataset, export: Path, side: Any, entities: Entities) -> pl.DataFrame:
    """Packed rows as Merlin's inputs, from raw values looked up in NVTabular's own files one by one."""
    columns: dict[str, Any] = {}
    for position, column in enumerate(dataset.schema.numeric(side)):
        columns[column.name] = entities.numeric[:, position]
    for column in dataset.schema.categorical(side):
        names = flat.RowNames(dataset.schema).columns[column.name]
        unique = pl.read_parquet(export / "categories" / f"unique.{'_'.join(names)}.parquet")
        first = 3  # after padding, null and out-of-vocabulary
        ids = {str(value): number for number, value in enumerate(unique["_".join(names)].to_list(), first)}
        vocabulary = read_vocabulary(dataset.path, dataset.schema, column).to_pylist()
        missing = Categories.read(export / "categories", "_".join(names)).missing
        for name, slot in zip(names, entities.categorical[:, dataset.schema.slots(column)].T, strict=True):
            columns[name] = [ids[str(vocabulary[number - 1])] if number else missing for number in slot.tolist()]
    return pl.DataFrame(columns)


def test_the_towers_order_items_as_merlins_inner_product_does(by_merlin: Trained) -> None:
    assert by_merlin.export is not None
    frame = pl.read_parquet(by_merlin.export / "item_embeddings.parquet")
    vectors = frame.select(pl.exclude("item")).to_numpy()
    assert np.ptp(np.linalg.norm(vectors, axis=1)) > 0.05  # so that cosine similarity would give another order
    assert by_merlin.bundle.manifest.embedding_dim == vectors.shape[1] + 1


# Rows for NVTabular


def test_flat_rows_hold_raw_values_and_what_the_user_did_before(tmp_path: Path) -> None:
    dataset = planted_dataset(tmp_path, rows=600, users=20)
    flat.write_rows(dataset, tmp_path, negatives=4, seed=1)
    rows, train = pl.read_parquet(tmp_path / "train.parquet"), dataset.rows("train")
    assert len(rows) == len(train)
    raw_users, raw_items = dataset.users.raw_ids, dataset.items.raw_ids
    np.testing.assert_array_equal(rows["user_raw"], raw_users[train.user - 1])
    np.testing.assert_array_equal(rows["item"].cast(pl.Int64), raw_items[train.item - 1])
    np.testing.assert_array_equal(rows["click"], train.target)
    np.testing.assert_array_equal(rows["group"], (raw_users[train.user - 1] - 1) % GROUPS)
    before: dict[int, list[str]] = {}
    for row, user, item, click in zip(
        rows.select("recent_1", "recent_2", "recent_3").iter_rows(), rows["user_raw"], rows["item"], rows["click"],
        strict=True,
    ):  # fmt: skip
        newest = before.get(user, [])[::-1][:3]
        assert [each for each in row if each is not None] == newest
        if click:
            before.setdefault(user, []).append(str(item))


def test_negatives_are_drawn_where_there_are_only_clicks(tmp_path: Path) -> None:
    dataset = planted_dataset(tmp_path, rows=600, users=20, target=False, text_ids=True)
    flat.write_rows(dataset, tmp_path, negatives=3, seed=1)
    for part in ("train", "valid"):
        rows = pl.read_parquet(tmp_path / f"{part}.parquet")
        assert rows["click"].mean() == 0.25
        assert (rows["click"].to_numpy().reshape(-1, 4).sum(axis=1) == 1).all()  # not all clicks first
        assert len(rows) == 4 * dataset.count(part)  # type: ignore[arg-type]


def test_long_lists_are_cut_where_nvtabular_could_not_name_the_file() -> None:
    ids = [Column(name=side, side=side, kind="categorical", role="id") for side in SIDES]
    recent = Column(name="recent", side="user", kind="multi-categorical", role="history", max_length=200)
    names = flat.RowNames(Schema(name="x", columns=[*ids, recent])).columns["recent"]
    assert 1 < len(names) < 200
    assert len("unique." + "_".join(names) + ".parquet") <= 255


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A bundle of columns of any name, whose ids are texts, and Merlin's export."""
    folder = tmp_path_factory.mktemp("odd")
    encode(renamed(folder / "raw", ODD_NAMES, rows=1500, users=60, text_ids=True), folder / "dataset", Split())
    dataset, merlin = (
        Dataset(folder / "dataset"),
        MerlinSettings(log=folder / "merlin.log", environment=MERLIN_ENVIRONMENT),
    )
    bundle = train(dataset, settings(merlin, encoder_dim=8, ranking_dim=8), folder / "bundle", folder / "export")
    return Trained(dataset, bundle, export=folder / "export")


def test_columns_of_any_name_are_learnt_from(odd: Trained) -> None:
    """Names may be paths, devices or TensorFlow's words; this fails unless the models equal TensorFlow's to 1e-5."""
    folder = odd.bundle.path.parent
    assert [c.name for c in odd.bundle.schema.columns] == [
        c.name for c in Schema.load(folder / "raw" / "schema.yaml").columns
    ]
    assert len(BundleRecommender(odd.bundle, odd.dataset, 20).recommend(np.arange(1, 6), 3)) == 5
    assert left_in(folder) == {"bundle", "export"}


def test_text_ids_are_learnt_from_exported_and_imported(odd: Trained, merlin: MerlinSettings, tmp_path: Path) -> None:
    assert odd.export is not None
    dataset, schema = odd.dataset, odd.dataset.schema
    clicks = dataset.rows("train").positives()
    raw = {"user": dataset.users.raw_ids[clicks.user - 1], "item": dataset.items.raw_ids[clicks.item - 1]}
    for side in SIDES:
        (name,) = flat.RowNames(schema).columns[schema.id_column(side).name]
        frame = pl.read_parquet(odd.export / f"{side}_features.parquet")
        assert set(frame[f"{name}_raw"]) == set(raw[side].tolist())
        categories = Categories.read(odd.export / "categories", name)
        assert categories.values[frame[name] - categories.first].to_list() == frame[f"{name}_raw"].to_list()
    assert {item[0] for item in odd.bundle.raw_ids("item").tolist()} == {"i"}
    imported = import_export(odd.export, tmp_path / "imported", merlin)
    assert set(imported.raw_ids("item").tolist()) == set(raw["item"].tolist())


# On the command line


@pytest.mark.usefixtures("use_server", "use_merlin")
def test_every_verb_works_on_a_bundle_of_merlin(
    recsys: Recsys, by_merlin: Trained, client: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECSYS_TRITON_ENVIRONMENT", str(ROOT / ".venv-serving"))
    path = by_merlin.bundle.path
    report = json.loads(recsys("evaluate", path, "--dataset", by_merlin.dataset.path, "--no-baselines", "--json").out)
    assert report["ranker"]["auc"] > 0.7
    assert json.loads(recsys("batch", path, "--json").out)["users"] == by_merlin.bundle.manifest.users
    ahead = json.loads(recsys("get", 1, "--json").out)
    assert ahead["source"] == "model"
    assert json.loads(recsys("deploy", path, "--json").out)["users"] == by_merlin.bundle.manifest.users
    monkeypatch.setenv("RECSYS_ONLINE_SIMILAR", "0")
    monkeypatch.setenv("RECSYS_ONLINE_POPULAR", "0")
    monkeypatch.setenv("RECSYS_ONLINE_NEAREST", "100")
    ports = ("--grpc-port", "0", "--http-port", "0", "--metrics-port", "0")
    serving = subprocess.Popen([RECSYS, "serve", *ports], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "data" / "triton" / "server.json").exists():
            assert serving.poll() is None, serving.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        (live,) = json.loads(recsys("recommend", 1, "--json").out)
        assert not live["degraded"]
        shared = min(len(live["items"]), len(ahead["items"]))
        assert live["items"][:shared] == ahead["items"][:shared]
        np.testing.assert_allclose(live["scores"][:shared], ahead["scores"][:shared], atol=1e-5)
    finally:
        serving.send_signal(signal.SIGTERM)
        serving.communicate(timeout=60)


def test_without_an_environment_one_line_says_how_to_make_it(
    recsys: Recsys, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECSYS_MERLIN_ENVIRONMENT", "nowhere")
    error = recsys("train", dataset.path, "--trainer", "merlin", "--out", tmp_path / "bundle").error()
    assert error == (
        "error: no Merlin environment in nowhere: make it with 'recsys setup merlin', or set RECSYS_MERLIN_ENVIRONMENT"
    )
    assert left_in(tmp_path) == set()


def test_options_that_merlin_does_not_know_are_named(recsys: Recsys, dataset: Dataset) -> None:
    options = ("--trainer", "merlin", "--temperature", 0.2, "--no-refit")
    assert "has no refit, temperature" in recsys("train", dataset.path, *options).error()
    assert "--export is for --trainer merlin" in recsys("train", dataset.path, "--export", "there").error()
    assert "finds one" in recsys("train", dataset.path, "--trainer", "merlin", "--device", "cpu").error()
    assert "train.trainer" in recsys("train", dataset.path, "--trainer", "jax").error()


# Failures


def settings(merlin: MerlinSettings, **changes: Any) -> Settings:
    return Settings(
        train=TrainSettings(trainer="merlin", epochs=1, embedding_dim=8), merlin=merlin.model_copy(update=changes)
    )


def fake(path: Path, script: str) -> Path:
    """A fake of the Merlin environment's Python, with the output of the real one in a failure."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("kill -KILL $$", "killed, most likely for want of memory"),
        ("kill -TERM $$", "ended by SIGTERM"),
        ("echo 'ImportError: no TensorFlow' >&2; exit 1", "ImportError: no TensorFlow"),
        ("""echo '{"event": "error", "message": "ResourceExhaustedError: OOM"}'; exit 1""", "ResourceExhaustedError"),
        ("exit 3", "it ended with code 3"),
        ("exit 0", "ended before retrieval was trained"),
    ],
)
def test_a_worker_that_dies_leaves_no_bundle_and_says_why(
    dataset: Dataset, tmp_path: Path, merlin: MerlinSettings, script: str, reason: str
) -> None:
    python = fake(tmp_path / "dataset" / "python", script)
    with pytest.raises(TrainingError) as caught:
        train(dataset, settings(merlin, environment=python), tmp_path / "bundle", tmp_path / "export")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert left_in(tmp_path) == set()


def test_a_real_worker_that_is_killed_leaves_no_bundle(
    dataset: Dataset, tmp_path: Path, merlin: MerlinSettings
) -> None:
    trainer = MerlinTrainer(dataset, settings(merlin), tmp_path / "bundle")
    trainer.events = trainer.start()
    assert next(trainer.events)["event"] == "begin"
    (worker,) = workers_of(os.getpid())
    worker.kill()
    with pytest.raises(TrainingError, match="was killed"):
        trainer.fit_retrieval()
    assert left_in(tmp_path) == set()


def begun(dataset: Dataset, folder: Path) -> subprocess.Popen[str]:
    """Command-line training whose worker has imported Merlin."""
    command = [RECSYS, "train", str(dataset.path), "--trainer", "merlin", "--out", "bundle"]
    training = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
    assert training.stderr is not None
    assert "merlin import" in training.stderr.readline()
    return training


@pytest.mark.usefixtures("use_merlin")
def test_ctrl_c_ends_the_worker_too_and_leaves_no_bundle(dataset: Dataset, tmp_path: Path) -> None:
    training = begun(dataset, tmp_path)
    (worker,) = workers_of(training.pid)
    training.send_signal(signal.SIGINT)
    _, err = training.communicate(timeout=30)
    assert training.returncode == 130
    assert err.splitlines()[-1] == "error: interrupted"
    assert not worker.is_running()
    assert left_in(tmp_path) == set()


@pytest.mark.usefixtures("use_merlin")
def test_the_worker_ends_when_its_starter_is_killed(dataset: Dataset, tmp_path: Path) -> None:
    training = begun(dataset, tmp_path)
    (worker,) = workers_of(training.pid)
    training.kill()
    training.communicate()
    worker.wait(timeout=20)
    assert not (tmp_path / "bundle").exists()


def workers_of(starter: int) -> list[psutil.Process]:
    """Worker processes of a process."""
    started = psutil.Process(starter).children(recursive=True)
    return [process for process in started if "recsys_trainers.merlin.worker" in " ".join(process.cmdline())]


def test_versions_that_drift_from_the_pins_are_named(tmp_path: Path, merlin: MerlinSettings) -> None:
    package = tmp_path / "src" / "redis_recsys" / "trainers" / "merlin"
    subprocess.run(["cp", "-r", ROOT / "src", tmp_path], check=True)
    pins = package / "requirements.txt"
    pins.write_text(re.sub(r"(?m)^numpy==.*$", "numpy==1.0.0", pins.read_text()) + "tensorflow-text==2.12.1\n")
    command = [MERLIN_ENVIRONMENT / "bin" / "python", "-c", BOOT, package.parent, "nothing"]
    run = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    events = [json.loads(line) for line in run.stdout.splitlines()]
    told = [event["message"] for event in events if event["event"] == "drift"]
    assert len(told) == 2
    assert "numpy is 1.23.5, tested with 1.0.0: 'recsys setup merlin --again' installs that" in told[0]
    assert "tensorflow-text is missing" in told[1]
    assert events[-1] == {"event": "error", "message": "no verb 'nothing'"}


def test_drift_is_a_warning_and_not_an_event(
    tmp_path: Path, merlin: MerlinSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    script = """echo '{"event": "drift", "message": "numpy is 2"}'; echo '{"event": "schema", "columns": []}'"""
    python = fake(tmp_path / "python", script)
    with Worker(merlin.model_copy(update={"environment": python}), "fit") as worker:
        assert [event["event"] for event in worker] == ["schema"]
    assert "warning: numpy is 2" in capsys.readouterr().err


def test_calls_in_the_wrong_order_are_refused(dataset: Dataset, tmp_path: Path, merlin: MerlinSettings) -> None:
    with pytest.raises(TrainingError, match="train both models"):
        MerlinTrainer(dataset, settings(merlin), tmp_path / "bundle").export()


def test_an_export_that_would_replace_the_dataset_is_refused(
    dataset: Dataset, tmp_path: Path, merlin: MerlinSettings
) -> None:
    with pytest.raises(DataError, match="would replace"):
        trainer_of(dataset, settings(merlin), tmp_path / "bundle", dataset.path)


def test_a_bundle_of_another_dataset_is_refused_by_its_ids(recsys: Recsys, by_merlin: Trained, tmp_path: Path) -> None:
    other = planted_dataset(tmp_path, rows=4000, users=200, text_ids=True)
    assert "was not trained on" in recsys("evaluate", by_merlin.bundle.path, "--dataset", other.path).error()


def test_histories_are_those_after_every_row(by_merlin: Trained) -> None:
    dataset = by_merlin.dataset
    expected = History.of(dataset.rows(*PARTS), len(dataset.users))
    _, history = next(Bundle(by_merlin.bundle.path).users(block=len(dataset.users)))
    np.testing.assert_array_equal(history.items, expected.items)


def test_nothing_but_the_bundle_and_the_export_is_left(by_merlin: Trained) -> None:
    assert by_merlin.export is not None
    assert left_in(by_merlin.bundle.path.parent) == {"bundle", "export"}
    exported = {path.name for path in by_merlin.export.iterdir()}
    assert exported == {
        "query_tower", "candidate_tower", "dlrm", "user_features.parquet", "item_features.parquet",
        "item_embeddings.parquet", "categories", "workflow", "export.json",
    }  # fmt: skip
