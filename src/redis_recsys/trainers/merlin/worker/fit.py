"""The public notebook's training: NVTabular workflow, TwoTowerModelV2, DLRMModel, and the files it exports.

The shapes are those of the notebook (towers of 128 and 64, DLRM with embeddings of 64). Unlike in the notebook, each
model stops when its validation metric no longer improves, and keeps the weights of its best epoch.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import merlin.models.tf as mm
import numpy as np
import nvtabular as nvt
import tensorflow as tf
from merlin.io.dataset import Dataset
from merlin.models.utils.dataset import unique_rows_by_features
from merlin.schema import Schema
from merlin.schema.tags import Tags
from nvtabular import ops

from ...worker_events import emit, timed
from ..worker_job import Job

K = 10
PART_SIZE = "256MB"


def fit(job: Job) -> None:
    """Train both models and write the export folder; with ``job.final``, export models trained on all rows."""
    export, chosen = Path(job.export), job.chosen
    if not chosen:
        # NVTabular caches categories by their path, so two workflows must not write to one folder
        models = _fit(job, Path(job.rows) / "chosen" if job.final else export, ("train", "valid"), {}, "")
        chosen = {name: fitted.best for name, fitted in models.items()}
    if job.final:
        models = {}  # releases the first models
        models = _fit(job, export, ("final",), chosen, "_final")
    with timed("export"):
        _export(job, export, models["retrieval"].model, models["ranking"].model, models["retrieval"].rows)


@dataclass(frozen=True)
class _Fitted:
    """A trained model, its training rows, and its best epoch (the last one without validation)."""

    model: Any
    rows: Dataset
    best: int


def _fit(job: Job, folder: Path, parts: tuple[str, ...], epochs: dict[str, int], suffix: str) -> dict[str, _Fitted]:
    """Train both models on the first part.

    Args:
        job: job description.
        folder: folder for the workflow and its categories.
        parts: files of rows; a second one is for validation and early stopping.
        epochs: number of epochs by model, without validation.
        suffix: suffix of the step names.
    """
    tf.keras.utils.set_random_seed(job.seed)
    folder.mkdir(exist_ok=True)
    with timed("etl" + suffix):
        workflow = _workflow(job, folder)
        workflow.fit(Dataset(str(Path(job.rows) / f"{parts[0]}.parquet"), part_size=PART_SIZE))
        workflow.save(str(folder / "workflow"))
        ranking = [_transformed(job, part, workflow) for part in parts]
        retrieval = [_clicks(job, part, data) for part, data in zip(parts, ranking, strict=True)]
    schema = ranking[0].schema.without([f"{job.user_id}_raw", f"{job.item_id}_raw"])
    emit("schema", columns=_described(schema))
    models = {}
    with timed("retrieval" + suffix):
        towers = _two_tower(job, schema.without([job.target]))
        best = _train(job, "retrieval", suffix, towers, retrieval, schema.without([job.target]), epochs)
        models["retrieval"] = _Fitted(towers, retrieval[0], best)
    with timed("ranking" + suffix):
        dlrm = _dlrm(job, schema)
        best = _train(job, "ranking", suffix, dlrm, ranking, schema, epochs)
        models["ranking"] = _Fitted(dlrm, ranking[0], best)
    return models


def _transformed(job: Job, part: str, workflow: nvt.Workflow) -> Dataset:
    """Encode the features of a part; raw ids and the target stay."""
    home = Path(job.rows)
    raw = Dataset(str(home / f"{part}.parquet"), part_size=PART_SIZE)
    return _written(workflow.transform(raw), home / "processed" / part)


def _workflow(job: Job, folder: Path) -> nvt.Workflow:
    """Categorify and tags as in the notebook, but nulls get an id, where the notebook drops their rows."""
    ids = {job.user_id: ops.TagAsUserID, job.item_id: ops.TagAsItemID}
    sides = {"user": ops.TagAsUserFeatures, "item": ops.TagAsItemFeatures}
    outputs = [job.target] >> ops.AddMetadata(tags=[Tags.BINARY_CLASSIFICATION, Tags.TARGET])
    for name, side in ((job.user_id, "user"), (job.item_id, "item")):
        outputs += [f"{name}_raw"] >> sides[side]()
    for feature in job.features:
        tag = ids.get(feature.names[0], sides[feature.side])()
        if feature.numeric:
            outputs += feature.names >> ops.AddMetadata(tags=[Tags.CONTINUOUS]) >> tag
        else:
            categorify = ops.Categorify(dtype="int32", out_path=str(folder), encode_type="joint")
            outputs += [feature.names if len(feature.names) > 1 else feature.names[0]] >> categorify >> tag
    return nvt.Workflow(outputs)


def _clicks(job: Job, part: str, data: Dataset) -> Dataset:
    """Select the rows with a click, from which the two towers learn."""
    target, folder = job.target, Path(job.rows) / "clicks" / part
    workflow = nvt.Workflow(data.schema.column_names >> ops.Filter(f=lambda rows: rows[target] == 1))
    return _written(workflow.fit_transform(data), folder)


def _written(data: Dataset, folder: Path) -> Dataset:
    """Store the data in a folder; NVTabular's schema there has no string columns, so it is not read again."""
    data.to_parquet(output_path=str(folder))
    return Dataset(str(folder / "*.parquet"), part_size=PART_SIZE, schema=data.schema)


