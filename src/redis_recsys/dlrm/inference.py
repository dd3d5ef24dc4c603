"""A trained DLRM as a function: the parameter server supplies the embeddings, ONNX Runtime computes the rest.

Requests come in HugeCTR's form: dense features, keys, and row pointers that assign keys to slots.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..bundle.models import session
from ..errors import ConfigError, DataError
from ..hugectr import dense, graph, network
from ..hugectr.network import DlrmShape
from ..parameter_server.ps_json import Model
from ..parameter_server.server import ParameterServer
from ..triton.tensors import stack
from ..utils.machine import cores


@dataclass(frozen=True)
class Samples:
    """Samples of one request.

    Attributes:
        dense: float32[n * features].
        keys: int64[m], keys of the table.
        pointers: int32[n * slots + 1], start of the keys of each sample's slots; the last is m.
    """

    dense: np.ndarray
    keys: np.ndarray
    pointers: np.ndarray


class DlrmModel:
    """Model that predicts click probabilities of samples.

    Attributes:
        table: table of the keys.
        shape: shape of the network.
    """

    def __init__(self, server: ParameterServer, name: str, threads: int | None = None) -> None:
        """
        Args:
            server: parameter server with the model's table.
            name: name of the model in ``ps.json``.
            threads: threads of the dense part; None: one per core.

        Raises:
            ConfigError: there is no such model, or it has more than one table.
            DataError: a file of the model is missing or damaged, or ``ps.json`` contradicts the network.
        """
        models = {model.model: model for model in server.config.models}
        if name not in models:
            raise ConfigError(f"ps.json has no model {name!r}, but {', '.join(models)}")
        model = models[name]
        if len(model.sparse_files) != 1:
            raise ConfigError(f"model {name!r} has {len(model.sparse_files)} tables; a DLRM has one for all slots")
        self.shape = network.read(Path(model.network_file))
        _check(model, self.shape)
        layers = dense.read(Path(model.dense_file), self.shape)
        self.table = f"{name}.{model.embedding_table_names[0]}"
        self._server = server
        self._session = session(graph.build(self.shape, layers), threads or cores(), spin=False)

    def check(self, samples: Samples) -> int:
        """Check a request's tensors; returns the number of samples.

        Raises:
            DataError: the three do not fit together; the message names the wrong one.
        """
        features, slots = self.shape.dense, self.shape.slots
        count, remainder = divmod(len(samples.dense), features)
        if remainder:
            raise DataError(f"DES has {len(samples.dense)} values, not a multiple of {features} dense features")
        pointers = samples.pointers
        if len(pointers) != count * slots + 1:
            raise DataError(
                f"ROWINDEX has {len(pointers)} values, and {count} samples of {slots} slots need {count * slots + 1}"
            )
        if pointers[0] != 0 or pointers[-1] != len(samples.keys) or (pointers[1:] < pointers[:-1]).any():
            raise DataError(f"ROWINDEX must rise from 0 to {len(samples.keys)}, the number of keys in CATCOLUMN")
        if not np.isfinite(samples.dense).all():
            raise DataError("DES holds values that are not finite")
        return count

    def predict(self, requests: Sequence[Samples]) -> list[np.ndarray]:
        """Predict probabilities float32[n] of every request's samples, all together.

        Raises:
            DataError: a request is malformed.
        """
        counts = [self.check(samples) for samples in requests]
        total = sum(counts)
        if total == 0:
            return [np.zeros(0, np.float32) for _ in requests]
        features = stack([samples.dense for samples in requests]).reshape(total, self.shape.dense)
        keys = stack([samples.keys for samples in requests])
        starts = stack([samples.pointers[:-1] for samples in requests])
        if len(requests) > 1:
            sizes = [len(samples.keys) for samples in requests]
            before = np.repeat(np.cumsum([0, *sizes[:-1]]), [count * self.shape.slots for count in counts])
            starts = starts + before
        embeddings = self._combined(self._server.lookup(self.table, keys), starts, total)
        (chances,) = self._session.run(None, {graph.DENSE: features, graph.EMBEDDINGS: embeddings})
        return np.split(chances, np.cumsum(counts)[:-1]) if len(requests) > 1 else [chances]

    def _combined(self, rows: np.ndarray, starts: np.ndarray, samples: int) -> np.ndarray:
        """Combine the rows of all keys to float32[samples, slots, dim]; those of one slot are summed or averaged."""
        shape = (samples, self.shape.slots, self.shape.dim)
        if len(rows) == len(starts) and starts[-1] == len(rows) - 1 and (np.diff(starts) == 1).all():
            return rows.reshape(shape)  # one key in every slot
        counts = np.diff(starts, append=len(rows))
        filled = counts > 0
        combined = np.zeros((len(starts), self.shape.dim), np.float32)
        combined[filled] = np.add.reduceat(rows, starts[filled]) if filled.any() else 0.0
        if self.shape.combiner == "mean":
            combined[filled] /= counts[filled, None]
        return combined.reshape(shape)


def _check(model: Model, shape: DlrmShape) -> None:
    """Compare a model's entries in ``ps.json`` with its network.

    Raises:
        DataError: they contradict each other; a field that may be larger than needed must not be smaller.
    """
    queries = next(iter(model.maxnum_catfeature_query_per_table_per_sample or ()), None)
    same, most = operator.eq, operator.ge
    compared = [
        ("embedding_vecsize_per_table", model.embedding_vecsize_per_table[0], same, shape.dim, "embeddings of"),
        ("slot_num", model.slot_num, same, shape.slots, "slots:"),
        ("label_dim", model.label_dim, same, 1, "labels:"),
        ("maxnum_des_feature_per_sample", model.maxnum_des_feature_per_sample, most, shape.dense, "dense features:"),
        ("maxnum_catfeature_query_per_table_per_sample", queries, most, shape.slots, "slots with a key each:"),
    ]
    for name, said, fits, needed, what in compared:
        if said is not None and not fits(said, needed):
            raise DataError(
                f"{name} in ps.json says {said}, and the network {model.network_file} has {what} {needed}: one of them "
                "belongs to another model"
            )
