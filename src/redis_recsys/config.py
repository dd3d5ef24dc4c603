"""Settings, from the YAML file named by ``RECSYS_CONFIG``, then ``RECSYS_*`` variables, then command-line flags.

A variable names its section: ``RECSYS_REDIS_HOST``, ``RECSYS_BATCH_TOPK``, ``RECSYS_TRAIN_DEVICE``. Secrets are
taken from the environment only.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from .errors import ConfigError
from .schema import explain


class Section(BaseModel):
    """A group of settings; unknown names are refused."""

    model_config = ConfigDict(extra="forbid")


class RedisSettings(Section):
    """Where Redis is. Without a host, the project starts its own real Redis in ``folder``."""

    host: str | None = None
    port: int = Field(6379, ge=1, le=65535)
    username: str | None = None
    password: SecretStr | None = None
    tls: bool = False
    tls_ca: Path | None = Field(None, description="certificate authority that signed the server's certificate")
    timeout: float = Field(5.0, gt=0, description="seconds to wait for a connection or an answer")
    retries: int = Field(3, ge=0, description="further attempts after a lost connection")
    folder: Path = Field(Path("data/redis"), description="data of the embedded Redis")
    max_memory: str | None = Field(None, description="limit of the embedded Redis, as Redis writes it: 512mb")


class TrainSettings(Section):
    """How the models are trained."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = 42
    embedding_dim: int = Field(64, ge=1, description="of the towers' output")
    epochs: int = Field(20, ge=1, description="at most so many; early stopping ends sooner")
    patience: int = Field(2, ge=1, description="epochs without a better validation metric before stopping")
    retrieval_batch: int = Field(2048, ge=2)
    retrieval_lr: float = Field(0.002, gt=0)
    temperature: float = Field(0.1, gt=0, description="of the retrieval softmax")
    uniform_negatives: int = Field(0, ge=0, description="catalogue items added to the in-batch negatives")
    ranking_batch: int = Field(4096, ge=2)
    ranking_lr: float = Field(0.005, gt=0)
    ranking_dim: int = Field(16, ge=1, description="of the ranker's embeddings")
    feature_dropout: float = Field(0.0, ge=0, lt=1, description="share of a user's features hidden while training")
    half_life: float | None = Field(None, gt=0, description="days after which an interaction counts half in training")
    refit: bool = Field(True, description="train again on train + valid for the best number of epochs")
    ranking_l2: float = Field(2e-5, ge=0, description="L2 penalty on the ranker's weights, in the gradient")
    ranking_negatives: int = Field(4, ge=1, description="drawn per positive when the data has no target column")
    resume: bool = Field(False, description="go on from the checkpoint of an interrupted run")


class BatchSettings(Section):
    """How recommendations are computed ahead of time."""

    candidates: int = Field(100, ge=1, description="items that retrieval hands to the ranker")
    topk: int = Field(20, ge=1, description="recommendations kept per user")
    temperature: float = Field(0.0, ge=0, description="0 orders strictly by score, more samples (softmax)")
    seed: int = 42
    block: int = Field(2048, ge=1, description="users scored together")
    workers: int | None = Field(None, ge=1, description="threads; default: one per core")
    grace: int = Field(3600, ge=0, description="seconds the replaced generation stays readable")
    popular: int = Field(1000, ge=1, description="popular items stored for users without recommendations")


class Settings(BaseSettings):
    """Everything that can be set."""

    model_config = SettingsConfigDict(
        env_prefix="RECSYS_", env_nested_delimiter="_", env_nested_max_split=1, extra="forbid"
    )

    data: Path = Field(Path("data"), description="folder for downloads, datasets and bundles")
    redis: RedisSettings = RedisSettings()
    train: TrainSettings = TrainSettings()
    batch: BatchSettings = BatchSettings()

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


def _read(path: Path) -> dict[str, Any]:
    """The settings file."""
    try:
        document = yaml.safe_load(path.read_text()) or {}
    except OSError as error:
        raise ConfigError(f"RECSYS_CONFIG names {path}, which cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path} must hold sections of settings, such as 'batch:'")
    redis = document.get("redis")
    if isinstance(redis, dict) and "password" in redis:
        raise ConfigError(f"{path} holds redis.password: set RECSYS_REDIS_PASSWORD instead, secrets are for no file")
    return document


def load_settings(**flags: dict[str, Any]) -> Settings:
    """Settings with the flags that were given (None means: not given) on top.

    Example:
        >>> load_settings(batch={"topk": 5, "seed": None}).batch.topk
        5

    Raises:
        ConfigError: a value is wrong, with the setting's name.
    """
    given = {
        section: {name: value for name, value in values.items() if value is not None}
        for section, values in flags.items()
    }
    try:
        return Settings(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        raise ConfigError(f"setting {explain(error)}") from error
    except SettingsError as error:
        raise ConfigError(f"a RECSYS_ variable cannot be read: {error}") from error
