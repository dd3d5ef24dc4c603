"""Made-up clicks in the shape of Ali-CCP, whose true click probability is known.

Rows carry the columns of the Alibaba click and conversion set, flat: ids, attributes of the item, attributes of the
user, click, time, and ``click_probability``, the truth that the click was drawn from. The data teaches the following:

* Users are active and items are popular by power laws.
* A user's ``user_categories`` and ``user_intentions`` decide which item categories they like. Liked categories
  are both shown more often and clicked more often, so clicks concentrate on a user's tastes.
* The true log-odds of a click are a constant, the item's quality, the propensity to click of the user's
  ``user_profile``, and five affinities, each a table of low rank between one attribute of the user and one of the item
  (:data:`AFFINITIES`). All of these attributes have few enough values that a million rows teach them.
* The other attributes, and the identity of the user, say nothing.

``truth.json`` beside the rows holds what the world was made from, so that :func:`truth_of` knows the probability of
every pair of a user and an item, shown or not.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..dataset.schema import Column, Schema
from ..errors import DataError
from ..utils.files import written_aside
from ..utils.output_kinds import RAW
from ..utils.progress import progress

CHUNK = 500_000
START = 1_577_836_800  # 2020-01-01 00:00 UTC
DAYS = 30

ITEM_ATTRIBUTES = {"item_category": 100, "item_shop": 60, "item_brand": 30}
USER_ATTRIBUTES = {
    "user_shops": 150,
    "user_profile": 30,
    "user_group": 12,
    "user_gender": 2,
    "user_age": 7,
    "user_consumption_2": 3,
    "user_is_occupied": 2,
    "user_geography": 5,
    "user_intentions": 12,
    "user_brands": 15,
    "user_categories": 24,
}
AFFINITIES = (
    # user attribute, item attribute, standard deviation of the log-odds
    ("user_categories", "item_category", 0.5),
    ("user_intentions", "item_category", 0.25),
    ("user_brands", "item_brand", 0.85),
    ("user_age", "item_brand", 0.5),
    ("user_group", "item_shop", 0.3),
)
RANK = 3
BIAS = -2.0
QUALITY = 0.15  # standard deviation over the items
PROPENSITY = 0.5  # standard deviation over the values of user_profile
TASTE = 14.0  # log of how much more often a category is shown, per unit of the first two affinities
BROWSING = 0.2  # share of rows that show any category, liked or not
USER_SKEW = 2.0  # a uniform number to this power picks a rank: density ~ rank ** (1 / skew - 1)
ITEM_SKEW = 2.0
TRUTH = "truth.json"
SLOTS = 512  # resolution of the table that picks a category


def generate(folder: Path, rows: int, users: int | None = None, items: int | None = None, seed: int = 42) -> None:
    """Write a raw folder of made-up interactions, in bounded memory for any number of rows.

    Args:
        folder: raw data folder to write, whole or not at all.
        rows: number of interactions.
        users: number of users to draw from; default: 20,000 for a million rows, 100,000 for ten million.
        items: number of items; default: 5,000 for a million rows, 10,000 for ten million.
        seed: the same seed gives the same rows.

    Raises:
        DataError: a count is not positive, or the folder cannot be written.
    """
    for name, count in (("rows", rows), ("users", users), ("items", items)):
        if count is not None and count < 1:
            raise DataError(f"{name} must be at least 1, got {count}")
    users = max(10, round(20_000 * (rows / 1e6) ** 0.7)) if users is None else users
    items = max(10, round(5_000 * (rows / 1e6) ** 0.3)) if items is None else items
    world = _world(seed, users, items)
    with written_aside(Path(folder), RAW) as aside, progress("generating rows", rows) as advance:
        SCHEMA.save(aside / "schema.yaml")
        (aside / TRUTH).write_text(json.dumps({"seed": seed, "users": users, "items": items}) + "\n")
        (aside / "interactions").mkdir()
        for number, start in enumerate(range(0, rows, CHUNK)):
            count = min(CHUNK, rows - start)
            random = np.random.Generator(np.random.SFC64([seed, 1, number]))
            columns = world.draw(random, count)
            moments = start + np.sort(random.random(count)) * count
            columns["time"] = START + (moments * (DAYS * 86_400 / rows)).astype(np.int64)
            path = aside / "interactions" / f"part-{number:05}.parquet"
            pq.write_table(pa.table(columns), path, compression="snappy")
            advance(count)


def truth_of(raw: Path) -> Callable[[np.ndarray, np.ndarray], np.ndarray] | None:
    """True click probabilities of the data in a raw folder.

    Args:
        raw: raw folder.

    Returns:
        Function from ids of users int[n] and of items int[n, k] to float32[n, k]; None for other data.

    Raises:
        DataError: the file with the truth is damaged.
    """
    path = Path(raw) / TRUTH
    try:
        world = _world(**json.loads(path.read_text()))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is damaged: {error}; make the data again") from error
    return lambda users, items: world.probability(users[:, None] - 1, items - 1)


def _world(seed: int, users: int, items: int) -> _World:
    return _World.make(np.random.default_rng([seed, 0]), users, items)


@dataclass(frozen=True)
class _World:
    """Users, items and true effects; index i of an attribute array belongs to the entity with id i + 1.

    Attributes:
        user: name -> int64[users], values counted from 1.
        item: name -> int64[items].
        by_activity: int64[users], most active first.
        by_category: int64[items], grouped by category, within it most popular first.
        category_starts: int64[categories + 1], first positions of the groups.
        shown: int64[user_categories, user_intentions, SLOTS], categories in the proportion in which they are shown.
        quality: float32[items], log-odds, the constant included.
        propensity: float32[user_profile values], log-odds.
        affinities: one float32[user values, item values] of log-odds for each of AFFINITIES.
    """

    user: dict[str, np.ndarray]
    item: dict[str, np.ndarray]
    by_activity: np.ndarray
    by_category: np.ndarray
    category_starts: np.ndarray
    shown: np.ndarray
    quality: np.ndarray
    propensity: np.ndarray
    affinities: list[np.ndarray]

    @classmethod
    def make(cls, random: np.random.Generator, users: int, items: int) -> _World:
        user = {name: _skewed(random, users, n) for name, n in USER_ATTRIBUTES.items()}
        item = {name: _skewed(random, items, n) for name, n in ITEM_ATTRIBUTES.items()}
        sizes = USER_ATTRIBUTES | ITEM_ATTRIBUTES
        affinities = [_low_rank(random, sizes[u], sizes[i], deviation) for u, i, deviation in AFFINITIES]
        by_category = random.permutation(items)
        by_category = by_category[np.argsort(item["item_category"][by_category], kind="stable")]
        stocked = np.bincount(item["item_category"] - 1, minlength=sizes["item_category"])
        liking = affinities[0][:, None, :] + affinities[1][None, :, :]
        weight = np.where(stocked > 0, np.exp(TASTE * liking), 0)
        ends = np.cumsum(weight / weight.sum(axis=-1, keepdims=True), axis=-1)
        slots = (np.arange(SLOTS) + 0.5) / SLOTS
        shown = np.stack([np.searchsorted(row, slots) for row in ends.reshape(-1, ends.shape[-1])])
        return cls(
            user,
            item,
            random.permutation(users),
            by_category,
            np.concatenate([[0], np.cumsum(stocked)]),
            shown.reshape(*liking.shape[:2], SLOTS),
            (BIAS + QUALITY * random.standard_normal(items)).astype(np.float32),
            (PROPENSITY * random.standard_normal(sizes["user_profile"])).astype(np.float32),
            affinities,
        )

    def draw(self, random: np.random.Generator, count: int) -> dict[str, np.ndarray]:
        """``count`` rows without their time."""
        user = self.by_activity[(len(self.by_activity) * random.random(count) ** USER_SKEW).astype(np.int64)]
        users = {name: values[user] for name, values in self.user.items()}
        slot = random.integers(SLOTS, size=count)
        category = self.shown[users["user_categories"] - 1, users["user_intentions"] - 1, slot]
        browsing = random.random(count, np.float32) < BROWSING
        anything = self.item["item_category"][random.integers(len(self.by_category), size=count)] - 1
        category = np.where(browsing, anything, category)
        start, end = self.category_starts[category], self.category_starts[category + 1]
        item = self.by_category[start + ((end - start) * random.random(count) ** ITEM_SKEW).astype(np.int64)]
        items = {name: values[item] for name, values in self.item.items()}
        probability = self.probability(user, item)
        click = (random.random(count, np.float32) < probability).astype(np.int64)
        return {
            "user_id": user + 1,
            "item_id": item + 1,
            **items,
            **users,
            "click": click,
            "click_probability": probability,
        }

    def probability(self, user: np.ndarray, item: np.ndarray) -> np.ndarray:
        """True click probabilities float32 of users and items by index, of shapes that go together."""
        logit = self.quality[item] + self.propensity[self.user["user_profile"][user] - 1]
        for (of_user, of_item, _), table in zip(AFFINITIES, self.affinities, strict=True):
            logit = logit + table[self.user[of_user][user] - 1, self.item[of_item][item] - 1]
        probability: np.ndarray = 1 / (1 + np.exp(-logit))
        return probability


def _skewed(random: np.random.Generator, count: int, values: int) -> np.ndarray:
    """int64[count] of values from 1 to ``values``, the low ones somewhat more frequent."""
    return 1 + (values * random.random(count) ** 1.25).astype(np.int64)


def _low_rank(random: np.random.Generator, rows: int, columns: int, deviation: float) -> np.ndarray:
    """float32[rows, columns] of rank RANK with the given standard deviation.

    Columns have mean 0 and come from vectors of one length, so that no value of an item attribute is liked by
    everybody: popularity alone says little about a single user's tastes.
    """
    left, right = random.standard_normal((rows, RANK)), random.standard_normal((RANK, columns))
    table = (left - left.mean(axis=0)) @ (right / np.linalg.norm(right, axis=0))
    return (table * (deviation / table.std())).astype(np.float32)


SCHEMA = Schema(
    name="synthetic",
    columns=[
        Column(name="user_id", side="user", kind="categorical", role="id"),
        *(Column(name=name, side="user", kind="categorical") for name in USER_ATTRIBUTES),
        Column(name="item_id", side="item", kind="categorical", role="id"),
        *(Column(name=name, side="item", kind="categorical") for name in ITEM_ATTRIBUTES),
        Column(name="click", side="target", kind="categorical"),
        Column(name="click_probability", side="target", kind="numeric", role="oracle"),
        Column(name="time", side="time", kind="numeric", unit="s"),
    ],
)
