"""The feature store: a bundle's features as Feast objects, and in the layout in which Feast keeps them in Redis.

Every deployment is a Feast project of its own, ``recsys_{deploy:id}_{generation}``, so that generations of one Redis
and of several can coexist::

    entity         join key: the id column of the schema, with the raw id
    feature view   user_features and item_features, with one field per feature of the schema: encoded values
    source         a parquet file per view in the project's folder, with the join key and an event time

Feast names and fills one hash in Redis per entity. Since the id column names both the join key and a feature, the
feature's field is called ``{column}_number``.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import redis
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.errors import FeastError
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Int32List, Value
from feast.types import Array, Float32, Int32

from ..bundle.bundle import Bundle
from ..dataset.entities import Entities
from ..dataset.schema import SIDES, Column, IdKind, Schema, Side
from ..errors import StoreError
from ..store import features
from ..store.connection import store_errors
from ..store.forgotten import BundleUsers
from ..utils.files import disk_error
from ..utils.progress import progress

BLOCK = 4096  # entities written together


def view_name(side: Side) -> str:
    """Name of a side's feature view."""
    return f"{side}_features"


def field_name(schema: Schema, column: Column) -> str:
    """Name of a feature in Feast: its column's name; the encoded id's differs from the join key."""
    return _unused(schema, f"{column.name}_number") if column.role == "id" else column.name


def _unused(schema: Schema, name: str) -> str:
    while any(column.name == name for column in schema.columns):
        name += "_"
    return name


def definitions(schema: Schema, kinds: dict[Side, IdKind], folder: Path) -> list[Any]:
    """Entities and feature views, in the form that ``feast apply`` takes.

    Args:
        schema: schema of the bundle.
        kinds: types of the raw ids, ``Bundle.id_kinds``.
        folder: folder with the sources (see :func:`write_sources`).
    """
    objects: list[Any] = []
    for side in SIDES:
        key = schema.id_column(side).name
        kind = ValueType.INT64 if kinds[side] == "int" else ValueType.STRING
        entity = Entity(name=key, join_keys=[key], value_type=kind)
        fields = [
            Field(name=field_name(schema, c), dtype=Array(Int32) if c.max_length else Int32)
            for c in schema.categorical(side)
        ]
        fields += [Field(name=c.name, dtype=Float32) for c in schema.numeric(side)]
        source = FileSource(
            name=_source(folder, side).stem,
            path=str(_source(folder, side).absolute()),
            timestamp_field=_unused(schema, "event_timestamp"),
        )
        view = FeatureView(name=view_name(side), entities=[entity], ttl=timedelta(0), schema=fields, source=source)
        objects += [entity, view]
    return objects


def _entities(bundle: Bundle, side: Side) -> Iterator[Entities]:
    if side == "user":
        return (users for users, _ in bundle.users(BLOCK))
    items = bundle.items
    return (items.rows(slice(start, start + BLOCK)) for start in range(0, len(items), BLOCK))


@contextmanager
def _remembered(side: Side, block: Entities, people: BundleUsers | None) -> Iterator[Entities]:
    """Entities of a block to be written, without forgotten users; they are written inside the ``with`` block."""
    if side == "item" or people is None:
        yield block
    else:
        with people.block(block.raw_ids) as kept:
            yield block.rows(kept)


