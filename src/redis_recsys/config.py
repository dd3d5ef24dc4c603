"""Settings, from the YAML file named by ``RECSYS_CONFIG``, then ``RECSYS_*`` variables, then command-line flags.

A variable names its section: ``RECSYS_REDIS_HOST``, ``RECSYS_BATCH_TOPK``, ``RECSYS_TRAIN_DEVICE``. Secrets are
taken from the environment only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from .errors import ConfigError, explain_validation


class Section(BaseModel):
    """A group of settings; unknown names are refused."""

    model_config = ConfigDict(extra="forbid")


class RedisSettings(Section):
    """Connection to Redis. Without a host, the project starts its own real Redis in ``folder``."""

    host: str | None = Field(None, description="host of Redis; default: the project starts its own")
    port: int = Field(6379, ge=1, le=65535, description="port of Redis")
    username: str | None = Field(None, description="user in Redis' access control list; default: the default user")
    password: SecretStr | None = Field(None, description="password of that user; from the environment only")
    tls: bool = Field(False, description="TLS on the connection to Redis")
    tls_ca: Path | None = Field(None, description="certificate authority that signed the server's certificate")
    timeout: float = Field(5.0, gt=0, description="seconds to wait for a connection or an answer")
    retries: int = Field(3, ge=0, description="retries after a lost connection")
    folder: Path = Field(Path("data/redis"), description="data of the embedded Redis")
    max_memory: str | None = Field(None, description="memory limit of the embedded Redis, in Redis' notation: 512mb")


class TrainSettings(Section):
    """Training of the models."""

    trainer: Literal["torch", "merlin"] = Field(
        "torch", description="torch: PyTorch; merlin: NVIDIA Merlin, which needs `recsys setup merlin`"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="training device: auto, cpu or cuda")
    seed: int = Field(42, description="seed of all random draws in training")
    embedding_dim: int = Field(64, ge=1, description="dimension of the towers' output")
    epochs: int = Field(20, ge=1, description="maximum number of epochs; early stopping ends sooner")
    patience: int = Field(2, ge=1, description="epochs without a better validation metric before stopping")
    retrieval_batch: int = Field(2048, ge=2, description="batch size of the two-tower model")
    retrieval_lr: float = Field(0.002, gt=0, description="learning rate of the two-tower model")
    history: Literal["exact", "earlier"] = Field(
        "exact",
        description="a user's items while retrieval is trained: exact: those just before each click, for lists that "
        "follow every click; earlier: those before a random earlier moment, for lists made weeks ahead",
    )
    temperature: float = Field(0.07, gt=0, description="temperature of the retrieval softmax")
    uniform_negatives: int = Field(0, ge=0, description="catalogue items added to the in-batch negatives")
    ranking_batch: int = Field(4096, ge=2, description="batch size of the ranker")
    ranking_lr: float = Field(0.005, gt=0, description="learning rate of the ranker")
    ranking_dim: int = Field(16, ge=1, description="dimension of the ranker's embeddings")
    feature_dropout: float = Field(0.0, ge=0, lt=1, description="share of a user's features hidden while training")
    half_life: float | None = Field(None, gt=0, description="days after which an interaction has half its weight")
    refit: bool = Field(True, description="second training, on train + valid, for the best number of epochs")
    final: bool = Field(
        False,
        description="second training for production: on all rows, test part included, for the best number of epochs",
    )
    ranking_l2: float = Field(2e-5, ge=0, description="L2 penalty on the ranker's weights, in the gradient")
    ranking_negatives: int = Field(
        4, ge=1, description="negatives drawn per positive when the data has no target column"
    )
    resume: bool = Field(False, description="continue from the checkpoint of an interrupted run")


class MerlinSettings(Section):
    """Training with Merlin: the public notebooks' shapes and batch sizes, in a separate environment."""

    environment: Path = Field(
        Path(".venv-merlin"), description="Merlin's Python environment (see `recsys setup merlin`), or its python"
    )
    log: Path = Field(Path("data/merlin.log"), description="log file for the output of Merlin's libraries")
    retrieval_batch: int = Field(4096, ge=2, description="batch size of the two-tower model")
    ranking_batch: int = Field(16384, ge=2, description="batch size of DLRM")
    learning_rate: float = Field(0.001, gt=0, description="learning rate of Adam, for both models")
    encoder_dim: int = Field(128, ge=1, description="dimension of the towers' hidden layer")
    ranking_dim: int = Field(64, ge=1, description="dimension of DLRM's embeddings")


