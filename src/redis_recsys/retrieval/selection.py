"""The last step of a pipeline: selection and order of the scored candidates."""

from __future__ import annotations

import numpy as np

from .topk import topk


def order(scores: np.ndarray, k: int, temperature: float, rng: np.random.Generator) -> np.ndarray:
    """Positions of the ``k`` selected candidates of each row, first shown first.

    Temperature 0 is strict order by score. Above 0, candidates are drawn one after the other without replacement with
    probability proportional to exp(score / temperature), by adding Gumbel noise and sorting (Kool et al. 2019,
    arXiv:1903.06059); this is the softmax sampling of the public Merlin pipeline. Candidates that score -inf come last.

    Args:
        scores: float32[n, m].
        k: number of candidates to select, at most m.
        temperature: temperature of the softmax, not negative.
        rng: source of randomness.

    Returns:
        int64[n, min(k, m)].
    """
    return topk(_drawn(scores, temperature, rng), k)


def diversify(
    scores: np.ndarray, embeddings: np.ndarray, k: int, diversity: float, temperature: float, rng: np.random.Generator
) -> np.ndarray:
    """Positions like those of :func:`order`, by maximal marginal relevance (Carbonell and Goldstein 1998).

    Each next item has the highest (1 - diversity) * relevance - diversity * (highest cosine with an item selected
    before), where relevance is the score, with sampling noise if any, scaled to the range 0 to 1 within each row.

    Args:
        scores: float32[n, m].
        embeddings: float32[n, m, D], unit vectors of the candidates.
        k: number of candidates to select, at most m.
        diversity: weight from 0 to 1.
        temperature: temperature of the softmax, not negative.
        rng: source of randomness.

    Returns:
        int64[n, min(k, m)].
    """
    scores = _drawn(scores, temperature, rng)
    usable = scores > -np.inf
    low = np.where(usable, scores, np.inf).min(axis=1, keepdims=True)
    high = np.where(usable, scores, -np.inf).max(axis=1, keepdims=True)
    span = np.maximum(high - low, np.finfo(np.float32).tiny)
    with np.errstate(invalid="ignore"):
        relevance = np.where(usable, (scores - low) / span, 0.0)
    chosen = np.empty((len(scores), min(k, scores.shape[1])), np.int64)
    alike = np.full(scores.shape, -1.0, np.float32)
    taken = np.zeros(scores.shape, bool)
    rows = np.arange(len(scores))
    for place in range(chosen.shape[1]):
        gain = relevance if place == 0 else (1 - diversity) * relevance - diversity * alike
        gain = np.where(usable & ~taken, gain, np.where(taken, -np.inf, np.finfo(np.float32).min))
        best = gain.argmax(axis=1)
        chosen[:, place] = best
        taken[rows, best] = True
        alike = np.maximum(alike, np.einsum("nmd,nd->nm", embeddings, embeddings[rows, best]))
    return chosen


def _drawn(scores: np.ndarray, temperature: float, rng: np.random.Generator) -> np.ndarray:
    """Scores with the noise that makes their order a draw from the softmax; unchanged at temperature 0."""
    return scores / temperature + rng.gumbel(size=scores.shape) if temperature > 0 else scores
