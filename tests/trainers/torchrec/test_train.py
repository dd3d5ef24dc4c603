"""Sharded training with real processes: the same model for any number, complete after a failure, and exported."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from redis_recsys.config import DlrmSettings
from redis_recsys.data.criteo.dataset import CriteoDataset, CriteoRows
from redis_recsys.data.criteo.generate import generate
from redis_recsys.errors import ConfigError, DataError, TrainingError
from redis_recsys.evaluation.metrics import auc
from redis_recsys.hugectr import dense, network
from redis_recsys.hugectr.sparse import SparseModel
from redis_recsys.trainers.torchrec import launch
from redis_recsys.trainers.torchrec.launch import train
from tests.support.commands import Outcome

pytest.importorskip("torchrec")

SIZES = [600, 300, 40, 30, 20, 4, 12, 9, 30, 500, 50, 70, 11, 22, 35, 33, 4, 9, 15, 400, 50, 60, 18, 10, 8, 7]
ROWS = 8000
TINY: dict[str, Any] = {
    "embedding_dim": 8,
    "bottom": [16],
    "top": [16],
    "row_wise_from": 100,
    "epochs": 1,
    "embedding_lr": 0.05,
    "learning_rate": 0.01,
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("torchrec") / "criteo"
    generate(folder, ROWS, slot_sizes=SIZES)
    return folder


def settings(folder: Path, **changes: Any) -> DlrmSettings:
    return DlrmSettings(**TINY | {"log": folder / "dlrm.log"} | changes)


class Exported:
    """Output of an export, computed from its files alone according to the documentation of HugeCTR's layers."""

    def __init__(self, folder: Path) -> None:
        self.shape = network.read(folder / "dlrm.json")
        layers = dense.read(folder / "dlrm_dense.model", self.shape)
        self.bottom, self.top = layers[: len(self.shape.bottom)], layers[len(self.shape.bottom) :]
        table = SparseModel(folder / "dlrm0_sparse.model", self.shape.dim)
        self.keys, self.rows = np.array(table.keys), np.array(table.rows)
        self.sample = np.load(folder / "sample.npz")

    def probability(self, features: np.ndarray, keys: np.ndarray) -> np.ndarray:
        place = np.argsort(self.keys)[np.searchsorted(np.sort(self.keys), keys)]
        values = features
        for kernel, bias in self.bottom:
            values = np.maximum(values @ kernel + bias, 0)
        vectors = [values, *np.moveaxis(self.rows[place], 1, 0)]
        dots = [(vectors[i] * vectors[j]).sum(axis=1) for i in range(len(vectors)) for j in range(i)]
        values = np.column_stack([values, *dots, np.zeros(len(values))])
        for kernel, bias in self.top[:-1]:
            values = np.maximum(values @ kernel + bias, 0)
        kernel, bias = self.top[-1]
        return 1 / (1 + np.exp(-(values @ kernel + bias)[:, 0]))


def test_one_process_and_two_give_the_same_tables(dataset: Path, tmp_path: Path) -> None:
    """Each step sees all rows, so that both get the same input; every table is split, or whole on one process."""
    everything = {"epochs": 4, "patience": 4}
    for processes in (1, 2):
        batch = CriteoDataset(dataset).count("train") // processes
        train(dataset, tmp_path / str(processes), settings(tmp_path, processes=processes, batch=batch, **everything))
    one, two = (Exported(tmp_path / str(processes)) for processes in (1, 2))
    np.testing.assert_array_equal(one.keys, np.arange(sum(SIZES)))
    np.testing.assert_array_equal(two.keys, one.keys)
    np.testing.assert_allclose(two.rows, one.rows, atol=2e-4)
    np.testing.assert_allclose(two.sample["probability"], one.sample["probability"], atol=1e-3)
    assert one.rows.std() > 0.01  # and not the initial values


