"""``ps.json``: the configuration of the parameter server, with the field names of HugeCTR's HPS (v22 to v24).

A file written for HPS works here; relative paths in it start at its own folder. Wrong values are rejected with the
field's name. Fields of HPS without effect here (buffer pools, allocation rates), and unknown fields, are listed in
``remarks``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from ..errors import ConfigError, DataError, explain_validation
from .layout import full_name

T = TypeVar("T")

NAME = r"^[a-zA-Z0-9_\-]{1,120}$"  # allowed by HPS for models and tables
NO_LIMIT = 2**64 - 1
EVERYTHING = ["^hps_.+$"]
WITHOUT_EFFECT = {
    "fuse_embedding_table", "allocation_rate", "algorithm", "shared_memory_size", "shared_memory_name",
    "shared_memory_auto_remove", "num_node_connections", "num_threads", "brokers", "metadata_refresh_interval_ms",
    "receive_buffer_size", "max_receive_buffer_size", "max_commit_interval", "failure_backoff_ms",
    "num_of_worker_buffer_in_pool", "num_of_refresher_buffer_in_pool", "deployed_device_list", "refresh_delay",
    "use_context_stream", "thread_pool_size", "scaler", "use_cuda_graph", "use_algorithm_search", "init_ec",
    "max_batch_size", "max_set_batch_size", "refresh_time_after_fetch", "enable_pagelock",
}  # fmt: skip
REFRESH = "rows that others write to Redis reach the cache only by 'recsys dlrm update'"
# Fields that affect HPS but not this server: the values without effect in HPS either, and the behaviour here
OTHERWISE: dict[str, tuple[tuple[Any, ...], str]] = {
    "refresh_interval": ((0,), REFRESH),
    "cache_refresh_percentage_per_iteration": ((0,), REFRESH),
    "use_mixed_precision": ((False,), "the dense part is computed in float32"),
    "fp8_quant": ((False,), "rows are float32"),
    "use_static_table": ((False,), "the cache holds gpucacheper of the rows"),
    "embedding_cache_type": (("dynamic",), "the cache holds gpucacheper of the rows, those used last"),
    "tls_server_name_identification": (("",), "the certificate has to be for the address itself"),
}

OFF = ("disabled", "disable", "none", "null")


class Group(BaseModel):
    """A JSON object of the file. Types are strict: a number in quotes is not a number."""

    model_config = ConfigDict(extra="allow", strict=True)


def _one_of(names: dict[str, tuple[str, ...]], hint: str) -> BeforeValidator:
    """Replace every alias of HPS for a value by its first name."""

    def chosen(value: object) -> object:
        for name, aliases in names.items():
            if value == name or value in aliases:
                return name
        raise ValueError(f"{value!r} is not supported: {hint}")

    return BeforeValidator(chosen)


def _long(value: object) -> object:
    """Reject keys of 32 bits."""
    if value is False:
        raise ValueError(
            "false means keys of 32 bits in Redis, with which no row would be found: set it to true, and fill Redis "
            "anew with 'recsys dlrm load --again' (a model's key file has 64 bits either way)"
        )
    return value


LongKeys = Annotated[bool, BeforeValidator(_long)]


class VolatileDatabase(Group):
    """The tier in Redis.

    Attributes:
        address: ``host:port,host:port``; empty: the project's own cluster.
        num_partitions: hashes per table. HPS must have the same number, since it determines each key's partition.
        overflow_margin: maximum rows of a partition; above it, ``overflow_policy`` evicts rows until
            ``overflow_resolution_target`` of it are left.
        initial_cache_rate: share of each table's rows to load, from the start of the file.
        cache_missed_embeddings: whether rows found in the persistent database are copied here.
        update_filters: regular expressions; a table whose name matches none of them gets no online updates here.
    """

    type: Annotated[
        Literal["redis_cluster", "disabled"],
        _one_of({"redis_cluster": ("redis",), "disabled": OFF}, "use redis_cluster or disabled"),
    ] = "disabled"
    address: str = "127.0.0.1:7000"
    user_name: str = "default"
    password: str = ""
    num_partitions: int = Field(8, ge=1)
    max_get_batch_size: int = Field(10_000, ge=1)
    max_batch_size: int = Field(65_536, ge=1)
    overflow_margin: int = Field(NO_LIMIT, ge=1)
    overflow_policy: Annotated[
        Literal["evict_oldest", "evict_random"],
        _one_of({"evict_oldest": ("oldest",), "evict_random": ("random",)}, "use evict_oldest or evict_random"),
    ] = "evict_oldest"
    overflow_resolution_target: float = Field(0.8, gt=0, lt=1)
    initialize_after_startup: bool = True
    initial_cache_rate: float = Field(1.0, ge=0, le=1)
    cache_missed_embeddings: bool = False
    update_filters: list[str] = EVERYTHING
    enable_tls: bool = False
    tls_ca_certificate: str = ""
    tls_client_certificate: str = ""
    tls_client_key: str = ""


class PersistentDatabase(Group):
    """The tier on disk, RocksDB, which holds every row."""

    type: Annotated[
        Literal["rocks_db", "disabled"],
        _one_of({"rocks_db": ("rocksdb", "rocks"), "disabled": OFF}, "use rocks_db or disabled"),
    ] = "disabled"
    path: str = "/tmp/rocksdb"
    read_only: bool = False
    max_batch_size: int = Field(65_536, ge=1)
    initialize_after_startup: bool = True
    update_filters: list[str] = EVERYTHING


class UpdateSource(Group):
    """Source of online updates: Redis Streams, beside the tables in Redis.

    Attributes:
        poll_timeout_ms: pause between reads of the streams.
    """

    type: Annotated[
        Literal["redis_stream", "null"],
        _one_of(
            {"redis_stream": ("kafka_message_queue", "kafka_mq", "kafka"), "null": OFF}, "use redis_stream or null"
        ),
    ] = "null"
    poll_timeout_ms: int = Field(100, ge=1)


PER_TABLE = ("embedding_vecsize_per_table", "embedding_table_names", "maxnum_catfeature_query_per_table_per_sample")


class Model(Group):
    """A model and its tables.

    Attributes:
        sparse_files: one folder per table, with ``key`` and ``emb_vector``.
        gpucache: whether there is a cache before Redis; in GPU memory if there is a GPU.
        gpucacheper: rows of the cache, as a share of the table's.
        hit_rate_threshold: a lookup with at least this share of cache hits answers misses with the default vector and
            fetches them in the background; below, it waits. Above 1 it always waits.
        i64_input_key: true, or omitted.
        slot_num, label_dim, maxnum_des_feature_per_sample, maxnum_catfeature_query_per_table_per_sample: sizes for
            which HPS reserves memory; here they must not contradict the network.
    """

    model: str = Field(pattern=NAME)
    sparse_files: list[str] = Field(min_length=1)
    dense_file: str = ""
    network_file: str = ""
    max_batch_size: int = Field(64, ge=1)
    embedding_vecsize_per_table: list[Annotated[int, Field(ge=1)]]
    embedding_table_names: list[Annotated[str, Field(pattern=NAME)]] = []
    default_value_for_each_table: list[float] = []
    gpucache: bool = True
    gpucacheper: float = Field(0.2, ge=0, le=1)
    hit_rate_threshold: float = Field(0.9, ge=0)
    i64_input_key: LongKeys = True
    slot_num: int | None = None
    label_dim: int | None = None
    maxnum_des_feature_per_sample: int | None = None
    maxnum_catfeature_query_per_table_per_sample: list[int] | None = None

    @model_validator(mode="after")
    def _one_value_per_table(self) -> Model:
        tables = len(self.sparse_files)
        if not self.embedding_table_names:
            self.embedding_table_names = [f"sparse_embedding{number}" for number in range(tables)]
        # HPS pads a list of defaults that is too short, and ignores surplus values
        first = self.default_value_for_each_table[0] if self.default_value_for_each_table else 0.0
        self.default_value_for_each_table = (self.default_value_for_each_table + [first] * tables)[:tables]
        for name in PER_TABLE:
            values = getattr(self, name)
            if values is not None and len(values) != tables:
                raise ValueError(f"{name} has {len(values)} entries, and sparse_files has {tables}")
        if len(set(self.embedding_table_names)) < tables:
            raise ValueError("embedding_table_names names a table twice")
        return self


@dataclass(frozen=True)
class TableConfig:
    """A table of a model.

    Attributes:
        name: ``model.table``.
        full: name in the tiers.
        dim: dimension of the rows.
        default: value of all elements of the default vector.
        file: folder of the trained table.
        model: model that it belongs to.
    """

    name: str
    full: str
    dim: int
    default: float
    file: Path
    model: Model


class Config(Group):
    """The whole file.

    Attributes:
        supportlonglong: whether keys have 64 bits; they must.
    """

    supportlonglong: LongKeys = True
    volatile_db: VolatileDatabase = VolatileDatabase()
    persistent_db: PersistentDatabase = PersistentDatabase()
    update_source: UpdateSource = UpdateSource()
    models: list[Model] = Field(min_length=1)

    @model_validator(mode="after")
    def _models_differ(self) -> Config:
        if len({model.model for model in self.models}) < len(self.models):
            raise ValueError("models names a model twice")
        return self

    @property
    def tables(self) -> list[TableConfig]:
        """All tables of all models."""
        return [
            TableConfig(f"{model.model}.{table}", full_name(model.model, table), dim, default, Path(file), model)
            for model in self.models
            for table, dim, default, file in zip(
                model.embedding_table_names,
                model.embedding_vecsize_per_table,
                model.default_value_for_each_table,
                model.sparse_files,
                strict=True,
            )
        ]

    @property
    def remarks(self) -> dict[str, bool]:
        """Entries of the file without effect, one line each, and whether each is likely to be a mistake."""
        lines = {}
        groups = {"": self, "volatile_db.": self.volatile_db, "persistent_db.": self.persistent_db}
        groups |= {"update_source.": self.update_source}
        groups |= {f"models.{number}.": model for number, model in enumerate(self.models)}
        for prefix, group in groups.items():
            for name, value in (group.model_extra or {}).items():
                same, instead = OTHERWISE.get(name, ((), ""))
                if instead and value not in same:
                    lines[f"{prefix}{name} is {json.dumps(value)} and has no effect here: {instead}"] = True
                elif instead or name in WITHOUT_EFFECT:
                    lines[f"{prefix}{name} has no effect here"] = False
                else:
                    lines[f"{prefix}{name} is not a field of ps.json: a slip of the pen?"] = True
        if "brokers" in (self.update_source.model_extra or {}):
            lines["update_source names Kafka brokers; updates are read from Redis Streams: publish them there"] = True
        return lines


def read(path: Path) -> Config:
    """Read a ``ps.json``.

    Raises:
        ConfigError: the file is missing or not JSON, or fields are wrong; all wrong fields are named.
    """
    try:
        document = json.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path} must hold an object with volatile_db, persistent_db and models")
    try:
        config = Config(**document)
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain_validation(error)}") from None
    return _located(config, path.absolute().parent)


def _located(config: Config, folder: Path) -> Config:
    """Configuration with absolute paths; relative ones start at the file's folder."""
    config.persistent_db.path = str(folder / config.persistent_db.path)
    for model in config.models:
        model.sparse_files = [str(folder / file) for file in model.sparse_files]
        model.dense_file, model.network_file = str(folder / model.dense_file), str(folder / model.network_file)
    return config


def named(tables: Mapping[str, T], name: str) -> T:
    """Entry of a table, by ``model.table``.

    Raises:
        DataError: there is no such table.
    """
    if name not in tables:
        raise DataError(f"there is no table {name!r}: the configuration has {', '.join(tables)}")
    return tables[name]


def finds(filters: list[str], table: str) -> bool:
    """Whether one of the regular expressions matches the table's full name.

    Raises:
        ConfigError: one is not a regular expression.
    """
    try:
        return any(re.search(pattern, table) for pattern in filters)
    except re.error as error:
        raise ConfigError(f"update_filters holds {error.pattern!r}, not a regular expression: {error}") from None
