"""Settings: the YAML file, then variables, then flags; errors name the setting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from redis_recsys.config import load_settings
from redis_recsys.errors import ConfigError


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Function that writes a settings file and points RECSYS_CONFIG to it."""
    path = tmp_path / "recsys.yaml"
    monkeypatch.setenv("RECSYS_CONFIG", str(path))

    def write(content: Any) -> Path:
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return path

    return write


def refused(**flags: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(**flags)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_variables_win_over_the_file_and_flags_over_variables(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config({"batch": {"topk": 1, "seed": 1, "block": 1}})
    monkeypatch.setenv("RECSYS_BATCH_SEED", "2")
    monkeypatch.setenv("RECSYS_BATCH_BLOCK", "2")
    batch = load_settings(batch={"block": 3}).batch
    assert (batch.topk, batch.seed, batch.block) == (1, 2, 3)
    assert batch.candidates == 100


def test_a_flag_that_was_not_given_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_BATCH_TOPK", "7")
    assert load_settings(batch={"topk": None}).batch.topk == 7


def test_a_variable_name_with_underscores_belongs_to_its_section(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_TRAIN_EMBEDDING_DIM", "16")
    monkeypatch.setenv("RECSYS_REDIS_MAX_MEMORY", "1gb")
    monkeypatch.setenv("RECSYS_DATA", "elsewhere")
    settings = load_settings()
    assert (settings.train.embedding_dim, settings.redis.max_memory) == (16, "1gb")
    assert settings.data == Path("elsewhere")


def test_a_password_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_REDIS_PASSWORD", "hush-hush")
    assert "hush-hush" not in repr(load_settings())


def test_an_unknown_field_of_the_file_is_named(config: Any) -> None:
    config({"batch": {"top_k": 5}})
    assert "batch.top_k: is not a known field" in refused()


def test_an_unknown_section_of_the_file_is_named(config: Any) -> None:
    config({"bacth": {"topk": 5}})
    assert "bacth: is not a known field" in refused()


def test_an_unknown_variable_of_a_section_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_BATCH_TOPKK", "5")
    assert "batch.topkk: is not a known field" in refused()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("RECSYS_BATCH_TOPK", "many", "batch.topk: Input should be a valid integer"),
        ("RECSYS_BATCH_TOPK", "0", "batch.topk: Input should be greater than or equal to 1"),
        ("RECSYS_REDIS_PORT", "99999", "redis.port: Input should be less than or equal to 65535"),
        ("RECSYS_TRAIN_DEVICE", "tpu", "train.device: Input should be 'auto', 'cpu' or 'cuda'"),
        ("RECSYS_TRAIN_RESUME", "perhaps", "train.resume: Input should be a valid boolean"),
        ("RECSYS_BATCH", "topk=5", "batch"),
    ],
)
def test_a_wrong_value_is_named_with_its_setting(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(name, value)
    assert message in refused()


def test_a_wrong_value_in_the_file_is_named(config: Any) -> None:
    config({"train": {"epochs": "ten"}})
    assert "train.epochs: Input should be a valid integer" in refused()


@pytest.mark.parametrize("text", ["batch: [", "\t- x", "batch: 5", "- a\n- list", "just text"])
def test_a_file_that_is_not_settings_is_refused(config: Any, text: str) -> None:
    config(text)
    assert refused()


def test_an_empty_file_sets_nothing(config: Any) -> None:
    config("# nothing yet\n")
    assert load_settings().batch.topk == 20


def test_a_missing_file_is_named(config: Any, tmp_path: Path) -> None:
    assert f"RECSYS_CONFIG names {tmp_path / 'recsys.yaml'}, which cannot be read: No such file" in refused()


def test_secrets_come_from_the_environment_only(config: Any) -> None:
    config({"redis": {"host": "db", "password": "hush"}})
    message = refused()
    assert "RECSYS_REDIS_PASSWORD" in message
    assert "hush" not in message