@pytest.fixture(scope="module")
def trained(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Export and report of a training on two processes, long enough to learn something."""
    folder = tmp_path_factory.mktemp("trained")
    report = train(dataset, folder / "dlrm", settings(folder, processes=2, batch=64, epochs=2))
    return folder / "dlrm", report


def test_large_tables_are_split_by_rows_and_small_ones_lie_whole_on_either_process(
    trained: tuple[Path, dict[str, Any]],
) -> None:
    sharding = trained[1]["sharding"]
    for slot, size in zip(sharding, SIZES, strict=True):
        shards = [shard for shard in sharding[slot] if shard[2]]
        assert sum(rows for _, _, rows in shards) == size
        assert len(shards) == (2 if size >= 100 else 1)
    assert {process for shards in sharding.values() for process, _, _ in shards} == {0, 1}


def test_the_exported_files_give_the_probabilities_of_the_trained_model(trained: tuple[Path, dict[str, Any]]) -> None:
    exported = Exported(trained[0])
    sample = exported.sample
    assert sample["keys"].shape == (400, 26)  # the first half of the test part
    assert sample["probability"].std() > 0.05
    np.testing.assert_allclose(exported.probability(sample["dense"], sample["keys"]), sample["probability"], atol=1e-5)


def test_the_metrics_are_those_of_the_exported_model_over_the_whole_test_part(
    dataset: Path, trained: tuple[Path, dict[str, Any]]
) -> None:
    exported, metrics = Exported(trained[0]), trained[1]["test"]
    rows = CriteoRows.concatenate(list(CriteoDataset(dataset).batches("test", 1000)))
    starts = np.cumsum([0, *SIZES[:-1]])
    score = exported.probability(rows.dense, rows.ids + starts)
    assert metrics["auc"] == pytest.approx(auc(score, rows.label), abs=1e-5)
    assert rows.click_probability is not None
    assert metrics["oracle_auc"] == pytest.approx(auc(rows.click_probability, rows.label), abs=1e-6)


def test_it_learns_more_than_the_clicks_of_each_key(dataset: Path, trained: tuple[Path, dict[str, Any]]) -> None:
    """The model beats naive Bayes over the slots, the sum of smoothed log-odds of each key in the training part."""
    opened = CriteoDataset(dataset)
    rows, test = (CriteoRows.concatenate(list(opened.batches(part, 1000))) for part in ("train", "test"))  # type: ignore[arg-type]
    score = np.zeros(len(test))
    for slot, size in enumerate(SIZES):
        clicks = np.bincount(rows.ids[:, slot], rows.label, size) + rows.label.mean()
        score += np.log(clicks / (np.bincount(rows.ids[:, slot], minlength=size) + 1 - clicks))[test.ids[:, slot]]
    assert trained[1]["test"]["auc"] > auc(score, test.label) + 0.01


def workers(folder: Path) -> list[psutil.Process]:
    """Training processes of the job in a folder, without torchrun."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if any(str(folder) in word for word in command) and not any("torch.distributed.run" in w for w in command):
            found.append(process)
    return found


def wait_for(condition: Callable[[], object]) -> None:
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("waited for a minute")


def test_after_a_killed_process_the_checkpoint_stays_and_any_number_goes_on_from_it(
    dataset: Path, tmp_path: Path
) -> None:
    failed: list[BaseException] = []
    out, checkpoints = tmp_path / "dlrm", tmp_path / ".dlrm.checkpoints"
    chosen = settings(tmp_path, processes=2, batch=16, epochs=20, patience=20, checkpoint=20)

    def run() -> None:
        try:
            train(dataset, out, chosen)
        except TrainingError as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    wait_for(lambda: any(checkpoints.glob("step-*")))
    workers(tmp_path)[-1].kill()
    thread.join(60)
    assert "was killed by SIGKILL" in str(failed[0])
    assert str(tmp_path / "dlrm.log") in str(failed[0])
    assert "--resume goes on from step-" in str(failed[0])
    assert not out.exists()
    assert not workers(tmp_path)
    kept = max(path.name for path in checkpoints.glob("step-*"))
    with pytest.raises(TrainingError, match=f"checkpoint .*{kept} does not fit: the MLPs have other widths"):
        train(dataset, out, chosen.model_copy(update={"resume": True, "top": [8], "processes": 1}))
    shutil.copytree(checkpoints, tmp_path / ".other.checkpoints")
    epoch = json.loads((checkpoints / kept / "progress.json").read_text())["epoch"]
    for folder, processes in (("dlrm", 2), ("other", 1)):
        # one whole batch, so that both get the same input
        batch = CriteoDataset(dataset).count("train") // processes
        changes = {"processes": processes, "batch": batch, "epochs": epoch + 1, "resume": True}
        train(dataset, tmp_path / folder, chosen.model_copy(update=changes))
    two, one = Exported(out), Exported(tmp_path / "other")
    np.testing.assert_allclose(one.rows, two.rows, atol=2e-4)
    np.testing.assert_allclose(one.sample["probability"], two.sample["probability"], atol=1e-3)
    assert not checkpoints.exists()


def test_ctrl_c_ends_all_processes(dataset: Path, tmp_path: Path) -> None:
    timer = threading.Thread(target=lambda: (wait_for(lambda: workers(tmp_path)), os.kill(os.getpid(), signal.SIGINT)))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        train(dataset, tmp_path / "dlrm", settings(tmp_path, processes=1, batch=16, epochs=50, patience=50))
    timer.join()
    assert not workers(tmp_path)
    assert not (tmp_path / "dlrm").exists()


def test_what_a_process_refuses_is_told_as_one_line(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="training failed: the loss is nan in epoch 1: lower the learning rates"):
        train(dataset, tmp_path / "a", settings(tmp_path, processes=1, batch=512, learning_rate=1e30))


def test_what_is_missing_is_told_before_anything_starts(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="no Criteo dataset at"):
        train(tmp_path, tmp_path / "dlrm", settings(tmp_path))
    with pytest.raises(DataError, match="would replace"):
        train(dataset, dataset, settings(tmp_path))
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs TorchRec: run 'recsys setup torchrec'"):
        train(dataset, tmp_path / "dlrm", settings(tmp_path))


def test_the_command_line_makes_data_and_trains_on_it(recsys: Callable[..., Outcome], tmp_path: Path) -> None:
    import redis_recsys.cli.dlrm_train  # noqa: F401

    made = recsys("data", "criteo-synthetic", "--rows", 2000, "--scale", 1e-4)
    assert made.code == 0, made.err
    assert "1,600 train, 200 valid, 200 test rows" in made.out
    small = ("--embedding-dim", 4, "--bottom", 8, "--top", 8, "--top", 6, "--batch", 400, "--epochs", 1)
    trained = recsys("dlrm", "train", "--json", "--processes", 1, *small)
    assert trained.code == 0, trained.err
    report = json.loads(trained.out)
    assert report["processes"] == 1
    assert network.read(tmp_path / "data" / "dlrm" / "dlrm.json").top == (8, 6, 1)
    lines = ["\t".join(["0", *["1"] * 13, *["68fd1e64"] * 26])] * 20
    (tmp_path / "day.tsv").write_text("\n".join(lines))
    read = recsys("data", "criteo", "day.tsv", "--out", "data/real")
    assert read.code == 0, read.err
    assert "16 train, 2 valid, 2 test rows, 52 keys in 26 slots" in read.out.replace("\n", " ")
