"""Small trained tables on disk, and parameter servers over them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from redis_recsys.config import RedisSettings, Settings, load_settings
from redis_recsys.embedded.redis_cluster import EmbeddedCluster
from redis_recsys.hugectr import sparse
from redis_recsys.parameter_server.nodes import Access, Nodes
from redis_recsys.parameter_server.ps_json import Config
from redis_recsys.parameter_server.server import ParameterServer

DIM = 8
TABLE = "dlrm.sparse_embedding0"
FULL = f"hps_et.{TABLE}"


def row_of(keys: np.ndarray, version: int = 0) -> np.ndarray:
    """Rows float32[n, DIM] that encode their keys and a version."""
    keys = np.asarray(keys)
    return (keys[:, None] + np.arange(DIM) / 16 + 1000.0 * version).astype(np.float32)


def trained(folder: Path, rows: int = 1000) -> Path:
    """A table with keys from 0 to rows - 1."""
    keys = np.arange(rows)
    sparse.write(folder / "dlrm0_sparse.model", [(keys, row_of(keys))])
    return folder / "dlrm0_sparse.model"


def configured(table: Path | None, rocks: Path | None = None, **volatile: Any) -> Config:
    """A configuration of one table; ``model_`` arguments go to the model, ``persistent_`` ones to RocksDB."""
    model: dict[str, Any] = {
        "model": "dlrm",
        "sparse_files": [str(table)],
        "embedding_vecsize_per_table": [DIM],
        "default_value_for_each_table": [0.5],
        "hit_rate_threshold": 1.1,
    }
    persistent: dict[str, Any] = {"type": "rocks_db", "path": str(rocks)} if rocks is not None else {}
    for name in list(volatile):
        for prefix, group in (("model_", model), ("persistent_", persistent)):
            if name.startswith(prefix):
                group[name.removeprefix(prefix)] = volatile.pop(name)
    return Config(
        volatile_db={"type": "redis_cluster"} | volatile,  # type: ignore[arg-type]
        persistent_db=persistent,  # type: ignore[arg-type]
        update_source={"type": "redis_stream", "poll_timeout_ms": 20},  # type: ignore[arg-type]
        models=[model],  # type: ignore[list-item]
    )


def access(cluster: EmbeddedCluster, timeout: float = 0.5, pause: float = 0.2) -> Access:
    """Access to the nodes of a cluster."""
    return Access(tuple(cluster.addresses), password=cluster.password, timeout=timeout, pause=pause)


@contextmanager
def serving(config: Config, cluster: EmbeddedCluster | None) -> Iterator[ParameterServer]:
    """A parameter server during the block."""
    server = ParameterServer(config, Nodes(access(cluster)) if cluster is not None else None, device="cpu")
    try:
        yield server
    finally:
        server.close()


def settings_of(cluster: EmbeddedCluster) -> Settings:
    """Settings that name a cluster."""
    host, port = cluster.addresses[0]
    return load_settings().model_copy(
        update={"redis": RedisSettings(host=host, port=port, password=cluster.password)}  # type: ignore[arg-type]
    )
