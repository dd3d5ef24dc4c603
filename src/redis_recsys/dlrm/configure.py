"""Configurations of a trained DLRM, all from one description: ``ps.json`` and ``config.pbtxt``, ours and NVIDIA's.

Ours are for this project's parameter server and Triton. NVIDIA's are for users who still run its container
``merlin-hugectr`` (up to 24), with HugeCTR's backend; both can use the same Redis Cluster at the same time.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..hugectr import network
from ..hugectr.network import DlrmShape
from ..triton.repository import pbtxt
from ..utils.files import check_file, written_aside_file
from ..utils.output_kinds import DENSE, NETWORK, SPARSE

MODEL, EMBEDDING = "dlrm", "sparse_embedding0"
TABLE = f"{MODEL}.{EMBEDDING}"
PS, CONFIG = "ps.json", "config.pbtxt"
BEGINNINGS = {PS: (b"{",), CONFIG: (b"name:",)}  # first bytes of files that may be replaced
PARTITIONS = 8
MARGIN = 10_000_000  # rows per partition: 5 GB at 128 dimensions
INPUTS = (("DES", "TYPE_FP32"), ("CATCOLUMN", "TYPE_INT64"), ("ROWINDEX", "TYPE_INT32"))
OUTPUT = "OUTPUT0"
# From this share of hits on, HPS answers misses with the default vector; at 1 it never does.
EXACT = 1.0


@dataclass(frozen=True)
class Place:
    """Locations of a server's inputs.

    Attributes:
        folder: folder of the trained model, as a prefix of its files; empty: beside ``ps.json``.
        address: address of the Redis Cluster; empty: the project's own, or ``RECSYS_REDIS_HOST``.
        rocksdb: folder of RocksDB; None: there is none.
    """

    folder: str = ""
    address: str = ""
    rocksdb: str | None = "../rocksdb"


def ps_json(dlrm: DlrmShape, place: Place, cache: float = 0.2, max_batch: int = 64) -> dict[str, Any]:
    """Contents of ``ps.json`` for a trained DLRM, for either server, without a password.

    Args:
        dlrm: shape of the model.
        place: locations of its files.
        cache: rows of the cache, as a share of the table's.
        max_batch: maximum samples per request.
    """
    document: dict[str, Any] = {
        "supportlonglong": True,
        "volatile_db": {
            "type": "redis_cluster",
            "address": place.address,
            "user_name": "default",
            "password": "",
            "num_partitions": PARTITIONS,
            "max_batch_size": 10_000,
            "overflow_margin": MARGIN,
            "overflow_policy": "evict_oldest",
            "overflow_resolution_target": 0.8,
            "initial_cache_rate": 1.0,
            "cache_missed_embeddings": True,
            "update_filters": ["^hps_.+$"],
        },
        "models": [
            {
                "model": MODEL,
                "sparse_files": [place.folder + SPARSE],
                "dense_file": place.folder + DENSE,
                "network_file": place.folder + NETWORK,
                "embedding_table_names": [EMBEDDING],
                "embedding_vecsize_per_table": [dlrm.dim],
                "default_value_for_each_table": [0.0],
                "maxnum_des_feature_per_sample": dlrm.dense,
                "maxnum_catfeature_query_per_table_per_sample": [dlrm.slots],
                "slot_num": dlrm.slots,
                "label_dim": 1,
                "max_batch_size": max_batch,
                "deployed_device_list": [0],
                "num_of_worker_buffer_in_pool": 2,
                "num_of_refresher_buffer_in_pool": 1,
                "gpucache": True,
                "gpucacheper": cache,
                "hit_rate_threshold": EXACT,
                "cache_refresh_percentage_per_iteration": 0.0,
            }
        ],
    }
    if place.rocksdb is not None:
        document["persistent_db"] = {"type": "rocks_db", "path": place.rocksdb, "read_only": False}
    return document


def triton_config(backend: str, parameters: dict[str, str], max_batch: int = 64, delay: int = 0) -> dict[str, Any]:
    """``config.pbtxt`` of the model ``dlrm`` as nested dictionaries: HugeCTR's tensors with either backend.

    A request is one row with any number of samples: ``DES`` holds their dense features one after the other,
    ``CATCOLUMN`` their keys, and ``ROWINDEX`` the start of each sample's slots in these, and the end.

    Args:
        backend: ``python`` or ``hugectr``.
        parameters: parameters of the backend.
        max_batch: maximum requests answered together.
        delay: microseconds for which a request waits for others, in our backend.
    """
    ours = backend == "python"
    ragged = {"allow_ragged_batch": True} if ours else {}
    config: dict[str, Any] = {
        "name": MODEL,
        "backend": backend,
        "max_batch_size": max_batch,
        "input": [{"name": name, "data_type": kind, "dims": [-1]} | ragged for name, kind in INPUTS],
        "output": [{"name": OUTPUT, "data_type": "TYPE_FP32", "dims": [-1]}],
        "instance_group": [{"count": 1, "kind": "KIND_CPU"} if ours else {"count": 1, "kind": "KIND_GPU", "gpus": [0]}],
        "parameters": {key: {"string_value": value} for key, value in parameters.items()},
    }
    if ours:
        config["dynamic_batching"] = {"max_queue_delay_microseconds": delay}
    return config


def configure(folder: Path, place: Place, cache: float = 0.2) -> Path:
    """Write ``ps.json`` beside a trained model; returns its path.

    Raises:
        DataError: there is no trained model, or the file cannot be written.
    """
    document = ps_json(network.read(folder / NETWORK), place, cache)
    document["update_source"] = {"type": "redis_stream", "poll_timeout_ms": 100}
    with written_aside_file(folder / PS, BEGINNINGS[PS]) as aside:
        aside.write_text(json.dumps(document, indent=2) + "\n")
    return folder / PS


def configure_hugectr(dlrm: DlrmShape, folder: Path, place: Place) -> None:
    """Write ``ps.json`` and ``config.pbtxt`` for NVIDIA's container ``merlin-hugectr``.

    Args:
        dlrm: the model's shape.
        folder: folder to write to.
        place: locations inside the container.

    Raises:
        DataError: the files cannot be written.
    """
    (model,) = (document := ps_json(dlrm, place, cache=0.1))["models"]
    parameters = {
        "config": model["network_file"],
        "gpucache": "true",
        "hit_rate_threshold": f"{model['hit_rate_threshold']}",
        "gpucacheper": f"{model['gpucacheper']}",
        "label_dim": "1",
        "slots": f"{dlrm.slots}",
        "cat_feature_num": f"{dlrm.slots}",
        "des_feature_num": f"{dlrm.dense}",
        "max_nnz": "2",
        "embedding_vector_size": f"{dlrm.dim}",
        "embeddingkey_long_type": "true",
    }
    for name, beginning in BEGINNINGS.items():
        check_file(folder / name, beginning)
    with written_aside_file(folder / PS, BEGINNINGS[PS]) as aside:
        aside.write_text(json.dumps(document, indent=2) + "\n")
    with written_aside_file(folder / CONFIG, BEGINNINGS[CONFIG]) as aside:
        aside.write_text(pbtxt(triton_config("hugectr", parameters)))
