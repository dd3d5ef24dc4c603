"""Every field of every section of the settings can be set by flag, by variable and in the file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import pytest
import typer
import typer.main
import yaml
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from typer.testing import CliRunner

from redis_recsys.cli import options as mechanism
from redis_recsys.cli.main import app
from redis_recsys.cli.options import PANEL, options
from redis_recsys.config import Settings, load_settings
from redis_recsys.errors import ConfigError

SECTIONS = {name: field.annotation for name, field in Settings.model_fields.items() if name != "data"}
FIELDS = [(section, name) for section, model in SECTIONS.items() for name in model.model_fields]  # type: ignore[union-attr]
SECRETS = {("redis", "password"), ("triton", "token")}

Load = Callable[..., Settings]


def field_of(section: str, name: str) -> FieldInfo:
    model = SECTIONS[section]
    assert isinstance(model, type)
    assert issubclass(model, BaseModel)
    return model.model_fields[name]


def another(section: str, name: str) -> Any:
    """A valid value that is not the default, as a file has it."""
    field = field_of(section, name)
    types = [each for each in get_args(field.annotation) if each is not NoneType]
    kind = types[0] if types and get_origin(field.annotation) not in (Literal, list, dict) else field.annotation
    if get_origin(kind) is Literal:
        return next(choice for choice in get_args(kind) if choice != field.default)
    if get_origin(kind) is dict:
        return {"genre": ["Comedy", 7, True]}
    if get_origin(kind) is list:
        return [8, 4]
    if kind in (int, float):
        return 2 * (field.default or 4) if kind is int else (field.default or 0.5) / 2
    values: dict[Any, Any] = {bool: not field.default, str: "other", Path: "elsewhere", SecretStr: "hush"}
    return values[kind]


def got(settings: Settings, section: str, name: str) -> Any:
    """A setting, as a file has it."""
    value = getattr(getattr(settings, section), name)
    return (
        value.get_secret_value() if isinstance(value, SecretStr) else str(value) if isinstance(value, Path) else value
    )


def words(flag: str, value: Any) -> list[str]:
    """A flag and its value, as one types them."""
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag.removeprefix('--')}"]
    if isinstance(value, list):
        return [word for each in value for word in (flag, f"{each}")]
    return [flag, json.dumps(value) if isinstance(value, dict) else f"{value}"]


def verbs(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every verb of the command line, with the words that call it."""
    for name, each in getattr(command, "commands", {}).items():
        yield from verbs(each, (*path, name))
    if path and not hasattr(command, "commands"):
        yield path, command


VERBS = dict(verbs(typer.main.get_command(app)))


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Flags of each verb that is called; no verb does anything but read them."""
    seen: list[dict[str, Any]] = []

    def stop(**flags: Any) -> Settings:
        seen.append(flags)
        raise typer.Exit

    monkeypatch.setattr(mechanism, "load_settings", stop)
    return seen


@pytest.mark.parametrize(("section", "name"), FIELDS, ids=str)
def test_a_field_is_described_and_set_by_variable_and_file(
    section: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert field_of(section, name).description
    value = another(section, name)
    assert got(load_settings(), section, name) != value
    variable = f"RECSYS_{section.upper()}_{name.upper()}"
    with monkeypatch.context() as environment:
        environment.setenv(variable, value if isinstance(value, str) else json.dumps(value))
        assert got(load_settings(), section, name) == value
    (tmp_path / "recsys.yaml").write_text(yaml.safe_dump({section: {name: value}}))
    monkeypatch.setenv("RECSYS_CONFIG", str(tmp_path / "recsys.yaml"))
    if (section, name) in SECRETS:
        with pytest.raises(ConfigError, match=variable):
            load_settings()
    else:
        assert got(load_settings(), section, name) == value


@pytest.mark.parametrize(("section", "name"), [each for each in FIELDS if each not in SECRETS], ids=str)
def test_a_field_is_set_by_flag(section: str, name: str) -> None:
    probe, seen = typer.Typer(), []

    @probe.command()
    @options(f"{section}.{name}")
    def verb(settings: Settings) -> None:
        seen.append(settings)

    value = another(section, name)
    assert CliRunner().invoke(probe, words(f"--{name.replace('_', '-')}", value), catch_exceptions=False).exit_code == 0
    assert CliRunner().invoke(probe, [], catch_exceptions=False).exit_code == 0
    given, default = seen
    assert got(given, section, name) == value
    assert getattr(default, section) == getattr(load_settings(), section)


def test_every_field_has_its_flag_with_its_help_in_a_verb(load: list[dict[str, Any]]) -> None:
    found = set()
    for path, verb in VERBS.items():
        needed = ["1" for each in verb.params if each.param_type_name == "argument" and each.required]
        for option in verb.params:
            *panel, section = (getattr(option, "rich_help_panel", None) or "").split(" ")
            if panel != PANEL.split(" "):
                continue
            flag = option.opts[0]
            name = flag.removeprefix("--").replace("-", "_")
            name = name if name in SECTIONS[section].model_fields else name.removeprefix(f"{section}_")  # type: ignore[union-attr]
            assert option.help.startswith(str(field_of(section, name).description))
            value = True if option.is_flag else another(section, name)
            done = CliRunner().invoke(app, [*path, *needed, *words(flag, value)], catch_exceptions=False)
            assert done.exit_code == 0, done.output
            given = {key: flags for key, flags in load.pop().items() if isinstance(flags, dict)}
            shown = [(key, each) for key, flags in given.items() for each in flags if flags[each] is not None]
            assert shown == [(section, name)]
            found.add((section, name))
    assert found == set(FIELDS) - SECRETS


def test_a_flag_of_rules_takes_json_alone() -> None:
    probe = typer.Typer()
    probe.command()(options("online.allow")(lambda settings: None))
    with pytest.raises(ConfigError, match=r"setting online\.allow: is not JSON: "):
        CliRunner().invoke(probe, ["--allow", "genre=Comedy"], catch_exceptions=False)


def test_two_flags_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="duplicate parameter name: 'host'"):
        options("redis", "triton.host")(lambda settings: None)
    options("redis", prefixed=["triton.host"])(lambda settings: None)


def test_local_variables_of_a_verb_are_no_settings() -> None:
    for path in Path(mechanism.__file__).parent.glob("*.py"):
        assert "locals()" not in path.read_text(), path
