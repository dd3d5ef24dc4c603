"""Training learns the planted preferences, depends only on the seed even if interrupted, and refuses clearly."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from scipy.stats import rankdata

from redis_recsys.bundle.bundle import Bundle
from redis_recsys.config import TrainSettings
from redis_recsys.dataset.interactions import Dataset, Rows
from redis_recsys.errors import TrainingError
from redis_recsys.offline.recommender import BundleRecommender
from redis_recsys.trainers.negatives import with_negatives
from redis_recsys.trainers.torch import loop
from redis_recsys.trainers.torch import train as train_module
from redis_recsys.trainers.torch.train import Trainer
from tests.support.planted import GROUPS, TINY, Trained, planted_dataset, trained_on

Weights = dict[str, torch.Tensor]
LEARNS = {"epochs": 20, "patience": 12, "ranking_dim": 8, "ranking_batch": 64, "ranking_lr": 0.01, "ranking_l2": 0.0}


@pytest.fixture(scope="module")
def clicks(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Clicks and non-clicks, enough for several steps in an epoch."""
    return planted_dataset(tmp_path_factory.mktemp("clicks"), rows=1000)


@pytest.fixture(scope="module")
def implicit(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Clicks only."""
    return planted_dataset(tmp_path_factory.mktemp("implicit"), rows=1000, target=False)


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Models trained long enough to learn something of 200 users, 20 rows each."""
    dataset = planted_dataset(tmp_path_factory.mktemp("many"), rows=4000, users=200)
    target = tmp_path_factory.mktemp("learned") / "bundle"
    return trained_on(dataset, target, **LEARNS, refit=True, embedding_dim=16)


def auc(scores: np.ndarray, target: np.ndarray) -> float:
    """Share of (click, non-click) pairs in the right order."""
    positives = (target > 0).sum()
    ranks = rankdata(scores)[target > 0].sum()
    return float((ranks - positives * (positives + 1) / 2) / (positives * (len(target) - positives)))


def settings(**changes: Any) -> TrainSettings:
    return TrainSettings(**TINY | {"epochs": 3, "patience": 3, "retrieval_batch": 64} | changes)


def weights_after(dataset: Dataset, target: Path, **changes: Any) -> list[Weights]:
    """The weights of both models after training, without the export."""
    trainer = Trainer(dataset, settings(**changes), target)
    trainer.fit_retrieval()
    trainer.fit_ranking()
    return [trainer.towers.state_dict(), trainer.ranker.state_dict()]


def same(one: list[Weights], other: list[Weights]) -> bool:
    return all(torch.equal(a[name], b[name]) for a, b in zip(one, other, strict=True) for name in a)


def refused(dataset: Dataset, target: Path, **changes: Any) -> str:
    with pytest.raises(TrainingError) as caught:
        weights_after(dataset, target, **changes)
    assert "\n" not in str(caught.value)
    assert not target.exists()
    return str(caught.value)


# It learns


def test_the_loss_falls(learned: Trained) -> None:
    for records in learned.bundle.manifest.metrics["curves"].values():
        assert records[-1]["loss"] < 0.95 * records[0]["loss"]


def test_clicks_are_told_from_non_clicks_that_were_not_in_training(learned: Trained) -> None:
    rows = learned.dataset.rows("test")
    predicted = BundleRecommender(learned.bundle, learned.dataset).predict(rows)
    assert auc(predicted, rows.target) > 0.7
    group = [numbers.raw_ids[of - 1] % GROUPS for numbers, of in zip(*both_sides(learned.dataset, rows), strict=True)]
    assert auc(predicted, rows.target) <= auc(group[0] == group[1], rows.target) + 0.03  # AUC of the planted truth


def both_sides(dataset: Dataset, rows: Rows) -> tuple[list[Any], list[np.ndarray]]:
    return [dataset.users, dataset.items], [rows.user, rows.item]


def test_probabilities_are_near_the_share_of_clicks(learned: Trained) -> None:
    rows = learned.dataset.rows("test")
    assert BundleRecommender(learned.bundle, learned.dataset).predict(rows).mean() == pytest.approx(
        rows.target.mean(), abs=0.05
    )


@pytest.mark.parametrize("ranked", [False, True])
def test_unseen_items_of_the_users_own_group_are_recommended(learned: Trained, ranked: bool) -> None:
    users = np.arange(1, len(learned.dataset.users) + 1)
    items = BundleRecommender(learned.bundle, learned.dataset, 20, ranked).recommend(users, 3)
    own = learned.dataset.items.raw_ids[items - 1] % GROUPS == learned.dataset.users.raw_ids[:, None] % GROUPS
    assert own.mean() > 0.45  # at most 0.25 by chance, since part of the own group has been seen


@pytest.mark.parametrize("target", [True, False], ids=["clicks", "implicit"])
def test_the_default_settings_learn_the_preference(tmp_path: Path, target: bool) -> None:
    dataset = planted_dataset(tmp_path, rows=40_000, users=2000, target=target)
    trainer = Trainer(dataset, TrainSettings(epochs=8, patience=8, ranking_batch=512), tmp_path / "bundle")
    records = trainer.fit_ranking()
    # AUC; or NDCG@10, which is about 0.13 by popularity alone
    assert max(record["metric"] for record in records) > (0.75 if target else 0.3)
    assert {record["metric_name"] for record in records} == {"AUC" if target else "NDCG@10"}


def test_timings_and_speed_are_recorded(learned: Trained) -> None:
    for record in learned.bundle.manifest.metrics["curves"]["ranking"]:
        assert record["rows_per_s"] > 0
        assert min(record[part] for part in ("loader_s", "forward_s", "backward_s", "validation_s")) >= 0


def test_refitting_takes_the_best_number_of_epochs(learned: Trained) -> None:
    curves = learned.bundle.manifest.metrics["curves"]
    for name in ("retrieval", "ranking"):
        best = max(curves[name], key=lambda record: record["metric"])["epoch"]
        assert len(curves[f"{name}_refit"]) == best


def test_the_checkpoint_is_removed_after_success(learned: Trained) -> None:
    assert [path.name for path in learned.bundle.path.parent.iterdir()] == ["bundle"]


def test_negatives_come_from_the_whole_catalogue_for_the_same_user_and_moment() -> None:
    rows = Rows(*(np.arange(1, 501, dtype=np.int32),) * 2, np.ones(500, np.float32), np.arange(500))
    drawn, source = with_negatives(rows, 21, 3, np.random.default_rng(1))
    assert len(drawn) == 2000
    assert (drawn.user == rows.user[source]).all()
    assert (drawn.time == rows.time[source]).all()
    assert drawn.target.sum() == 500
    assert (drawn.item[drawn.target > 0] == rows.item).all()
    counts = np.bincount(drawn.item[drawn.target == 0], minlength=21)
    assert counts[0] == 0
    assert counts[1:].min() > 40  # 75 expected of each of the 20 items
    assert len(counts) == 21


# Seeds and interruptions


def test_a_seed_gives_the_same_models_and_another_different_ones(clicks: Dataset, tmp_path: Path) -> None:
    first, again, other = (weights_after(clicks, tmp_path / "bundle", seed=seed) for seed in (1, 1, 2))
    assert same(first, again)
    assert not same(first, other)


@pytest.mark.parametrize("fails_at", [2, 5], ids=["in retrieval", "in ranking"])
@pytest.mark.parametrize("kind", ["clicks", "implicit"])
def test_a_resumed_training_ends_like_an_uninterrupted_one(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, fails_at: int
) -> None:
    dataset: Dataset = request.getfixturevalue(kind)
    expected = weights_after(dataset, tmp_path / "uninterrupted")
    epochs, run = iter(range(1, 100)), loop.run_epoch

    def cut(*args: Any) -> Any:
        if next(epochs) == fails_at:
            raise KeyboardInterrupt
        return run(*args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "run_epoch", cut)
        with pytest.raises(KeyboardInterrupt):
            weights_after(dataset, tmp_path / "bundle")
    assert same(weights_after(dataset, tmp_path / "bundle", resume=True), expected)
    assert next(epochs) == fails_at + 1


def test_resuming_where_nothing_was_begun_starts_anew(clicks: Dataset, tmp_path: Path) -> None:
    assert same(weights_after(clicks, tmp_path / "b", resume=True), weights_after(clicks, tmp_path / "a"))


def test_without_resume_an_old_checkpoint_is_not_used(clicks: Dataset, tmp_path: Path) -> None:
    weights_after(clicks, tmp_path / "bundle", seed=1)
    assert same(weights_after(clicks, tmp_path / "bundle", seed=2), weights_after(clicks, tmp_path / "other", seed=2))


class ExportedError(Exception):
    """Replacement for the export, which these tests do not need."""


def exported(dataset: Dataset, target: Path, chosen: Bundle | None = None, **changes: Any) -> list[Weights]:
    """The weights of both models for the export."""
    trainer = Trainer(dataset, settings(**changes), target, chosen)
    trainer.fit_retrieval()
    trainer.fit_ranking()

    def export(*_: Any) -> None:
        raise ExportedError

    with pytest.MonkeyPatch.context() as patch, pytest.raises(ExportedError):  # noqa: PT012
        patch.setattr(train_module, "export_models", export)
        trainer.export()
    assert not target.exists()
    return [trainer.towers.state_dict(), trainer.ranker.state_dict()]


def cut_at(fails_at: int, *args: Any, **changes: Any) -> None:
    """Training interrupted in epoch number ``fails_at``, counted over all models."""
    epochs, run = iter(range(1, 100)), loop.run_epoch

    def cut(*args: Any) -> Any:
        if next(epochs) == fails_at:
            raise KeyboardInterrupt
        return run(*args)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):  # noqa: PT012
        patch.setattr(loop, "run_epoch", cut)
        exported(*args, **changes)


