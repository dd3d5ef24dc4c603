"""The name and tensors that clients of the public multi-stage example know, in front of the model ``recommender``.

That example's ensemble takes ``user_id_raw`` INT32 [1, 1] and gives ``ordered_ids`` INT32 [k, 1], without batching.
Here it is an ensemble around the recommender, so that answers, fallback and limits are the same::

    user_id_raw ─▶ <alias>-request ─user_id─▶ recommender ─item_ids, scores─▶ <alias>-answer ─▶ ordered_ids

A request for n users, which that example could not answer, gets one column per user: [k, n], padded with -1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb

from ..errors import ServingError
from ..triton.python_backend import PythonBackendModel

NOBODY = -1  # pads columns
INT32 = np.iinfo(np.int32)


class _Translation(PythonBackendModel):
    """Model without state."""

    def open(self, config: dict[str, Any], parameters: dict[str, str]) -> None:
        """Prepare nothing."""


class Request(_Translation):
    """Old input to new: ``user_id_raw`` int32[n, 1] to ``user_id`` int64[n, 1]."""

    def answer(self, requests: Sequence[Any]) -> list[Any]:
        """The recommender's input for each request."""
        users = (pb.get_input_tensor_by_name(request, "user_id_raw").as_numpy() for request in requests)
        return [pb.InferenceResponse([pb.Tensor("user_id", ids.astype(np.int64))]) for ids in users]


class Answer(_Translation):
    """New outputs to old: ``item_ids`` int64[n, k] and ``scores`` float32[n, k] to ``ordered_ids`` int32[k, n]."""

    def answer(self, requests: Sequence[Any]) -> list[Any]:
        """The old output for each request."""
        return [pb.InferenceResponse([pb.Tensor("ordered_ids", self._ordered(request))]) for request in requests]

    @staticmethod
    def _ordered(request: Any) -> np.ndarray:
        items, scores = (pb.get_input_tensor_by_name(request, name).as_numpy() for name in ("item_ids", "scores"))
        shown = np.isfinite(scores)
        ids = np.where(shown, items, NOBODY)[:, : shown.sum(axis=1).max(initial=0)]
        if ids.size and not INT32.min <= ids.min() <= ids.max() <= INT32.max:
            raise ServingError(
                f"item {ids.max()} is too large for ordered_ids, which is INT32: ask the model 'recommender' instead"
            )
        return np.ascontiguousarray(ids.T, np.int32)
