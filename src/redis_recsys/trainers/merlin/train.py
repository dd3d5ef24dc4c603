"""Training from dataset to bundle by Merlin, with the same three calls as the PyTorch trainer."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import polars as pl

from ...bundle.bundle import Bundle
from ...bundle.writer import complete, writing_bundle
from ...config import Settings, TrainSettings
from ...dataset.interactions import PARTS, Dataset
from ...dataset.vocabularies import read_vocabulary
from ...errors import ConfigError, TrainingError
from ...utils.files import disk_error, written_aside
from ...utils.output_kinds import EXPORT
from ...utils.progress import console, progress
from ..epochs import MODELS, Curves, best_epochs, curves_of
from . import flat
from .categories import Categories
from .conversion import Converted, write_models
from .wiring import Wire
from .worker_job import Feature, Job, save
from .worker_process import Worker, interpreter, tell

UNDERSTOOD = {"trainer", "device", "seed", "embedding_dim", "epochs", "patience", "ranking_negatives", "final"}
METRICS = {
    "retrieval": "NDCG@10 within a batch",
    "ranking": "AUC",
}  # for early stopping in Keras, on the valid part
RECORD = ("epoch", "loss", "metric", "rows_per_s", "keras")  # fields of an epoch; the final training has no validation
DULL = ("regularization_loss", "loss_batch")  # Keras metrics that are not shown


class MerlinTrainer:
    """Trains in the Merlin environment and writes the bundle.

    The worker starts with the first call and continues by itself; each call waits for its part. Both models learn from
    the train part and stop early on the valid part; they are trained again only with ``final``, on all parts.

    Attributes:
        schema: NVTabular's schema of the columns, available once the retrieval model is trained.
        seconds: seconds of each step of the worker, by name.
        peak_mb: peak memory of the worker.
    """

    def __init__(
        self,
        dataset: Dataset,
        settings: Settings,
        target: Path,
        export: Path | None = None,
        chosen: Bundle | None = None,
    ) -> None:
        """
        Args:
            dataset: training data.
            settings: sections ``train`` (the options that Merlin supports) and ``merlin``.
            target: folder of the bundle.
            export: folder for the files that Merlin's own tools read; None: do not keep them.
            chosen: bundle whose training chose the epochs, with ``final``; None: choose them first.

        Raises:
            ConfigError: there is no Merlin environment, Merlin does not support an option, or ``chosen`` was trained by
                another trainer or has no training records.
            TrainingError: there are no clicks to learn from.
        """
        check_options(settings.train)
        interpreter(settings.merlin)
        self.dataset, self.target = dataset, target
        self._chosen = curves_of(chosen, "merlin") if chosen else None
        self.curves: Curves = {}
        self.schema: list[dict[str, Any]] = []
        self.seconds: dict[str, float] = {}
        self.peak_mb = 0.0
        self._settings, self._export = settings, export
        for part in ("train", "valid"):
            if not dataset.rows(part).target.any():
                raise TrainingError(f"the {part} part of {dataset.path} has no clicks: there is nothing to learn")
        self._open = ExitStack()
        self.events: Iterator[dict[str, Any]] | None = None

    def __enter__(self) -> MerlinTrainer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the worker and remove its files; ``export`` does so itself."""
        self._open.close()

    def fit_retrieval(self) -> list[dict[str, Any]]:
        """Train the two towers; one record per epoch, with Keras' own metrics in ``keras``."""
        return self._fit("retrieval") if self._chosen is None else self._use_chosen("retrieval", self._chosen)

    def fit_ranking(self) -> list[dict[str, Any]]:
        """Train the DLRM; one record per epoch."""
        return self._fit("ranking") if self._chosen is None else self._use_chosen("ranking", self._chosen)

    def export(self) -> Bundle:
        """Train again if so set, import Merlin's export, compare it with TensorFlow, and complete the bundle.

        Raises:
            TrainingError: one of the models has not been trained.
            BundleError: an ONNX file differs from its model.
        """
        if set(self.curves) != set(MODELS):
            raise TrainingError("train both models before the export: fit_retrieval(), then fit_ranking()")
        try:
            if self._settings.train.final:
                epochs = best_epochs(self.curves)
                console.print(f"training again on {' + '.join(PARTS)}, epochs: {epochs}", highlight=False)
                for model in MODELS:
                    self._fit(f"{model}_final")
            assert self.events is not None
            for event in self.events:
                self._note(event)
            self._write()
            if self._export is not None:
                with written_aside(self._export, EXPORT) as aside:
                    shutil.copytree(self._home / "export", aside, dirs_exist_ok=True)
                    (aside / "export.json").write_text(json.dumps({"version": 1, "trainer": "merlin"}) + "\n")
        finally:
            self.close()
        return Bundle(self.target, verify=False)

    def _use_chosen(self, model: str, chosen: Curves) -> list[dict[str, Any]]:
        self.curves[model] = chosen[model]
        return chosen[model]

    def _fit(self, model: str) -> list[dict[str, Any]]:
        try:
            if self.events is None:
                self.events = self.start()
            records: list[dict[str, Any]] = []
            while not self._epoch(model, records):
                pass
        except BaseException:
            self.close()
            raise
        self.curves[model] = records
        return records

    def _epoch(self, model: str, records: list[dict[str, Any]]) -> bool:
        """Show one epoch; return whether the model is finished."""
        assert self.events is not None
        with ExitStack() as bar:
            advance, done = None, 0
            for event in self.events:
                if event["event"] == "step" and event["model"] == model:
                    if advance is None:
                        name = f"{model} epoch {len(records) + 1}"
                        advance = bar.enter_context(progress(name, total=event["total"]))
                    advance(event["done"] - done)
                    done = event["done"]
                elif event["event"] == "epoch":
                    record = {name: event[name] for name in RECORD if name in event}
                    records.append(record | ({"metric_name": METRICS[model]} if model in METRICS else {}))
                    break
                else:
                    self._note(event)
                    if event["event"] == "end" and event["step"] == model:
                        return True
            else:
                raise TrainingError(f"Merlin ended before {model} was trained")
        keras = ", ".join(
            f"{name} {value:.4f}" for name, value in records[-1]["keras"].items() if not name.endswith(DULL)
        )
        console.print(
            f"{model} epoch {records[-1]['epoch']}: {keras}, {records[-1]['rows_per_s']:,.0f} rows/s", highlight=False
        )
        return False

    def _note(self, event: dict[str, Any]) -> None:
        if event["event"] == "schema":
            self.schema = event["columns"]
        elif event["event"] == "end":
            self.seconds[event["step"]] = event["seconds"]
            self.peak_mb = max(self.peak_mb, event["peak_mb"])
            tell(event)

    def start(self) -> Iterator[dict[str, Any]]:
        """Write the rows and start the worker."""
        settings = self._settings
        parent = self.target.absolute().parent
        try:
            parent.mkdir(parents=True, exist_ok=True)
            scratch = tempfile.TemporaryDirectory(dir=parent, prefix=f".{self.target.name}.merlin-")
            self._home = Path(self._open.enter_context(scratch))
            for name in ("rows", "export", "onnx"):
                (self._home / name).mkdir()
            drawing = settings.train.ranking_negatives, settings.train.seed
            if self._chosen is None:
                flat.write_rows(self.dataset, self._home / "rows", *drawing)
            if settings.train.final:
                flat.write_rows(self.dataset.final, self._home / "rows", *drawing, {"final": PARTS})
            save(self._job(), self._home / "job.json")
        except OSError as error:
            raise disk_error(error, self.target) from error
        worker = Worker(settings.merlin, "fit", self._home / "job.json", self._home / "onnx")
        return iter(self._open.enter_context(worker))

    def _job(self) -> Job:
        train, merlin, schema = self._settings.train, self._settings.merlin, self.dataset.schema
        names = flat.RowNames(schema)
        return Job(
            rows=str(self._home / "rows"),
            export=str(self._home / "export"),
            features=flat.features(schema),
            user_id=names.columns[schema.id_column("user").name][0],
            item_id=names.columns[schema.id_column("item").name][0],
            target=names.target,
            tower_dim=train.embedding_dim,
            encoder_dim=merlin.encoder_dim,
            ranking_dim=merlin.ranking_dim,
            epochs=train.epochs,
            patience=train.patience,
            retrieval_batch=merlin.retrieval_batch,
            ranking_batch=merlin.ranking_batch,
            learning_rate=merlin.learning_rate,
            seed=train.seed,
            final=train.final,
            chosen=best_epochs(self._chosen) if self._chosen else {},
        )

    def _write(self) -> None:
        final = self._settings.train.final
        dataset, onnx = self.dataset.final if final else self.dataset, self._home / "onnx"
        wires = wires_of(dataset, self._home / "export" / "categories")
        query, candidate, dlrm = (Converted.read(onnx, name) for name in ("query_tower", "candidate_tower", "dlrm"))
        with writing_bundle(self.target) as folder:
            console.print("packing the models and comparing them with TensorFlow", highlight=False)
            vectors = candidate.run(wires, dataset.items)
            differences = write_models(folder, dataset.schema, wires, query, candidate, dlrm, vectors)
            metrics = {"curves": self.curves, "onnx_difference": differences, "seconds": self.seconds}
            complete(folder, dataset, "merlin", metrics, PARTS if final else PARTS[:1], final)


