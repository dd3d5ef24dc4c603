"""What a stage of the online pipeline is: named columns in, named columns out, for a batch of requests at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

Columns = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Field:
    """One column: an array whose first axis is the request.

    Attributes:
        name: of the column, the same in every stage.
        dtype: NumPy's name of the type: bool, uint8, int32, int64, float32, or object for bytes.
        shape: of one request's part; -1 where it differs between requests or deployments.
    """

    name: str
    dtype: str
    shape: tuple[int, ...] = (1,)


class Stage(ABC):
    """One step. A stage belongs to one deployment, knows nothing of Triton, and keeps no state of a request.

    Attributes:
        name: of the stage, in settings, metrics and model names.
        inputs, outputs: the columns that it reads and makes.
    """

    name: ClassVar[str]
    inputs: tuple[Field, ...]
    outputs: tuple[Field, ...]

    @abstractmethod
    def __call__(self, columns: Columns) -> dict[str, np.ndarray]:
        """Compute the outputs of b requests; every array has b as its first axis.

        Raises:
            StoreError: Redis failed; the runner then answers with popular items.
        """
