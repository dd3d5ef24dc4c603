"""A trained DLRM as a function: the parameter server has the embeddings, ONNX Runtime computes the rest.

Requests come in HugeCTR's form: dense features, keys, and row pointers that say which keys belong to which slot.
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
    """Some samples.

    Attributes:
        dense: float32[n * features].
        keys: int64[m], of the one table.
        pointers: int32[n * slots + 1], where the keys of each sample's slots begin; the last is m.
    """

    dense: np.ndarray
    keys: np.ndarray
    pointers: np.ndarray


class DlrmModel:
    """Click probabilities of samples.

    Attributes:
        table: that the keys are of.
        shape: of the network.
    """

    def __init__(self, server: ParameterServer, name: str, threads: int | None = None) -> None:
        """
        Args:
            server: with the model's table.
            name: of the model in ``ps.json``.
            threads: of the dense part; None: one per core.

        Raises:
            ConfigError: there is no such model, or it has more than one table.
            DataError: a file of it is missing or damaged, or ``ps.json`` contradicts the network.
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
        """Number of samples.

        Raises:
            DataError: the three do not fit together; the one that is wrong is named.
        """
        features, slots = self.shape.dense, self.shape.slots
        count, rest = divmod(len(samples.dense), features)
        if rest:
            raise DataError(f"DES has {len(samples.dense)} values, no multiple of {features} dense features")
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
        """Probabilities float32[n] of every request's samples; all are computed together.

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
        """float32[samples, slots, dim] of the rows of all keys, those of one slot summed or averaged."""
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
    """Compare what ``ps.json`` says of a model with its network.

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
                "is of another model"
            )