class DlrmSettings(Section):
    """Training of the DLRM on Criteo data, with its tables sharded over processes. The public shapes: dimension 128,
    bottom 512, 256, top 1024, 1024, 512, 256; the defaults suit a few cores.
    """

    processes: int = Field(
        2, ge=1, description="processes that share the tables and the rows: one per GPU, or a few on a CPU"
    )
    embedding_dim: int = Field(16, ge=4, multiple_of=4, description="dimension of all embedding tables")
    bottom: list[int] = Field([64, 32], description="widths of the bottom MLP, before its last layer (embedding_dim)")
    top: list[int] = Field([128, 64], description="widths of the top MLP, before its last layer (1)")
    batch: int = Field(2048, ge=1, description="rows per step and process")
    learning_rate: float = Field(0.002, gt=0, description="learning rate of Adam, for the MLPs")
    embedding_lr: float = Field(
        0.2, gt=0, description="learning rate of row-wise Adagrad, for the tables; both fall to 0 by the end"
    )
    embedding_eps: float = Field(
        0.01, gt=0, description="epsilon of Adagrad; larger values damp the first updates of a rare key"
    )
    row_wise_from: int = Field(
        20_000,
        ge=1,
        description="least rows of a table that is split by rows; smaller ones stay whole on one process",
    )
    epochs: int = Field(3, ge=1, description="maximum number of epochs; early stopping ends sooner")
    patience: int = Field(1, ge=1, description="epochs without a better validation AUC before stopping")
    seed: int = Field(42, description="seed of the initial weights and of the order of rows")
    checkpoint: int = Field(2000, ge=1, description="steps between checkpoints; each epoch also ends with one")
    resume: bool = Field(False, description="continue from the newest checkpoint, with any number of processes")
    log: Path = Field(Path("data/dlrm.log"), description="log file for the output of the processes")


class LookupSettings(Section):
    """Lookups of the parameter server in the tables that its `ps.json` describes."""

    cluster: Path = Field(Path("data/cluster"), description="folder of the embedded Redis Cluster")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="device of the cache of hot rows: auto, cpu or cuda"
    )
    threads: int | None = Field(None, ge=1, description="threads of the dense part of the model; default: one per core")
    timeout: float = Field(0.5, gt=0, description="seconds a lookup waits for a Redis node before going on without it")
    pause: float = Field(0.5, ge=0, description="seconds before a node that did not answer is tried again")


class BatchSettings(Section):
    """Recommendations computed ahead of time."""

    candidates: int = Field(100, ge=1, description="items that retrieval passes to the ranker, at least topk")
    topk: int = Field(20, ge=1, description="recommendations kept per user")
    temperature: float = Field(0.0, ge=0, description="temperature of the sampling (softmax); 0: strictly by score")
    seed: int = Field(42, description="seed of the sampling")
    block: int = Field(2048, ge=1, description="users scored together")
    workers: int | None = Field(None, ge=1, description="scoring threads; default: one per core")
    grace: int = Field(3600, ge=0, description="seconds the replaced generation stays readable")
    popular: int = Field(
        1000, ge=1, description="popular items stored for users without recommendations, at least topk"
    )

    @property
    def retrieved(self) -> int:
        """Number of items that retrieval passes to the ranker: enough to keep ``topk`` of them."""
        return max(self.candidates, self.topk)

    @property
    def popular_kept(self) -> int:
        """Number of popular items stored: enough for a user who gets nothing else."""
        return max(self.popular, self.topk)


