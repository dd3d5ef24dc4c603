"""The last step of a pipeline: which of the scored candidates are shown, and in which order."""

from __future__ import annotations

import numpy as np

from .topk import topk


def order(scores: np.ndarray, k: int, temperature: float, rng: np.random.Generator) -> np.ndarray:
    """Positions of the ``k`` chosen candidates of each row, first shown first.

    Temperature 0 is strict order by score. Above, candidates are drawn one after the other without replacement with
    probability proportional to exp(score / temperature), by adding Gumbel noise and sorting (Kool et al. 2019,
    arXiv:1903.06059); this is the softmax sampling of the public Merlin pipeline. Candidates that score -inf come last.

    Args:
        scores: float32[n, m].
        k: at most m are chosen.
        temperature: of the softmax, not negative.
        rng: source of randomness.

    Returns:
        int64[n, min(k, m)].
    """
    if temperature > 0:
        scores = scores / temperature + rng.gumbel(size=scores.shape)
    return topk(scores, k)
