"""The bundle's models in ONNX Runtime: towers, and the ranker, whole or cut where its sides meet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.utils
import onnxruntime

from ..errors import BundleError

RANKER_INPUTS = ("user_categorical", "user_numeric", "item_categorical", "item_numeric")
HEAD_INPUTS = ("user_matrix", "user_bias", "item_vectors", "item_log_odds")


def session(model: Path | onnx.ModelProto, threads: int = 1, spin: bool = True) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session on the CPU.

    Args:
        model: a file, or a graph in memory.
        threads: number of threads for one run; concurrent runs each have their own.
        spin: whether several threads wait for work by spinning: quicker, where nobody else needs their cores.

    Raises:
        BundleError: the file is missing or not a model.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if threads == 1 or not spin:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions share no base class
        raise BundleError(f"{model if isinstance(model, Path) else 'ranker part'} cannot be loaded: {error}") from error


class Tower:
    """Tower model: packed rows -> unit embeddings."""

    def __init__(self, path: Path, threads: int = 1) -> None:
        self._session = session(path, threads)

    def embed(self, categorical: np.ndarray, numeric: np.ndarray) -> np.ndarray:
        """Embed int32[n, C], float32[n, F] as float32[n, D], the same to the bit for one row alone or among many."""
        count = len(categorical)
        if count == 1:  # a matrix product sums a single row in another order
            categorical, numeric = np.repeat(categorical, 2, axis=0), np.repeat(numeric, 2, axis=0)
        return self._session.run(["embedding"], {"categorical": categorical, "numeric": numeric})[0][:count]


class Ranker:
    """Whole ranker: packed rows of users and their candidates -> click probabilities, in one run."""

    def __init__(self, path: Path, threads: int = 1) -> None:
        self._session = session(path, threads)

    def __call__(
        self,
        user_categorical: np.ndarray,
        user_numeric: np.ndarray,
        item_categorical: np.ndarray,
        item_numeric: np.ndarray,
    ) -> np.ndarray:
        """Score int32[b, Cu], float32[b, Fu], int32[b, n, Ci], float32[b, n, Fi] -> float32[b, n]."""
        inputs = (user_categorical, user_numeric, item_categorical, item_numeric)
        return self._session.run(["probability"], dict(zip(RANKER_INPUTS, inputs, strict=True)))[0]


class ItemSide:
    """Item side of the ranker, computed once for the whole catalogue."""

    def __init__(self, path: Path, categorical: np.ndarray, numeric: np.ndarray, threads: int = 1) -> None:
        """
        Args:
            path: ``ranker.onnx``.
            categorical: int32[items, Ci], the catalogue.
            numeric: float32[items, Fi].
            threads: number of threads for the computation.

        Raises:
            BundleError: the file is missing or is not a ranker of this kind.
        """
        padded = [np.concatenate([np.zeros((1, a.shape[1]), a.dtype), a]) for a in (categorical, numeric)]
        inputs = dict(zip(RANKER_INPUTS[2:], (a[None] for a in padded), strict=True))
        outputs = list(HEAD_INPUTS[2:])
        side = session(_part(path, list(RANKER_INPUTS[2:]), outputs), threads)
        # float32[items + 1, ...]; row 0 is the unknown item
        self._catalogue = [output[0] for output in side.run(outputs, inputs)]

    def __call__(self, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Look up entity numbers int[b, n] -> vectors float32[b, n, V], log-odds float32[b, n, 1]."""
        vectors, log_odds = (side[items] for side in self._catalogue)
        return vectors, log_odds


class RankerHead:
    """The ranker without its item side."""

    def __init__(self, path: Path, threads: int = 1) -> None:
        """
        Args:
            path: ``ranker.onnx``.
            threads: number of threads for one run.

        Raises:
            BundleError: the file is missing or is not a ranker of this kind.
        """
        self._session = session(_part(path, [*RANKER_INPUTS[:2], *HEAD_INPUTS[2:]], ["probability"]), threads)

    def __call__(
        self, user_categorical: np.ndarray, user_numeric: np.ndarray, vectors: np.ndarray, log_odds: np.ndarray
    ) -> np.ndarray:
        """Score int32[b, Cu], float32[b, Fu] and the output of ``ItemSide`` for b x n items -> float32[b, n]."""
        inputs = (user_categorical, user_numeric, vectors, log_odds)
        names = (*RANKER_INPUTS[:2], *HEAD_INPUTS[2:])
        return self._session.run(None, dict(zip(names, inputs, strict=True)))[0]


def _part(path: Path, inputs: list[str], outputs: list[str]) -> onnx.ModelProto:
    """The ranker cut at named tensors."""
    try:
        return onnx.utils.Extractor(onnx.load(path)).extract_model(inputs, outputs)
    except Exception as error:  # onnx raises a different type for each defect
        raise BundleError(f"{path} cannot be cut at {', '.join(HEAD_INPUTS[2:])}: {error}") from error