class DeploySettings(Section):
    """Output of `recsys deploy`, and how long the replaced deployment stays readable."""

    models: Path = Field(Path("data/deployed"), description="folder of deployed bundles, which the servers read")
    feast: bool = Field(True, description="also Feast's own layout: feature repository applied, features materialized")
    recall: float = Field(0.97, gt=0, le=1, description="recall of the vector index, compared with exact search")
    history: int = Field(
        1000, ge=1, description="newest interactions kept per user, from the bundle and from live events each"
    )
    grace: int = Field(3600, ge=0, description="seconds the replaced deployment stays readable")


class OnlineSettings(Section):
    """Recommendations computed on demand."""

    retrieval: Literal["local", "redis"] = Field(
        "local",
        description="search for the nearest items: local (exact, in the server's memory) or redis (its vector set)",
    )
    users: Literal["packed", "feast"] = Field(
        "packed", description="source of user features: packed (values in Redis) or feast (the Feast SDK)"
    )
    items: Literal["memory", "packed", "attributes", "feast"] = Field(
        "memory",
        description="source of item features: memory (the server's), packed (values in Redis), attributes (the answer "
        "of the vector query, needs retrieval redis) or feast (the Feast SDK)",
    )
    nearest: int = Field(80, ge=1, description="candidates from the vector index, at least topk")
    similar: int = Field(10, ge=0, description="candidates similar to the last viewed item")
    popular: int = Field(10, ge=0, description="candidates from the popular items")
    allow: dict[str, list[bool | int | str]] = Field(
        {}, description="raw values by column, one of which an item must have, also in batches and degraded answers"
    )
    deny: dict[str, list[bool | int | str]] = Field(
        {}, description="raw values by column, none of which an item may have, also in batches and degraded answers"
    )
    topk: int = Field(20, ge=1, description="recommendations per user")
    temperature: float = Field(0.0, ge=0, description="temperature of the sampling (softmax); 0: strictly by score")
    diversity: float = Field(
        0.0, ge=0, le=1, description="weight of dissimilarity to items ranked above (MMR); 0: by score alone"
    )
    seed: int | None = Field(None, description="seed of the sampling; default: a new one at each start")
    timeout: float = Field(0.1, gt=0, description="seconds a request waits for Redis before it is answered without it")
    pause: float = Field(0.5, ge=0, description="seconds before Redis is tried again after a failure")

    @model_validator(mode="after")
    def _consistent(self) -> OnlineSettings:
        if self.items == "attributes" and (self.retrieval != "redis" or self.similar or self.popular):
            raise ValueError(
                "items 'attributes' needs retrieval 'redis', similar 0 and popular 0: the vector query has no features "
                "of other sources' items"
            )
        return self

    @property
    def retrieved(self) -> int:
        """Candidates from the vector index: enough to show ``topk`` of them, whatever other sources return."""
        return max(self.nearest, self.topk)


class TritonSettings(Section):
    """Connection to Triton. `recsys serve` starts the project's own; without a host, clients use this machine's."""

    host: str | None = Field(None, description="host that clients connect to")
    address: str = Field("127.0.0.1", description="address that the server listens on")
    grpc_port: int = Field(8001, ge=0, le=65535, description="gRPC port; 0: any free one")
    http_port: int = Field(8000, ge=0, le=65535, description="HTTP port; 0: any free one")
    metrics_port: int = Field(8002, ge=0, le=65535, description="metrics port; 0: any free one")
    environment: Path = Field(
        Path(".venv-serving"), description="Python environment of the server, see `recsys setup serving`"
    )
    repository: Path = Field(Path("data/triton"), description="folder for the generated model repository and the log")
    partition: Literal["staged", "consolidated", "fused"] = Field(
        "fused",
        description="models of the pipeline: fused (one), staged (one per stage) or consolidated (staged, items with "
        "their features)",
    )
    instances: int = Field(2, ge=1, description="processes per model")
    max_batch: int = Field(64, ge=1, description="maximum number of users computed together")
    queue_delay: int = Field(0, ge=0, description="microseconds a request waits to be batched with others")
    cache: bool = Field(
        False, description="repeated requests answered from Triton's response cache, whatever has changed since"
    )
    alias: str | None = Field(
        None,
        pattern=r"^[\w-]+$",
        description="a second name, such as ensemble-model, that takes user_id_raw and gives ordered_ids (INT32), for "
        "clients of the public multi-stage example",
    )
    explain: bool = Field(True, description="candidates, sources, similarities and stage times as outputs")
    tls_certificate: Path | None = Field(None, description="certificate of the server; turns on TLS")
    tls_key: Path | None = Field(None, description="key of the server's certificate; default: in its file")
    tls_ca: Path | None = Field(None, description="certificate authority that the client trusts")
    tls: bool = Field(False, description="TLS on the client's connection")
    token: SecretStr | None = Field(None, description="token that clients must send; from the environment only")
    timeout: float = Field(5.0, gt=0, description="seconds a client waits for an answer")


