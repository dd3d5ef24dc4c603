"""Merlin Systems' own ensemble for an export: Feast, query tower, FAISS, Feast, DLRM, softmax sampling.

::

    ensemble/        the model repository; clients call its model executor_model
    feature_repo/    the Feast repository for its feature look-ups

The executor's graph is a pickle that Merlin Systems writes (``ensemble.pkl``). Only one of the absolute paths in it is
used: that of the Feast repository.
"""

from __future__ import annotations

import os
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

os.environ["FEAST_USAGE"] = "False"  # no telemetry

import faiss
import numpy as np
import pandas as pd
from feast import FeatureStore
from merlin.dag import postorder_iter_nodes
from merlin.schema import ColumnSchema, Schema
from merlin.systems.dag.ensemble import Ensemble
from merlin.systems.dag.ops.faiss import QueryFaiss, setup_faiss
from merlin.systems.dag.ops.feast import QueryFeast
from merlin.systems.dag.ops.softmax_sampling import SoftmaxSampling
from merlin.systems.dag.ops.tensorflow import PredictTensorflow
from merlin.systems.dag.ops.unroll_features import UnrollFeatures

from ...worker_events import timed
from ..worker_job import SystemsJob, piece

TYPES = ("int32", "int64", "float32")  # types that QueryFeast supports
LISTS = 32  # lists of Merlin Systems' index, which needs at least as many vectors
STORE = """\
project: multi_stage
provider: local
registry: registry.db
entity_key_serialization_version: 2
online_store:
  type: redis
  connection_string: "{redis}"  # Feast fills in environment variables when it reads this
offline_store:
  type: file
"""
DEFINITIONS = '''\
"""The feature views of the ensemble. Paths are relative: use this repository from inside its folder."""

from datetime import timedelta

import pyarrow.parquet as pq
from feast import Entity, FeatureView, FileSource, ValueType


def view(name, key):
    source = FileSource(path=f"{{name}}.parquet", timestamp_field="datetime", created_timestamp_column="created")
    kind = str(pq.read_schema(source.path).field(key).type).upper()
    entity = Entity(name=key, join_keys=[key], value_type=ValueType[kind])
    return entity, FeatureView(name=name, entities=[entity], ttl=timedelta(0), source=source)


user, user_features = view("user_features", "{user}")
item, item_features = view("item_features", "{item}")
'''


def export_systems(job: SystemsJob) -> None:
    """Write both repositories to ``job.target``."""
    export, target = Path(job.export), Path(job.target)
    user_raw, item_raw = f"{job.user_id}_raw", f"{job.item_id}_raw"
    with timed("feature repository"):
        store = _feature_repo(job, export, target / "feature_repo", user_raw)
    with timed("index"):
        index = target / "items.faiss"
        _build_index(export, index, job.item_id, job.candidates)
    with timed("ensemble"):
        # QueryFeast materializes on construction: that would need Redis now, and mark the rows as loaded
        with mock.patch.object(FeatureStore, "materialize_incremental"):
            users = QueryFeast.from_feature_view(store, "user_features", user_raw)
            items = QueryFeast.from_feature_view(store, "item_features", "candidate_ids", include_id=True)
        query_tower, dlrm = (PredictTensorflow(str(piece(export, name))) for name in ("query_tower", "dlrm"))
        user_columns = [name for name in dlrm.input_schema.column_names if name in users.output_schema.column_names]
        user_features = [user_raw] >> users
        candidates = user_features >> query_tower >> QueryFaiss(index, topk=job.candidates)
        rows = candidates["candidate_ids"] >> items >> UnrollFeatures(job.item_id, user_features[user_columns])
        scores = (rows >> dlrm)[dlrm.output_schema.column_names[0]]
        ordered = rows[item_raw] >> SoftmaxSampling(scores, topk=job.topk, temperature=job.temperature)
        request = Schema([ColumnSchema(user_raw, dtype=users.input_schema[user_raw].dtype)])
        ensemble = Ensemble(ordered, request)
        for node in postorder_iter_nodes(ensemble.graph.output_node):
            if isinstance(node.op, QueryFeast):
                node.op.repo_path = job.feast_path  # only now, since Ensemble opens the store again
        ensemble.export(str(target / "ensemble"))
        index.unlink()  # the ensemble has its own copy


def _feature_repo(job: SystemsJob, export: Path, folder: Path, user_raw: str) -> FeatureStore:
    """Write and apply the Feast repository: this writes its registry only, and does not access Redis."""
    folder.mkdir(parents=True)
    for side, keys in (("user", [user_raw]), ("item", [job.item_id, f"{job.item_id}_raw"])):
        table = pd.read_parquet(piece(export, f"{side}_features.parquet"))
        _check(table, f"{side}_features.parquet", keys)
        table["datetime"] = table["created"] = pd.Timestamp.utcnow().tz_localize(None)
        table.to_parquet(folder / f"{side}_features.parquet", index=False)
    (folder / "feature_store.yaml").write_text(STORE.format(redis=job.redis))
    (folder / "definitions.py").write_text(DEFINITIONS.format(user=user_raw, item=job.item_id))
    os.chdir(folder)  # for the relative paths
    store = FeatureStore(repo_path=str(folder))
    definitions: dict[str, Any] = runpy.run_path("definitions.py")
    store.apply([definitions[name] for name in ("user", "user_features", "item", "item_features")])
    return store


def _check(table: pd.DataFrame, name: str, keys: Sequence[str]) -> None:
    for key in keys:
        if key not in table or table[key].duplicated().any():
            raise SystemExit(f"{name} needs a column {key} with one row per value")
    other = [f"{column} ({kind})" for column, kind in table.dtypes.items() if str(kind) not in TYPES]
    if other:
        raise SystemExit(f"{name} has {', '.join(other)}: Merlin Systems' QueryFeast knows only {', '.join(TYPES)}")


def _build_index(export: Path, path: Path, item_id: str, candidates: int) -> None:
    """Build Merlin's own index: 32 lists, 8 of them probed, or more where 8 could hold fewer items than requested.

    FAISS pads results with -1, and QueryFeast fails on an item that Feast does not know.
    """
    table = pd.read_parquet(export / "item_embeddings.parquet")
    table = table.set_index(item_id) if item_id in table else table
    known = table.index.isin(pd.read_parquet(piece(export, "item_features.parquet"), columns=[item_id])[item_id])
    if not known.all():
        raise SystemExit(f"{(~known).sum():,} items of item_embeddings.parquet are not in item_features.parquet")
    if len(table) < max(candidates, LISTS):
        raise SystemExit(f"Merlin Systems' index needs {max(candidates, LISTS)} items or more, these are {len(table)}")
    vectors = table[sorted(table.columns, key=int)].to_numpy(np.float32)
    setup_faiss(pd.DataFrame({"item_id": table.index, "embedding": list(vectors)}), str(path))
    index = faiss.read_index(str(path))
    capacity = np.cumsum(sorted(index.invlists.list_size(number) for number in range(index.nlist)))
    index.nprobe = max(index.nprobe, int(np.searchsorted(capacity, candidates)) + 1)
    faiss.write_index(index, str(path))