HOW: dict[str, dict[str, Any]] = {"final": {"final": True}, "refit": {"refit": True}, "neither": {}}


@pytest.mark.parametrize("resumed_as", list(HOW))
def test_what_any_cut_training_left_is_resumed_to_the_models_that_are_asked_for(
    clicks: Dataset, tmp_path: Path, resumed_as: str
) -> None:
    expected = {name: exported(clicks, tmp_path / name, **how) for name, how in HOW.items()}
    assert not same(expected["final"], expected["refit"])
    assert not same(expected["refit"], expected["neither"])
    for left_by, how in HOW.items():
        for fails_at in range(2, 7 if left_by == "neither" else 9):  # epochs: 3 and 3, then at least 1 and 1
            target = tmp_path / f"{left_by}, cut at {fails_at}"
            cut_at(fails_at, clicks, target, **how)
            assert same(exported(clicks, target, resume=True, **HOW[resumed_as]), expected[resumed_as]), target


def test_a_checkpoint_of_other_data_is_not_used(clicks: Dataset, implicit: Dataset, tmp_path: Path) -> None:
    cut_at(4, implicit, tmp_path / "bundle", final=True)
    resumed = exported(clicks, tmp_path / "bundle", final=True, resume=True)
    assert same(resumed, exported(clicks, tmp_path / "other", final=True))


