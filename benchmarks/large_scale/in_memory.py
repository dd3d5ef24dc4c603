"""Baseline of the parameter server: the same Triton model with the whole table as one array in memory.

Keys are row numbers. It searches, fetches, counts and changes nothing: no embedding server does less.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from redis_recsys.dlrm import dlrm_model as dlrm
from redis_recsys.dlrm.inference import DlrmModel
from redis_recsys.hugectr.sparse import SparseModel
from redis_recsys.parameter_server.ps_json import Config, read
from redis_recsys.parameter_server.server import ParameterServer


class Rows(ParameterServer):
    """Parameter server on one array float32[rows, dim]."""

    def __init__(self, config: Config) -> None:
        (model,) = config.models
        self.config = config
        self._rows = np.array(SparseModel(Path(model.sparse_files[0]), model.embedding_vecsize_per_table[0]).rows)

    def lookup(self, table: str, keys: np.ndarray) -> np.ndarray:
        """Return the rows with these numbers."""
        return self._rows.take(keys, axis=0)


class TritonPythonModel(dlrm.TritonPythonModel):
    """Model ``dlrm`` on an array."""

    def open(self, config: dict[str, Any], parameters: dict[str, str]) -> None:
        """Read the table of the ``ps.json`` in the model's configuration."""
        self._model = DlrmModel(Rows(read(Path(parameters["ps"]))), config["name"])

    def finalize(self) -> None:
        """Do nothing: no resource is open."""
