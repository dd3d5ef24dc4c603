"""Training from dataset to bundle: both models, their export and its check, all in one directory."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...bundle.bundle import Bundle
from ...bundle.writer import complete, writing_bundle
from ...config import TrainSettings
from ...dataset.interactions import BEFORE_TEST, PARTS, Dataset, Part, Rows
from ...dataset.user_history import History
from ...errors import TrainingError
from ...evaluation.metrics import auc, hits_of, log_loss, ndcg_at
from ...retrieval.topk import topk
from ...utils.files import disk_error
from ...utils.progress import console
from ..epochs import Curves, best_epochs, curves_of
from ..negatives import with_negatives
from . import ranker, two_tower
from .export import export_models
from .inputs import Interactions, Packed, RecentItems, Shown, Table
from .loop import Metric, fit
from .ranker import DLRM, Head, ItemSide, UserSide
from .two_tower import TwoTower

VALIDATION_USERS = 2_000
VALIDATION_K = 10
BLOCK = 64
SMOOTHING = 5.0


class Trainer:
    """Trains the two models one after the other and writes the bundle.

    Both are trained on the train part and stopped early on the valid part. With ``refit`` they are then trained again
    for as many epochs on both parts, with ``final`` on all three, so that they also learn the newest interactions.
    """

    def __init__(self, dataset: Dataset, settings: TrainSettings, target: Path, chosen: Bundle | None = None) -> None:
        """
        Args:
            dataset: training data.
            settings: training settings.
            target: folder of the bundle.
            chosen: bundle whose training chose the epochs, with ``final``; None: choose them first.

        Raises:
            ConfigError: ``chosen`` was trained by another trainer, or has no training records.
            TrainingError: there is no cuda device although one was requested, there are no clicks to learn from, or a
                half-life is set for rows whose times are not in days.
        """
        self.dataset, self.settings, self.target = dataset, settings, target
        self._chosen = curves_of(chosen, "torch") if chosen else None
        self.curves: Curves = {}
        self._device = _device(settings.device)
        self._fitting, self._validation = dataset.rows("train"), dataset.rows("valid")
        for part, rows in (("train", self._fitting), ("valid", self._validation)):
            if not rows.target.any():
                raise TrainingError(f"the {part} part of {dataset.path} has no clicks: there is nothing to learn")
        self._data = _Data(dataset, self._fitting, settings, self._device)
        self._checkpoint = target.parent / f".{target.name}.checkpoint"
        _prepare(self._checkpoint, dataset, settings.resume)

    def fit_retrieval(self) -> list[dict[str, Any]]:
        """Train the two towers; one record per epoch (see :func:`loop.fit`), with NDCG@10 as the metric."""
        if self._chosen is None:
            metric = _retrieval_metric(self._data, self._validation)
            self.towers, records = self._data.fit_two_tower(metric, self.settings.epochs, self._checkpoint)
        else:
            records = self._chosen["retrieval"]
        self.curves["retrieval"] = records
        return records

    def fit_ranking(self) -> list[dict[str, Any]]:
        """Train the DLRM; one record per epoch, with the metric of :func:`_ranking_metric`."""
        if self._chosen is None:
            metric = _ranking_metric(self._data, self._validation)
            self.ranker, records = self._data.fit_dlrm(metric, self.settings.epochs, self._checkpoint)
        else:
            records = self._chosen["ranking"]
        self.curves["ranking"] = records
        return records

    def export(self) -> Bundle:
        """Train again if so set, write the ONNX files, compare them with the models, and complete the bundle.

        Raises:
            TrainingError: one of the models has not been trained.
            BundleError: an ONNX file differs from its model.
        """
        if len(self.curves) < 2:
            raise TrainingError("train both models before the export: fit_retrieval(), then fit_ranking()")
        if self.settings.final:
            trained_on, dataset = PARTS, self.dataset.final
            self._train_again(dataset, PARTS, "final")
        elif self.settings.refit:
            trained_on, dataset = BEFORE_TEST, self.dataset.refit
            self._train_again(dataset, BEFORE_TEST, "refit")
        else:
            trained_on, dataset = PARTS[:1], self.dataset
        with writing_bundle(self.target) as folder:
            console.print("exporting to ONNX and comparing with the torch models", highlight=False)
            tables = Table(dataset.users), Table(dataset.items)
            differences = export_models(self.towers, self.ranker, *tables, folder)
            metrics = {"curves": self.curves, "onnx_difference": differences}
            complete(folder, dataset, "torch", metrics, trained_on, self.settings.final)
        shutil.rmtree(self._checkpoint, ignore_errors=True)
        return Bundle(self.target, verify=False)

    def _train_again(self, dataset: Dataset, parts: tuple[Part, ...], name: str) -> None:
        """Train both models again on some parts, for the best number of epochs."""
        best = best_epochs(self.curves)
        console.print(f"training again on {' + '.join(parts)}, epochs: {best}", highlight=False)
        data = _Data(dataset, dataset.rows(*parts), self.settings, self._device)
        retrieval = data.fit_two_tower(None, best["retrieval"], self._checkpoint, f"_{name}")
        ranking = data.fit_dlrm(None, best["ranking"], self._checkpoint, f"_{name}")
        self.towers, self.curves[f"retrieval_{name}"] = retrieval
        self.ranker, self.curves[f"ranking_{name}"] = ranking

    def close(self) -> None:
        """Do nothing: no resource is held, and the checkpoint stays for ``resume``."""


class _Data:
    """Training rows and everything that a batch needs, on the device."""

    def __init__(self, dataset: Dataset, rows: Rows, settings: TrainSettings, device: torch.device) -> None:
        self.schema, self.settings, self.device = dataset.schema, settings, device
        self.rows, self.ends = rows, History.ends_before(rows)
        self.history = History.of(rows, len(dataset.users))
        self.users, self.items = Table(dataset.users).to(device), Table(dataset.items).to(device)
        self.recent = RecentItems(self.history, self.schema).to(device)
        self.clicks = rows.target > 0
        self.weights = recency_weights(dataset, rows, settings.half_life)

    def interactions(
        self, rows: Rows, ends: np.ndarray, weights: np.ndarray | None, shown: Shown, cold: float
    ) -> Interactions:
        """Rows as batches."""
        tables = self.users, self.items, self.recent
        return Interactions(rows, ends, weights, *tables, self.schema, shown, cold, self.device)

    def click_weights(self) -> np.ndarray | None:
        """Weights of the clicks only."""
        return None if self.weights is None else self.weights[self.clicks]

    def log_odds(self) -> np.ndarray:
        """Log-odds float[item vocabulary] of a click, by item id, from smoothed counts, drawn negatives included."""
        weights = np.ones(len(self.rows)) if self.weights is None else self.weights / self.weights.mean()
        size = self.schema.id_column("item").cardinality or 1
        ids = np.where(self.rows.item < size, self.rows.item, 0)
        clicks: np.ndarray = np.bincount(ids, weights * self.clicks, minlength=size)
        non_clicks: np.ndarray = np.bincount(ids, weights * ~self.clicks, minlength=size)
        if self.schema.target is None:
            non_clicks = non_clicks + self.settings.ranking_negatives * len(self.rows) / size
        if not non_clicks.any():
            raise TrainingError("the train part has only clicks: drop the target column, and negatives will be drawn")
        rate = clicks.sum() / (clicks.sum() + non_clicks.sum())
        return np.log((clicks + SMOOTHING * rate) / (non_clicks + SMOOTHING * (1 - rate)))

    def user_rows(self, users: np.ndarray) -> Packed:
        """Packed rows of users, as of the end of all rows."""
        numbers = torch.from_numpy(users.astype(np.int64)).to(self.device)
        ends = torch.from_numpy(self.history.starts[users + 1]).to(self.device)
        return self.recent(self.users(numbers), numbers, ends)

    def fit_two_tower(
        self, metric: Metric | None, epochs: int, checkpoint: Path, suffix: str = ""
    ) -> tuple[TwoTower, list[dict[str, Any]]]:
        """Train retrieval, on clicks only."""
        s = self.settings
        torch.manual_seed(s.seed)
        clicks, weights = self.rows.take(self.clicks), self.click_weights()
        counts = np.bincount(clicks.item, weights, minlength=len(self.items))
        size = self.schema.id_column("user").cardinality or 1
        of_users = np.bincount(np.where(clicks.user < size, clicks.user, 0), minlength=size)
        model = TwoTower(self.schema, self.items, counts, of_users, s).to(self.device)
        data = self.interactions(clicks, self.ends[self.clicks], weights, s.history, two_tower.COLD_SHARE)
        records = fit(
            "retrieval" + suffix, model, lambda _: data, metric, epochs, s.patience,
            s.retrieval_batch, s.retrieval_lr, 0.0, s.seed, self.device, checkpoint, s.resume,
        )  # fmt: skip
        model.settle()
        return model, records

    def fit_dlrm(
        self, metric: Metric | None, epochs: int, checkpoint: Path, suffix: str = ""
    ) -> tuple[DLRM, list[dict[str, Any]]]:
        """Train the ranker, on clicks and non-clicks; if there are only clicks, draw negatives in each epoch."""
        s = self.settings
        torch.manual_seed(s.seed)
        model = DLRM(self.schema, self.log_odds(), s).to(self.device)
        impressions = None
        if self.schema.target:
            impressions = self.interactions(self.rows, self.ends, self.weights, "earlier", ranker.COLD_SHARE)

        def draw(epoch: int) -> Interactions:
            if impressions is not None:
                return impressions
            rng = np.random.default_rng([s.seed, epoch])
            rows, source = with_negatives(self.rows, len(self.items), s.ranking_negatives, rng)
            weights = None if self.weights is None else self.weights[source]
            return self.interactions(rows, self.ends[source], weights, "earlier", ranker.COLD_SHARE)

        records = fit(
            "ranking" + suffix, model, draw, metric, epochs, s.patience,
            s.ranking_batch, s.ranking_lr, s.ranking_l2, s.seed, self.device, checkpoint, s.resume,
        )  # fmt: skip
        return model, records


def _retrieval_metric(data: _Data, validation: Rows) -> Metric:
    """NDCG@10 of the towers alone, over the full catalogue."""
    holdout = _Holdout(data, validation)

    def metric(model: TwoTower) -> float:
        items = model.embed("item", data.items.known())
        return holdout.ndcg(lambda packed: model.embed("user", packed) @ items.T)

    return Metric(f"NDCG@{VALIDATION_K}", metric)


def _ranking_metric(data: _Data, validation: Rows) -> Metric:
    """Return the metric that early stopping of the ranker maximises.

    It is AUC if clicks and non-clicks are known (minus the log loss if there is only one kind), and NDCG@10 of the
    ranker alone over the full catalogue for implicit feedback.
    """
    if data.schema.target:
        rows = data.interactions(validation, data.history.starts[validation.user + 1], None, "exact", 0.0)
        if 0 < validation.target.sum() < len(validation):
            return Metric("AUC", lambda model: auc(predict(model, rows), validation.target))
        return Metric(
            "minus log loss",
            lambda model: -log_loss(1 / (1 + np.exp(-predict(model, rows))), validation.target),
        )
    holdout = _Holdout(data, validation)

    @torch.inference_mode()
    def metric(model: DLRM) -> float:
        items = ItemSide(model)(*data.items.known())

        def scores(packed: Packed) -> np.ndarray:
            return Head(model)(*UserSide(model)(*packed), *items).cpu().numpy()

        return holdout.ndcg(scores)

    return Metric(f"NDCG@{VALIDATION_K}", metric)


def recency_weights(dataset: Dataset, rows: Rows, half_life: float | None) -> np.ndarray | None:
    """Weights float64[n] of rows, halved for every ``half_life`` days before the newest; None without a half-life.

    Raises:
        TrainingError: the rows have no times, or their times are not in days.
    """
    if half_life is None:
        return None
    time = dataset.schema.time
    if time is None:
        raise TrainingError(f"--half-life needs times, and {dataset.path} has no time column: leave it out")
    if time.ticks_per_day is None:
        raise TrainingError(
            f"--half-life is in days, and the times of {dataset.path} are steps of unknown length: give column "
            f"{time.name!r} its unit in the schema (s, ms, us or ns) and encode again, or leave --half-life out"
        )
    weights: np.ndarray = np.exp2((rows.time - rows.time.max()) / (half_life * time.ticks_per_day))
    return weights


@torch.inference_mode()
def predict(model: DLRM, rows: Interactions, block: int = 65_536) -> np.ndarray:
    """Click logits float32[n] of interactions."""
    blocks = torch.arange(len(rows), device=rows.user.device).split(block)
    return torch.cat([model(rows.batch(positions)).float().cpu() for positions in blocks]).numpy()


class _Holdout:
    """Up to 2,000 users of the valid part, with the items that they clicked there and those seen before."""

    def __init__(self, data: _Data, validation: Rows) -> None:
        future = History.of(validation, len(data.users) - 1)
        users = np.random.default_rng(0).permutation(np.unique(validation.positives().user))
        new = {user: np.setdiff1d(future[user], data.history[user]) for user in users[:VALIDATION_USERS]}
        new = {user: items for user, items in new.items() if len(items)}
        self.seen = [data.history[user] for user in new]
        self.counts = np.array([len(items) for items in new.values()], np.int64)
        self.relevant = np.concatenate(list(new.values()) or [np.empty(0, np.int32)])
        self.packed = data.user_rows(np.array(list(new), np.int64))

    def ndcg(self, score: Callable[[Packed], np.ndarray]) -> float:
        """Mean NDCG@10; ``score`` maps packed users to scores of all items, float32[n, items]."""
        if not self.seen:
            return 0.0
        recommended = []
        for start in range(0, len(self.seen), BLOCK):
            scores = np.array(score(Packed(*(values[start : start + BLOCK] for values in self.packed))))
            for row, seen in zip(scores, self.seen[start : start + BLOCK], strict=True):
                row[seen - 1] = -np.inf
            recommended.append(topk(scores, VALIDATION_K) + 1)
        starts = np.concatenate([[0], np.cumsum(self.counts)])
        hits = hits_of(np.concatenate(recommended), starts, self.relevant)
        return float(ndcg_at(hits, self.counts, VALIDATION_K).mean())


def _prepare(checkpoint: Path, dataset: Dataset, resume: bool) -> None:
    """Remove the checkpoint of an interrupted run, unless this run resumes it on the same data; note the data."""
    note, data = checkpoint / "dataset", dataset.fingerprint
    if resume and checkpoint.exists():
        if note.exists() and note.read_text() == data:
            return
        console.print(f"the checkpoint {checkpoint} is of other data: training begins anew", highlight=False)
    shutil.rmtree(checkpoint, ignore_errors=True)
    try:
        checkpoint.mkdir(parents=True)
        note.write_text(data)
    except OSError as error:
        raise disk_error(error, checkpoint) from error


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise TrainingError("no CUDA device was found: use --device cpu, or install torch with CUDA on a GPU machine")
    return torch.device("cuda" if name == "auto" and torch.cuda.is_available() else name.replace("auto", "cpu"))