def test_a_checkpoint_with_more_epochs_than_another_bundle_chose_is_refused(
    clicks: Dataset, learned: Trained, tmp_path: Path
) -> None:
    """One bundle has two epochs of retrieval, the other one."""
    two, one = (Bundle(learned.bundle.path, verify=False) for _ in range(2))
    for bundle, best in ((two, 2), (one, 1)):
        bundle.manifest.metrics["curves"]["retrieval"] = [{"epoch": best, "metric": 0.5}]
    cut_at(3, clicks, tmp_path / "bundle", two, final=True)
    with pytest.raises(TrainingError, match=r"retrieval_final\.pt does not fit: it has 2 epochs of 1; train without"):
        exported(clicks, tmp_path / "bundle", one, final=True, resume=True)


def test_a_checkpoint_of_other_settings_is_refused(clicks: Dataset, tmp_path: Path) -> None:
    weights_after(clicks, tmp_path / "bundle")
    message = refused(clicks, tmp_path / "bundle", embedding_dim=9, resume=True)
    assert "retrieval.pt does not fit" in message
    assert "train without --resume" in message


def test_a_damaged_checkpoint_is_refused(clicks: Dataset, tmp_path: Path) -> None:
    weights_after(clicks, tmp_path / "bundle")
    checkpoint = tmp_path / ".bundle.checkpoint" / "ranking.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    assert "ranking.pt does not fit" in refused(clicks, tmp_path / "bundle", resume=True)


