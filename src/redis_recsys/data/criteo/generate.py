"""Made-up Criteo rows, whose true click probability is known, written directly as a dataset.

The data teaches the following, in log-odds, each part with the standard deviation that a constant below gives:

* 13 dense features, log-normal counts: each adds a line, every third also a parabola.
* 26 slots, whose keys follow a power law: each key adds a value of its own.
* Pairs of slots (:data:`AFFINITIES`): each key has a short vector, and a pair adds their dot product. These parts have
  no main effects, so that a model without interactions sees nothing of them.

Effects shrink with a key's rank. A million rows teach the frequent keys; the tail is as long as in the public data,
and says little.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from ...errors import DataError
from ...utils.files import written_aside
from ...utils.output_kinds import CRITEO
from ...utils.progress import progress
from .dataset import DENSE, LABEL, ORACLE, SLOTS
from .part_writer import PartWriter

CHUNK = 4 * 65_536
PUBLIC_ROWS = 45_840_617  # rows of the Kaggle set
PUBLIC_SIZES = (
    *(4976199, 25419, 14705, 7112, 19283, 4, 6391, 1282, 60, 3289052, 282487, 138210, 11),
    *(2203, 8901, 67, 4, 948, 15, 5577159, 1385790, 4348882, 178673, 10023, 88, 34),
)
SMALL = 100  # slots up to this size are never scaled down further
BIAS = -1.52
DENSE_EFFECT = 0.7
SLOT_EFFECT = 0.75
AFFINITIES = (
    # two slots, standard deviation of the log-odds
    ("C6", "C9", 0.55),
    ("C1", "C13", 0.42),
    ("C16", "C25", 0.42),
    ("C20", "C26", 0.42),
    ("C8", "C17", 0.36),
    ("C3", "C19", 0.36),
)
RANK = 2
EXPONENT = 1.5  # exponent of the power law of keys
HEAD = 8  # rank at which effects have shrunk to half
MISSING = 0.02
DENSE_MISSING = 0.1


def generate(
    folder: Path,
    rows: int,
    slot_sizes: list[int] | None = None,
    scale: float | None = None,
    seed: int = 42,
    valid: float = 0.1,
    test: float = 0.1,
) -> None:
    """Write a dataset of made-up impressions, in bounded memory for any number of rows.

    Args:
        folder: dataset folder to write, whole or not at all.
        rows: number of impressions.
        slot_sizes: number of ids of each of the 26 slots; default: the public sizes times ``scale``.
        scale: factor of the public sizes; default: ``rows`` divided by those of the public Kaggle set, at most 1.
        seed: the same seed gives the same rows.
        valid, test: shares of the rows, the last ones.

    Raises:
        DataError: a number is out of range, or the folder cannot be written.
    """
    if rows < 1:
        raise DataError(f"rows must be at least 1, got {rows}")
    sizes = slot_sizes or scaled(min(1.0, rows / PUBLIC_ROWS) if scale is None else scale)
    if len(sizes) != len(SLOTS) or min(sizes) < 2:
        raise DataError(f"slot sizes must be {len(SLOTS)} numbers of at least 2, got {sizes}")
    world = _World.make(np.random.default_rng([seed, 0]), sizes)
    with written_aside(Path(folder), CRITEO) as aside, progress("generating rows", rows) as advance:
        writer = PartWriter(aside, rows, valid, test, oracle=True)
        for number, start in enumerate(range(0, rows, CHUNK)):
            count = min(CHUNK, rows - start)
            random = np.random.Generator(np.random.SFC64([seed, 1, number]))
            writer.write(pa.table(world.draw(random, count)))
            advance(count)
        writer.finish(sizes)


def scaled(factor: float) -> list[int]:
    """The public slot sizes times a factor; small slots keep theirs.

    Raises:
        DataError: the factor is not above 0.
    """
    if factor <= 0:
        raise DataError(f"the scale of the slot sizes must be above 0, got {factor}")
    return [max(min(size, SMALL), round(size * factor)) for size in PUBLIC_SIZES]


@dataclass(frozen=True)
class _World:
    """True effects behind the clicks.

    Attributes:
        sizes: number of ids of each slot.
        location, spread: float64[13], mean and standard deviation of the logarithm of each count.
        line, parabola: float64[13], log-odds per standardised unit, and per its square less 1.
        effects: one float32[size] of log-odds for each slot.
        affinities: numbers of each pair of slots, and a float32[size, RANK] of each slot.
    """

    sizes: list[int]
    location: np.ndarray
    spread: np.ndarray
    line: np.ndarray
    parabola: np.ndarray
    effects: list[np.ndarray]
    affinities: list[tuple[int, int, np.ndarray, np.ndarray]]

    @classmethod
    def make(cls, random: np.random.Generator, sizes: list[int]) -> _World:
        line, parabola = random.standard_normal(len(DENSE)), 0.5 * random.standard_normal(len(DENSE))
        parabola[np.arange(len(DENSE)) % 3 != 0] = 0.0
        norm = DENSE_EFFECT / np.sqrt((line**2).sum() + 2 * (parabola**2).sum())
        weights = random.uniform(0.5, 1.5, len(SLOTS))
        weights *= SLOT_EFFECT / np.linalg.norm(weights)
        effects = [
            (_effects(random, size, 1) * weight).ravel().astype(np.float32)
            for size, weight in zip(sizes, weights, strict=True)
        ]
        affinities = []
        for one, other, deviation in AFFINITIES:
            i, j = SLOTS.index(one), SLOTS.index(other)
            left, right = _effects(random, sizes[i], RANK), _effects(random, sizes[j], RANK)
            left *= deviation / np.sqrt(RANK)
            affinities.append((i, j, left.astype(np.float32), right.astype(np.float32)))
        return cls(
            sizes,
            random.uniform(0.5, 3.0, len(DENSE)),
            random.uniform(0.7, 1.3, len(DENSE)),
            line * norm,
            parabola * norm,
            effects,
            affinities,
        )

    def draw(self, random: np.random.Generator, count: int) -> dict[str, np.ndarray]:
        """``count`` rows, by column."""
        normal = random.standard_normal((len(DENSE), count), np.float32)
        logarithm = self.location[:, None] + self.spread[:, None] * normal
        dense = np.log1p(np.floor(np.exp(logarithm))).astype(np.float32)
        dense[random.random((len(DENSE), count), np.float32) < DENSE_MISSING] = 0.0
        ids = [_keys(random, size, count) for size in self.sizes]
        unit = ((dense - self.location[:, None]) / self.spread[:, None]).clip(-2.5, 2.5)
        logit = BIAS + self.line @ unit + self.parabola @ (unit**2 - 1)
        for table, keys in zip(self.effects, ids, strict=True):
            logit += table[keys]
        for i, j, left, right in self.affinities:
            logit += (left[ids[i]] * right[ids[j]]).sum(axis=1)
        probability = (1 / (1 + np.exp(-logit))).astype(np.float32)
        return {
            LABEL: (random.random(count, np.float32) < probability).astype(np.int8),
            **dict(zip(DENSE, dense, strict=True)),
            **dict(zip(SLOTS, ids, strict=True)),
            ORACLE: probability,
        }


def _keys(random: np.random.Generator, size: int, count: int) -> np.ndarray:
    """Ids int64[count]: 0 where missing, else from 1 by a power law cut off at ``size``."""
    low = size ** (1 - EXPONENT)
    ranks = (1 - random.random(count) * (1 - low)) ** (1 / (1 - EXPONENT))
    ids = np.minimum(ranks.astype(np.int64), size - 1)
    ids[random.random(count, np.float32) < MISSING] = 0
    return ids


def _effects(random: np.random.Generator, size: int, width: int) -> np.ndarray:
    """float64[size, width], each column with mean 0 and standard deviation 1 over rows (not keys)."""
    edges = np.arange(1, size + 1, dtype=np.float64) ** (1 - EXPONENT)
    share = np.concatenate([[MISSING], (1 - MISSING) * -np.diff(edges) / (edges[0] - edges[-1])])[:, None]
    values = random.standard_normal((size, width)) / (1 + np.arange(size) / HEAD)[:, None]
    values -= (share * values).sum(axis=0)
    return values / np.sqrt((share * values**2).sum(axis=0))
