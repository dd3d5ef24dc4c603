"""A deployment as a server sees it: the record in Redis, and the bundle on disk with what is derived from it."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import pyarrow.parquet as pq

from .bundle import Bundle
from .config import Settings
from .errors import ConfigError
from .store import deployments


class Deployment:
    """One generation. What stages share is computed once, when the first of them asks.

    Attributes:
        generation: its name in Redis.
        record: what the deployment wrote about itself.
        bundle: the deployed bundle.
        data: the folder of data, where Feast's registry lies.
    """

    def __init__(self, record: deployments.DeploymentRecord, settings: Settings) -> None:
        """
        Args:
            record: from ``deployments.read``.
            settings: with the folder of deployed bundles, and the business rules.

        Raises:
            BundleError: the bundle is missing there, or damaged.
        """
        self.generation = record.generation
        self.record = record
        self.bundle = Bundle(settings.deploy.models / record.folder)
        self.data = settings.data
        self._online = settings.online

    @cached_property
    def raw_items(self) -> np.ndarray:
        """Raw ids by entity number: int64[items + 1], or object[items + 1] of bytes; row 0, no item, is -1 or b''."""
        raw = self.bundle.items.raw_ids
        if raw.dtype.kind in "iu":
            return np.concatenate([[-1], raw]).astype(np.int64)
        return np.array([b"", *(each.encode() for each in raw)], object)

    @cached_property
    def popular(self) -> np.ndarray:
        """Entity numbers int32[m], most popular first."""
        return self.bundle.popularity[0].astype(np.int32)

    @cached_property
    def allowed(self) -> np.ndarray:
        """Which items the business rules let through, bool[items + 1] by entity number; never the unknown item 0.

        Raises:
            ConfigError: a rule names a column that items do not have.
        """
        items, schema = self.bundle.items, self.bundle.schema
        columns = {column.name: column for column in schema.categorical("item")}
        allowed = np.ones(len(items) + 1, bool)
        for rule, values_of in (("allow", self._online.allow), ("deny", self._online.deny)):
            for name, values in values_of.items():
                if name not in columns:
                    known = ", ".join(columns)
                    raise ConfigError(f"setting online.{rule} names {name}, but items have the attributes {known}")
                wanted = {str(value) for value in values}
                column = columns[name]
                if column.role == "id":  # every item has a raw id, but not every one an id of its own in the models
                    having = np.array([str(raw) in wanted for raw in items.raw_ids.tolist()], bool)
                else:
                    vocabulary = pq.read_table(self.bundle.path / "vocab" / f"{name}.parquet")["value"].to_pylist()
                    ids = [number for number, value in enumerate(vocabulary, 1) if str(value) in wanted]
                    having = np.asarray(np.isin(items.categorical[:, schema.slots(column)], ids).any(axis=1))
                allowed[1:] &= having if rule == "allow" else ~having
        allowed[0] = False
        return allowed
