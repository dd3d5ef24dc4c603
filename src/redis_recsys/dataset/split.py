"""Division of interactions into training, validation and test: by time for all or for each user, or at random.

The rule is a Polars expression over rows in their given order; its value is the position in ``interactions.PARTS``.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..errors import DataError
from .interactions import PARTS


class Split(BaseModel):
    """Rule by which rows are divided.

    ``time``: the oldest rows train, newer ones validate, the newest test, cut at the same two moments for all.
    ``user``: the same within the rows of each user, so that every user with enough rows is in all parts.
    ``last``: each user's newest ``test`` rows test, the ``valid`` rows before them validate (leave-one-out by
    default). Users without a row more than that train with all of theirs.
    ``random``: each row at random.
    """

    model_config = ConfigDict(extra="forbid")

    by: Literal["time", "random", "user", "last"] = "time"
    valid: float = Field(
        0.1, gt=0, description="share of the rows for validation; by last: number of each user's rows, 1 by default"
    )
    test: float = Field(0.1, ge=0, description="the same for testing; 0 leaves none out of the training")
    seed: int = Field(42, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _one_of_each_user(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("by") == "last":
            return {"valid": 1, "test": 1} | given
        return given

    @model_validator(mode="after")
    def _leaves_training_rows(self) -> Split:
        if self.by == "last":
            if self.valid % 1 or self.test % 1:
                raise ValueError("valid and test are numbers of each user's rows where the last ones are left out")
        elif self.valid + self.test >= 1:
            raise ValueError("valid and test together must leave some rows for training: make them sum to less than 1")
        return self

    def cuts(self, time: pl.Series | None) -> tuple[int, int] | None:
        """First moments of the valid and the test part; None unless the split is by time.

        An empty test part begins after the newest row.

        Args:
            time: int64 time of every row; None if rows carry no time.

        Raises:
            DataError: a split by time of rows without time.
        """
        if self.by != "time":
            return None
        if time is None:
            raise DataError(
                "the schema has no time column to split by: add one, or split 'random', by 'user' or 'last'"
            )
        moments = np.sort(time.to_numpy())
        test = moments[int(len(moments) * (1 - self.test))] if self.test else moments[-1] + 1
        valid = moments[int(len(moments) * (1 - self.valid - self.test))]
        if valid == test > moments[0]:  # few moments, such as days: validate on the one before
            valid = moments[np.searchsorted(moments, test) - 1]
        return int(valid), int(test)

    def part(self, rows: int, user: str, time: str | None, cuts: tuple[int, int] | None) -> pl.Expr:
        """uint8 expression: the position in PARTS of each row.

        Args:
            rows: number of rows.
            user: name of the user column.
            time: name of the time column; without one, rows count as older than those after them.
            cuts: first moments from :meth:`cuts`.
        """
        if cuts is not None:
            assert time is not None
            return (pl.col(time) >= cuts[0]).cast(pl.UInt8) + (pl.col(time) >= cuts[1]).cast(pl.UInt8)
        if self.by == "random":
            newness = pl.lit(pl.Series(np.random.default_rng(self.seed).random(rows, np.float32)))
        else:
            age = pl.int_range(pl.len()) if time is None else pl.col(time)
            newer = pl.len() - age.rank("ordinal").cast(pl.Int64)  # of the same user
            if self.by == "last":
                newness = (
                    pl.when(pl.len() > self.valid + self.test).then(newer).otherwise(self.valid + self.test).over(user)
                )
            else:
                # the newest of n rows is at 0.5 / n: shares of a user's rows are rounded, a single row trains
                newness = ((newer + 0.5) / pl.len()).over(user)
        return (newness < self.valid + self.test).cast(pl.UInt8) + (newness < self.test).cast(pl.UInt8)


def check_parts(counts: list[int], split: Split) -> dict[str, int]:
    """Number of rows of each part, by name.

    Raises:
        DataError: a part has no rows although its share is above 0.
    """
    by_name: dict[str, int] = dict(zip(PARTS, counts, strict=True))
    for name, count in by_name.items():
        if not count and not (name == "test" and split.test == 0):
            raise DataError(
                f"the {name} part of the split by {split.by!r} is empty ({sum(counts)} rows in all): "
                "use more rows, other shares, or another split"
            )
    return by_name