def write_sources(bundle: Bundle, folder: Path, people: BundleUsers | None = None) -> None:
    """Write the sources of the feature views: the bundle's tables with the join key, and its time as event time.

    Args:
        bundle: the bundle.
        folder: target folder, created if missing.
        people: leaves out forgotten users; default: all users are written.

    Raises:
        DataError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for side in SIDES:
            path, writer = _source(folder, side), None
            aside = path.with_suffix(".new")
            for block in _entities(bundle, side):
                with _remembered(side, block, people) as remaining:
                    table = _table(bundle.schema, side, remaining, datetime.fromisoformat(bundle.manifest.created))
                    writer = writer or pq.ParquetWriter(aside, table.schema)
                    writer.write_table(table)
            if writer is not None:
                writer.close()
                aside.replace(path)
    except OSError as error:
        raise disk_error(error, folder) from error


def _source(folder: Path, side: Side) -> Path:
    return folder / f"{view_name(side)}.parquet"


def _table(schema: Schema, side: Side, entities: Entities, time: datetime) -> pa.Table:
    table = {schema.id_column(side).name: pa.array(entities.raw_ids)}
    for column in schema.categorical(side):
        values = entities.categorical[:, schema.slots(column)]
        table[field_name(schema, column)] = pa.array(list(values) if column.max_length else values[:, 0])
    for position, column in enumerate(schema.numeric(side)):
        table[column.name] = pa.array(entities.numeric[:, position])
    table[_unused(schema, "event_timestamp")] = pa.array([time] * len(entities), pa.timestamp("us", "UTC"))
    return pa.table(table)


class FeastGeneration:
    """The features of one deployment in Feast.

    Attributes:
        store: Feast's own interface to it.
    """

    def __init__(
        self, client: redis.Redis, data: Path, generation: str, project: str, schema: Schema, kinds: dict[Side, IdKind]
    ) -> None:
        """Open a generation; nothing is read or written yet.

        Args:
            client: a connected Redis. Feast connects to the same one. The login stays in memory.
            data: data folder, ``settings.data``.
            generation: name of the generation.
            project: its name in Feast, from the record of the deployment.
            schema: schema of its bundle.
            kinds: types of the raw ids, ``Bundle.id_kinds``.
        """
        self._client, self._gen, self._schema, self._kinds = client, generation, schema, kinds
        self.folder = data / "feast" / project
        self._registry = self.folder.absolute() / "registry.db"
        self.store = FeatureStore(
            config=RepoConfig(
                project=project,
                provider="local",
                registry=str(self._registry),
                # Rows are never compared by time: the last write wins, whatever the clock says.
                online_store={"type": "redis", "connection_string": _address(client), "skip_dedup": True},
                offline_store={"type": "file"},
                entity_key_serialization_version=3,
            )
        )
        self._views: dict[Side, FeatureView] = {}

    def materialize(self, bundle: Bundle, people: BundleUsers | None = None) -> None:
        """Apply the definitions and write all users and items, in bounded memory.

        ``FeatureStore.materialize`` does the same over the whole table at once, and takes three times as long.

        Args:
            bundle: the bundle.
            people: leaves out forgotten users; default: all users are written.

        Raises:
            DataError: the folder cannot be written.
            StoreError: Redis or Feast fails.
        """
        shutil.rmtree(self.folder, ignore_errors=True)  # left by a Redis that lost what came after its backup
        write_sources(bundle, self.folder, people)
        counts = {"user": bundle.manifest.users, "item": bundle.manifest.items}
        time = datetime.fromisoformat(bundle.manifest.created)
        with self._errors():
            self.store.apply(definitions(self._schema, self._kinds, self.folder))
            for side in SIDES:
                with progress(f"materializing {side} features", counts[side]) as advance:
                    for block in _entities(bundle, side):
                        with _remembered(side, block, people) as remaining:
                            self.write_rows(side, remaining, time)
                        advance(len(block))
                # as FeatureStore.materialize does at its end
                self.store.registry.apply_materialization(self._view(side), self.store.project, time, time)

    def follow(self, side: Side, raw_ids: Sequence[int | str]) -> None:
        """Update the rows of some entities after their packed values have changed.

        The packed values are read again after writing, until they equal what was written. So several processes may do
        this for the same entity in any order: the last one leaves the newest values.

        Raises:
            StoreError: Redis or Feast fails.
        """
        width = self._schema.widths(side)
        ids, written = list(raw_ids), [None] * len(raw_ids)
        while ids:
            with store_errors(self._client):
                packed = features.read(self._client, self._gen, side, ids)
            changed = [n for n, (new, old) in enumerate(zip(packed, written, strict=True)) if new not in (None, old)]
            ids, written = [ids[n] for n in changed], [packed[n] for n in changed]
            if ids:
                categorical, numeric, _ = features.unpack(written, *width)
                raw = np.array(ids, np.int64 if self._kinds[side] == "int" else object)
                with self._errors():
                    self.write_rows(side, Entities(raw, categorical, numeric), datetime.now(UTC))

    def read(self, side: Side, raw_ids: Sequence[int | str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Read features by ``get_online_features``: int32[n, C], float32[n, F], and bool[n], whether Feast knows each.

        Raises:
            StoreError: Redis or Feast fails.
        """
        schema, key = self._schema, self._schema.id_column(side).name
        names = [f"{view_name(side)}:{field_name(schema, c)}" for c in schema.features(side)]
        with self._errors():
            self._view(side)
            response = self.store.get_online_features(names, [{key: raw} for raw in raw_ids]).to_dict()
        known = np.array([value is not None for value in response[field_name(schema, schema.id_column(side))]], bool)
        categorical = np.zeros((len(raw_ids), schema.categorical_width(side)), np.int32)
        numeric = np.zeros((len(raw_ids), len(schema.numeric(side))), np.float32)
        for column in schema.categorical(side):
            values = [value for value in response[field_name(schema, column)] if value is not None]
            categorical[known, schema.slots(column)] = np.array(values, np.int32).reshape(-1, column.width)
        for position, column in enumerate(schema.numeric(side)):
            numeric[known, position] = [value for value in response[column.name] if value is not None]
        return categorical, numeric, known

    def _view(self, side: Side) -> FeatureView:
        if side not in self._views:
            if not self._registry.is_file():  # Feast would create an empty one
                raise StoreError(
                    f"{self._registry} is missing: share that folder with the machine that deploys, or deploy again"
                )
            self._views[side] = self.store.get_feature_view(view_name(side))
        return self._views[side]

    def write_rows(self, side: Side, entities: Entities, time: datetime) -> None:
        """Write rows in one pipeline of Feast's provider, from protobuf values built here instead of a data frame."""
        schema, key = self._schema, self._schema.id_column(side).name
        fields: dict[str, list[Value]] = {}
        for column in schema.categorical(side):
            values = entities.categorical[:, schema.slots(column)].tolist()
            fields[field_name(schema, column)] = (
                [Value(int32_list_val=Int32List(val=row)) for row in values]
                if column.max_length
                else [Value(int32_val=row[0]) for row in values]
            )
        for position, column in enumerate(schema.numeric(side)):
            fields[column.name] = [Value(float_val=value) for value in entities.numeric[:, position].tolist()]
        kind = "int64_val" if self._kinds[side] == "int" else "string_val"
        keys = [EntityKey(join_keys=[key], entity_values=[Value(**{kind: raw})]) for raw in entities.raw_ids.tolist()]
        rows: list[tuple[EntityKey, dict[str, Value], datetime, datetime | None]] = [
            (entity, dict(zip(fields, values, strict=True)), time, None)
            for entity, values in zip(keys, zip(*fields.values(), strict=True), strict=True)
        ]
        self.store.provider.online_write_batch(self.store.config, self._view(side), rows, None)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Raise Feast's errors, and those of Redis through it, as one line."""
        try:
            with store_errors(self._client), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about Feast's own use of other packages
                yield
        except FeastError as error:
            raise StoreError(
                f"Feast fails for {self.store.project} ({' '.join(str(error).split())}): deploy again, or without Feast"
            ) from error
        except OSError as error:
            raise disk_error(error, self.folder) from error


def _address(client: redis.Redis) -> str:
    """Feast's connection string for the Redis that ``client`` is connected to.

    Feast splits it at commas and reads values as JSON if it can, so texts are written as JSON without a comma.
    """
    options: dict[str, Any] = client.get_connection_kwargs()
    parts = [f"{options['host']}:{options['port']}"]
    names = ("username", "password", "db", "socket_timeout", "socket_connect_timeout", "ssl_ca_certs")
    chosen = {name: options[name] for name in names if options.get(name) is not None}
    if issubclass(client.connection_pool.connection_class, redis.SSLConnection):
        chosen["ssl"] = True
    parts += [f"{name}={json.dumps(value)}".replace(",", "\\u002c") for name, value in chosen.items()]
    return ",".join(parts)
