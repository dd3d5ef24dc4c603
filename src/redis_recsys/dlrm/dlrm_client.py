"""Client that asks a Triton for click probabilities, in HugeCTR's form, over gRPC."""

from __future__ import annotations

import numpy as np

from ..triton.grpc_connection import Connection
from .configure import MODEL, OUTPUT


class DlrmClient(Connection):
    """A connection to the model ``dlrm``; may be used by several threads.

    Example:
        >>> with DlrmClient(load_settings().triton) as client:  # doctest: +SKIP
        ...     client.predict(dense, keys)
    """

    model = MODEL
    serves = "recsys dlrm serve"

    def predict(self, dense: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Predict click probabilities.

        Args:
            dense: float32[n, features].
            keys: int64[n, slots], already shifted by the sizes of the previous slots.

        Returns:
            float32[n].

        Raises:
            ServingError: the server cannot be reached, refuses, or answers too late.
        """
        inputs: dict[str, np.ndarray] = {
            "DES": np.ascontiguousarray(dense, np.float32).reshape(1, -1),
            "CATCOLUMN": np.ascontiguousarray(keys, np.int64).reshape(1, -1),
            "ROWINDEX": np.arange(keys.size + 1, dtype=np.int32)[None],
        }
        return self.infer(inputs, [OUTPUT])[OUTPUT]