def _two_tower(job: Job, schema: Schema) -> mm.TwoTowerModelV2:
    def tower(tag: Tags) -> mm.Encoder:
        mlp = mm.MLPBlock([job.encoder_dim, job.tower_dim], no_activation_last_layer=True)
        return mm.Encoder(mm.InputBlockV2(schema.select_by_tag(tag)), mlp)

    model = mm.TwoTowerModelV2(tower(Tags.USER), tower(Tags.ITEM))  # contrastive, with in-batch negatives
    model.compile(
        optimizer=tf.keras.optimizers.Adam(job.learning_rate),
        loss="categorical_crossentropy",
        metrics=[mm.RecallAt(K), mm.NDCGAt(K)],
    )
    return model


def _dlrm(job: Job, schema: Schema) -> mm.Model:
    model = mm.DLRMModel(
        schema,
        embedding_dim=job.ranking_dim,
        bottom_block=mm.MLPBlock([128, job.ranking_dim]),
        top_block=mm.MLPBlock([128, 64, 32]),
        prediction_tasks=mm.BinaryClassificationTask(job.target),
    )
    model.compile(optimizer=tf.keras.optimizers.Adam(job.learning_rate), metrics=[tf.keras.metrics.AUC(name="auc")])
    return model


def _train(
    job: Job, name: str, suffix: str, model: mm.Model, data: list[Dataset], schema: Schema, epochs: dict[str, int]
) -> int:
    """Train a model, with arguments as in :func:`_fit`, and return its best epoch."""
    parts = [Dataset(dataset.to_ddf(), schema=schema) for dataset in data]
    validates = len(parts) > 1
    metric = f"val_ndcg_at_{K}" if name == "retrieval" else "val_auc"
    batch = job.retrieval_batch if name == "retrieval" else job.ranking_batch
    callbacks: list[Any] = [_Progress(name + suffix, data[0].num_rows, batch, metric if validates else None)]
    if validates:
        stop = tf.keras.callbacks.EarlyStopping(metric, patience=job.patience, mode="max", restore_best_weights=True)
        callbacks.append(stop)
    history = model.fit(
        parts[0],
        validation_data=parts[1] if validates else None,
        batch_size=batch,
        epochs=job.epochs if validates else epochs[name],
        verbose=0,
        callbacks=callbacks,
    ).history
    return int(np.argmax(history[metric])) + 1 if validates else epochs[name]


class _Progress(tf.keras.callbacks.Callback):
    """Reports every step and every epoch, with Keras' own metrics."""

    def __init__(self, model: str, rows: int, batch: int, metric: str | None) -> None:
        super().__init__()
        self._name, self._rows, self._batch, self._metric = model, rows, batch, metric
        self._seconds = 0.0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._started, self._seconds = time.perf_counter(), 0.0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        done = min((batch + 1) * self._batch, self._rows)
        emit("step", model=self._name, done=done, total=self._rows)

    def on_test_begin(self, logs: Any = None) -> None:
        self._seconds = time.perf_counter() - self._started  # excludes validation

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._seconds = self._seconds or time.perf_counter() - self._started
        keras = {name: float(value) for name, value in (logs or {}).items()}
        emit(
            "epoch",
            model=self._name,
            epoch=epoch + 1,
            loss=keras["loss"],
            **({"metric": keras[self._metric]} if self._metric else {}),
            rows_per_s=self._rows / self._seconds,
            keras=keras,
        )


def _export(job: Job, export: Path, towers: mm.TwoTowerModelV2, dlrm: mm.Model, rows: Dataset) -> None:
    """Write the files of the public notebook, and the item tower, which the notebook does not save."""
    towers.query_encoder.save(str(export / "query_tower"))
    dlrm.save(str(export / "dlrm"))
    features = {}
    for side, tag, key in (("user", Tags.USER, Tags.USER_ID), ("item", Tags.ITEM, Tags.ITEM_ID)):
        features[side] = unique_rows_by_features(rows, tag, key).compute().reset_index(drop=True)
        features[side].to_parquet(str(export / f"{side}_features.parquet"))
    schema = rows.schema.select_by_tag(Tags.ITEM).without([f"{job.item_id}_raw"])
    items = Dataset(features["item"], schema=schema)
    tower = str(export / "candidate_tower")  # Merlin saves the tower to compute with the saved one
    embeddings = towers.candidate_embeddings(items, batch_size=1024, index=Tags.ITEM_ID, save_path=tower)
    embeddings.compute(scheduler="synchronous").to_parquet(str(export / "item_embeddings.parquet"))


def _described(schema: Schema) -> list[dict[str, Any]]:
    """Return the NVTabular schema as plain data, for display."""
    return [
        {
            "name": column.name,
            "tags": sorted(tag.value for tag in column.tags),
            "dtype": column.dtype.name,
            "is_list": column.is_list,
            "cardinality": int(column.properties.get("embedding_sizes", {}).get("cardinality", 0)) or None,
        }
        for column in schema
    ]