class Settings(BaseSettings):
    """All settings, by section."""

    model_config = SettingsConfigDict(
        env_prefix="RECSYS_", env_nested_delimiter="_", env_nested_max_split=1, extra="forbid"
    )

    data: Path = Field(Path("data"), description="folder for downloads, datasets and bundles")
    redis: RedisSettings = RedisSettings()
    train: TrainSettings = TrainSettings()
    merlin: MerlinSettings = MerlinSettings()
    dlrm: DlrmSettings = DlrmSettings()
    lookup: LookupSettings = LookupSettings()
    batch: BatchSettings = BatchSettings()
    deploy: DeploySettings = DeploySettings()
    online: OnlineSettings = OnlineSettings()
    triton: TritonSettings = TritonSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags win over the environment, the environment over the file."""
        path = os.environ.get("RECSYS_CONFIG")
        if path is None:
            return init_settings, env_settings
        return init_settings, env_settings, InitSettingsSource(settings_cls, _read(Path(path)))

    def changed(self, section: str, **values: Any) -> Settings:
        """Return a copy with other values in one section, without validation."""
        return self.model_copy(update={section: getattr(self, section).model_copy(update=values)})

    def with_redis(
        self, host: str, port: int, username: str | None = None, password: str | None = None, tls: bool = False
    ) -> Settings:
        """Return a copy that uses an existing Redis."""
        secret = SecretStr(password) if password else None
        return self.changed("redis", host=host, port=port, username=username, password=secret, tls=tls)


def as_variables(settings: Settings, sections: Sequence[str]) -> dict[str, str]:
    """Sections of the settings as ``RECSYS_*`` variables for another process."""
    variables = {"RECSYS_DATA": str(settings.data.absolute())}
    for section in sections:
        values: BaseModel = getattr(settings, section)
        for name in type(values).model_fields:
            value = getattr(values, name)
            if value is not None:
                variables[f"RECSYS_{section}_{name}".upper()] = _text(value)
    return variables


def _text(value: object) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, Path):
        return str(value.absolute())
    return value if isinstance(value, str) else json.dumps(value)


def _read(path: Path) -> dict[str, Any]:
    """Read the settings file."""
    try:
        document = yaml.safe_load(path.read_text()) or {}
    except OSError as error:
        raise ConfigError(f"RECSYS_CONFIG names {path}, which cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path} must hold sections of settings, such as 'batch:'")
    for section, secret in (("redis", "password"), ("triton", "token")):
        values = document.get(section)
        if isinstance(values, dict) and secret in values:
            raise ConfigError(
                f"{path} holds {section}.{secret}: set RECSYS_{section.upper()}_{secret.upper()} instead, "
                "secrets are for no file"
            )
    return document


def load_settings(**flags: Any) -> Settings:
    """Load the settings, overridden by flags: one dictionary per section, None meaning "not given".

    Example:
        >>> load_settings(batch={"topk": 5, "seed": None}).batch.topk
        5

    Raises:
        ConfigError: a value is wrong; the message names the setting.
    """
    given: dict[str, Any] = {
        name: {field: value for field, value in flag.items() if value is not None} if isinstance(flag, dict) else flag
        for name, flag in flags.items()
        if flag is not None
    }
    try:
        return Settings(**given)
    except ValidationError as error:
        raise ConfigError(f"setting {explain_validation(error)}") from error
    except SettingsError as error:
        raise ConfigError(f"a RECSYS_ variable cannot be read: {error}") from error