# Options


@pytest.mark.parametrize(
    "change",
    [{"uniform_negatives": 30}, {"half_life": 0.5}, {"feature_dropout": 0.5}, {"history": "earlier"}],
)
def test_an_option_changes_the_models(clicks: Dataset, tmp_path: Path, change: dict[str, Any]) -> None:
    plain, changed = (weights_after(clicks, tmp_path / "bundle", epochs=1, **more) for more in ({}, change))
    assert not same(plain[:1], changed[:1])


# Data that cannot be trained on


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_gpu_is_said(clicks: Dataset, tmp_path: Path) -> None:
    assert "no CUDA device was found: use --device cpu" in refused(clicks, tmp_path / "bundle", device="cuda")


def with_targets(dataset: Dataset, target: Path, part: str, value: float) -> Dataset:
    """A copy in which all rows of a part have the same target."""
    copy = Path(shutil.copytree(dataset.path, target))
    for path in (copy / part).iterdir():
        table = pq.read_table(path)
        column = pa.array(np.full(len(table), value, np.float32))
        pq.write_table(table.set_column(table.schema.get_field_index("target"), "target", column), path)
    return Dataset(copy)


@pytest.mark.parametrize("part", ["train", "valid"])
def test_a_part_without_clicks_is_named(clicks: Dataset, tmp_path: Path, part: str) -> None:
    dataset = with_targets(clicks, tmp_path / "dataset", part, 0)
    assert f"the {part} part of {tmp_path / 'dataset'} has no clicks" in refused(dataset, tmp_path / "bundle")


def test_a_validation_part_with_clicks_alone_is_enough(clicks: Dataset, tmp_path: Path) -> None:
    dataset = with_targets(clicks, tmp_path / "dataset", "valid", 1)
    for weights in weights_after(dataset, tmp_path / "bundle", epochs=2):
        assert all(torch.isfinite(value).all() for value in weights.values())


def test_a_training_part_with_clicks_alone_but_a_target_column_is_named(clicks: Dataset, tmp_path: Path) -> None:
    dataset = with_targets(clicks, tmp_path / "dataset", "train", 1)
    assert "only clicks" in refused(dataset, tmp_path / "bundle")


@pytest.mark.parametrize("model", ["retrieval", "ranking"])
def test_a_loss_that_is_not_finite_is_named(clicks: Dataset, tmp_path: Path, model: str) -> None:
    message = refused(clicks, tmp_path / "bundle", **{f"{model}_lr": 1e30})
    assert f"the loss of {model} is" in message
    assert "lower the learning rate" in message


def test_validation_users_without_any_new_item_do_no_harm(clicks: Dataset, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(clicks.path, tmp_path / "dataset"))
    for path in (copy / "valid").iterdir():
        pq.write_table(clicked_rows(copy / "train"), path)
    records = Trainer(Dataset(copy), settings(), tmp_path / "bundle").fit_retrieval()
    assert [record["metric"] for record in records] == [0.0] * len(records)


def clicked_rows(part: Path) -> pa.Table:
    table = pq.read_table(part)
    return table.filter(pc.greater(table["target"], 0))


@pytest.mark.parametrize(
    "size",
    [{"users": 1, "items": 3}, {"users": 5, "items": 1}, {"users": 2, "items": 2, "target": False}],
    ids=["one user", "one item", "two by two"],
)
def test_the_smallest_data_gives_a_bundle_that_recommends(tmp_path: Path, size: dict[str, Any]) -> None:
    dataset = planted_dataset(tmp_path, rows=80, spare=0, lists=False, numerics=False, **size)
    bundle: Bundle = trained_on(dataset, tmp_path / "bundle").bundle
    users = np.arange(1, size["users"] + 1)
    assert BundleRecommender(bundle, dataset).recommend(users, 5).shape == (size["users"], size["items"])
    rows = dataset.rows("test")
    assert (
        (BundleRecommender(bundle, dataset).predict(rows) > 0) & (BundleRecommender(bundle, dataset).predict(rows) < 1)
    ).all()