def check_options(settings: TrainSettings) -> None:
    """Refuse settings that Merlin's models do not have.

    Raises:
        ConfigError: there is such a setting.
    """
    unknown = sorted(settings.model_fields_set - UNDERSTOOD)
    if unknown:
        raise ConfigError(
            f"the Merlin trainer has no {', '.join(unknown)}: leave out these train settings, or use the torch trainer"
        )
    if settings.device != "auto":
        raise ConfigError("the Merlin trainer uses a GPU whenever TensorFlow finds one: leave out train setting device")


def wires_of(dataset: Dataset, categories: Path) -> dict[str, Wire]:
    """Positions of Merlin's inputs in the packed rows of a dataset's schema."""
    wires = {}
    for feature in flat.features(dataset.schema):
        column = next(c for c in dataset.schema.columns if c.name == feature.column)
        side = column.side
        assert side == "user" or side == "item"
        if feature.numeric:
            wires[feature.names[0]] = Wire(side, dataset.schema.numeric(side).index(column))
            continue
        ids = _ids(dataset, feature, Categories.read(categories, "_".join(feature.names)))
        start = dataset.schema.slots(column).start
        wires |= {name: Wire(side, start + offset, ids) for offset, name in enumerate(feature.names)}
    return wires


def _ids(dataset: Dataset, feature: Feature, categories: Categories) -> np.ndarray:
    """Merlin's ids int32[cardinality] by id of the dataset."""
    column = next(c for c in dataset.schema.columns if c.name == feature.column)
    values = pl.Series("value", read_vocabulary(dataset.path, dataset.schema, column))
    return np.concatenate([[categories.missing], categories.ids(values)]).astype(np.int32)
