"""A dataset in, a bundle out, trained by Merlin: the same three calls as the PyTorch trainer."""

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

from ...bundle import Bundle, writing_bundle
from ...config import Settings, TrainSettings
from ...dataset import Dataset
from ...errors import ConfigError, TrainingError
from ...files import claimed, disk_error, keep_inputs, written_aside
from ...output_kinds import BUNDLE, EXPORT
from ...progress import console, progress
from ..complete import complete, users_after
from . import flat
from .categories import Categories
from .environment import Worker, interpreter, tell
from .graph import Wire
from .job import Feature, Job, save
from .models import Converted, write_models

UNDERSTOOD = {"trainer", "device", "seed", "embedding_dim", "epochs", "patience", "ranking_negatives"}
MODELS = ("retrieval", "ranking")
DULL = ("regularization_loss", "loss_batch")  # Keras metrics that nobody needs to see


class MerlinTrainer:
    """Trains in the Merlin environment and writes the bundle.

    The worker begins with the first call and goes on by itself; each call waits for its part. Both models learn from
    the train part and stop early on the valid part; they are not trained again on both.

    Attributes:
        schema: what NVTabular made of the columns, once the retrieval model has been trained.
        seconds: that each step of the worker took, by name.
        peak_mb: most memory that the worker held.
    """

    def __init__(self, dataset: Dataset, settings: Settings, target: Path, export: Path | None = None) -> None:
        """
        Args:
            dataset: to learn from.
            settings: sections ``train`` (as far as Merlin understands it) and ``merlin``.
            target: of the bundle.
            export: folder in which to keep what Merlin's own tools read; None: it is not kept.

        Raises:
            ConfigError: there is no Merlin environment, or an option is set that Merlin does not know.
            DataError: a folder must not be written, see :func:`files.claimed`.
            TrainingError: no clicks to learn from.
        """
        check_options(settings.train)
        interpreter(settings.merlin)
        for folder, kind in ((target, BUNDLE), (export, EXPORT)):
            if folder is not None:
                keep_inputs(folder, dataset.path)
                with claimed(folder, kind):  # said before the hour of training
                    pass
        self.dataset, self.target = dataset, target
        self.curves: dict[str, list[dict[str, Any]]] = {}
        self.schema: list[dict[str, Any]] = []
        self.seconds: dict[str, float] = {}
        self.peak_mb = 0.0
        self._settings, self._export = settings, export
        for part in ("train", "valid"):
            if not dataset.rows(part).target.any():
                raise TrainingError(f"the {part} part of {dataset.path} has no clicks: there is nothing to learn")
        self._open = ExitStack()
        self._events: Iterator[dict[str, Any]] | None = None

    def __enter__(self) -> MerlinTrainer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the worker and remove its files; ``export`` does so by itself."""
        self._open.close()

    def fit_retrieval(self) -> list[dict[str, Any]]:
        """Train the two towers; one record per epoch, with Keras' own metrics in ``keras``."""
        return self._fit("retrieval")

    def fit_ranking(self) -> list[dict[str, Any]]:
        """Train the DLRM; one record per epoch."""
        return self._fit("ranking")

    def export(self) -> Bundle:
        """Take over what Merlin exported, compare it with TensorFlow's answers, and complete the bundle.

        Raises:
            TrainingError: one of the models has not been trained.
            BundleError: an ONNX file differs from its model.
        """
        if set(self.curves) != set(MODELS):
            raise TrainingError("train both models before the export: fit_retrieval(), then fit_ranking()")
        try:
            assert self._events is not None
            for event in self._events:
                self._note(event)
            self._write()
            if self._export is not None:
                with written_aside(self._export, EXPORT) as aside:
                    shutil.copytree(self._home / "export", aside, dirs_exist_ok=True)
                    (aside / "export.json").write_text(json.dumps({"version": 1, "trainer": "merlin"}) + "\n")
        finally:
            self.close()
        return Bundle(self.target, verify=False)

    def _fit(self, model: str) -> list[dict[str, Any]]:
        try:
            if self._events is None:
                self._events = self._start()
            records: list[dict[str, Any]] = []
            while not self._epoch(model, records):
                pass
        except BaseException:
            self.close()
            raise
        self.curves[model] = records
        return records

    def _epoch(self, model: str, records: list[dict[str, Any]]) -> bool:
        """Show one epoch; whether the model is finished."""
        assert self._events is not None
        with ExitStack() as bar:
            advance, done = None, 0
            for event in self._events:
                if event["event"] == "step" and event["model"] == model:
                    if advance is None:
                        name = f"{model} epoch {len(records) + 1}"
                        advance = bar.enter_context(progress(name, total=event["total"]))
                    advance(event["done"] - done)
                    done = event["done"]
                elif event["event"] == "epoch":
                    records.append({name: event[name] for name in ("epoch", "loss", "metric", "rows_per_s", "keras")})
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

    def _start(self) -> Iterator[dict[str, Any]]:
        """Write the rows and start the worker."""
        settings = self._settings
        parent = self.target.absolute().parent
        try:
            parent.mkdir(parents=True, exist_ok=True)
            scratch = tempfile.TemporaryDirectory(dir=parent, prefix=f".{self.target.name}.merlin-")
            self._home = Path(self._open.enter_context(scratch))
            for name in ("rows", "export", "onnx"):
                (self._home / name).mkdir()
            flat.write_rows(self.dataset, self._home / "rows", settings.train.ranking_negatives, settings.train.seed)
            save(self._job(), self._home / "job.json")
        except OSError as error:
            raise disk_error(error, self.target) from error
        worker = Worker(settings.merlin, "fit", self._home / "job.json", self._home / "onnx")
        return iter(self._open.enter_context(worker))

    def _job(self) -> Job:
        train, merlin, schema = self._settings.train, self._settings.merlin, self.dataset.schema
        return Job(
            rows=str(self._home / "rows"),
            export=str(self._home / "export"),
            features=flat.features(schema),
            user_id=schema.id_column("user").name,
            item_id=schema.id_column("item").name,
            target=flat.target_name(schema),
            tower_dim=train.embedding_dim,
            encoder_dim=merlin.encoder_dim,
            ranking_dim=merlin.ranking_dim,
            epochs=train.epochs,
            patience=train.patience,
            retrieval_batch=merlin.retrieval_batch,
            ranking_batch=merlin.ranking_batch,
            learning_rate=merlin.learning_rate,
            seed=train.seed,
        )

    def _write(self) -> None:
        dataset, onnx = self.dataset, self._home / "onnx"
        rows = dataset.rows("train") + dataset.rows("valid")
        users, history = users_after(dataset, rows)
        wires = wires_of(dataset, self._home / "export" / "categories")
        query, candidate, dlrm = (Converted.read(onnx, name) for name in ("query_tower", "candidate_tower", "dlrm"))
        with writing_bundle(self.target) as folder:
            console.print("packing the models and comparing them with TensorFlow", highlight=False)
            vectors = candidate.run(wires, dataset.items)
            differences = write_models(folder, dataset.schema, wires, query, candidate, dlrm, vectors)
            metrics = {"curves": self.curves, "onnx_difference": differences, "seconds": self.seconds}
            complete(folder, dataset, rows, users, history, "merlin", metrics)


def check_options(settings: TrainSettings) -> None:
    """Refuse options that were set and that Merlin's models do not have.

    Raises:
        ConfigError: there are such.
    """
    strange = sorted(settings.model_fields_set - UNDERSTOOD)
    if strange:
        raise ConfigError(
            f"the Merlin trainer has no {', '.join(strange)}: leave out these train settings, or use the torch trainer"
        )
    if settings.device != "auto":
        raise ConfigError("the Merlin trainer uses a GPU whenever TensorFlow finds one: leave out train setting device")


def wires_of(dataset: Dataset, categories: Path) -> dict[str, Wire]:
    """Where Merlin's inputs lie in the packed rows of a dataset's schema."""
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
        wires |= {name: Wire(side, start + place, ids) for place, name in enumerate(feature.names)}
    return wires


def _ids(dataset: Dataset, feature: Feature, categories: Categories) -> np.ndarray:
    """Merlin's id of each id of the dataset: int32[cardinality]."""
    column = next(c for c in dataset.schema.columns if c.name == feature.column)
    values = flat.vocabulary(dataset.path, dataset.schema.vocabulary_name(column))
    return np.concatenate([[categories.missing], categories.ids(values)]).astype(np.int32)
