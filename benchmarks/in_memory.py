"""What the parameter server is measured against: the same Triton model with the whole table as one array in memory.

Keys are the rows' numbers. Nothing is looked for, fetched, counted or changed: no server of embeddings does less.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb

from redis_recsys.dlrm.model import DlrmModel
from redis_recsys.errors import RecsysError
from redis_recsys.hugectr.sparse import SparseModel
from redis_recsys.parameter_server.config import Config, read
from redis_recsys.parameter_server.server import ParameterServer
from redis_recsys.triton import dlrm


class Rows(ParameterServer):
    """A parameter server that is one array, float32[rows, dim]."""

    def __init__(self, config: Config) -> None:
        (model,) = config.models
        self.config = config
        self._rows = np.array(SparseModel(Path(model.sparse_files[0]), model.embedding_vecsize_per_table[0]).rows)

    def lookup(self, table: str, keys: np.ndarray) -> np.ndarray:
        """The rows with these numbers."""
        return self._rows.take(keys, axis=0)


class TritonPythonModel(dlrm.TritonPythonModel):
    """The model ``dlrm`` over an array."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the table of the ``ps.json`` that the model's configuration names."""
        config = json.loads(args["model_config"])
        try:
            self._model = DlrmModel(Rows(read(Path(config["parameters"]["ps"]["string_value"]))), config["name"])
        except RecsysError as error:
            raise pb.TritonModelException(f"{error}") from None

    def finalize(self) -> None:
        """Nothing is open."""
