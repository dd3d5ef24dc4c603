"""Options that come from the settings models: one decorator, which gives a verb flags for settings and their values.

pydantic-settings has a command line of its own; it would take the place of Typer's verbs, help and ids.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from ..config import Settings, load_settings
from ..errors import ConfigError

# What a Triton of the project's own needs, and what its clients need.
TRITON_SERVER = (
    "triton.address", "triton.grpc_port", "triton.http_port", "triton.metrics_port", "triton.environment",
    "triton.repository", "triton.tls_certificate", "triton.tls_key",
)  # fmt: skip
TRITON_CLIENT = (
    "triton.host", "triton.grpc_port", "triton.repository", "triton.tls", "triton.tls_ca", "triton.timeout",
)  # fmt: skip
PANEL = "Settings of section"  # in the help of a verb, before the section's name
INJECTED = "settings"  # the parameter through which a verb takes its settings


@dataclass(frozen=True)
class Setting:
    """A setting as an option of a verb.

    Attributes:
        section: name of the section; None for a setting that stands outside of all sections.
        name: name of the field.
        field: its description, type and default.
        parameter: name of the verb's parameter, which is the flag with underscores.
    """

    section: str | None
    name: str
    field: FieldInfo
    parameter: str

    @property
    def takes_json(self) -> bool:
        """Whether the flag's value is a JSON document, since no simpler text can express it."""
        return get_origin(self.field.annotation) is dict

    def option(self) -> inspect.Parameter:
        """The keyword parameter that Typer turns into a flag; None stands for: not given."""
        flag = self.parameter.replace("_", "-")
        default = "" if self.field.default in (None, {}) else f" (default: {self.field.default})"
        info = typer.Option(
            f"--{flag}/--no-{flag}" if self.field.annotation is bool else f"--{flag}",
            help=f"{self.field.description}{default}",
            show_default=False,
            metavar="JSON" if self.takes_json else None,
            rich_help_panel=f"{PANEL} {self.section}" if self.section else None,
        )
        annotation: Any = Annotated[_typed(self.field.annotation) | None, info]
        return inspect.Parameter(self.parameter, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)

    def value(self, given: Any) -> Any:
        """The value that was given on the command line, as the settings models read it.

        Raises:
            ConfigError: it has to be JSON and is not.
        """
        if given is None or not self.takes_json:
            return given
        try:
            return json.loads(given)
        except ValueError as error:
            raise ConfigError(f"setting {self.section}.{self.name}: is not JSON: {error}") from None


def options(*names: str, prefixed: Sequence[str] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a verb flags for settings, and its ``settings`` parameter their values: file, variables, then flags.

    Args:
        names: ``section`` for all fields of a section, or ``section.field``; ``data`` for the setting of that name.
            Secrets get no flag, they are for the environment only. The flag is the field's name.
        prefixed: the same, for flags that begin with the section's name, such as ``--redis-host``.

    Example:
        >>> @options("batch", "redis.host")
        ... def verb(settings: Settings, bundle: Path) -> None: ...
    """
    chosen = [setting for name in names for setting in _named(name)]
    chosen += [setting for name in prefixed for setting in _named(name, prefix=True)]

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(verb, eval_str=True).parameters
        parameters = [parameter for name, parameter in own.items() if name != INJECTED]
        parameters += [setting.option() for setting in chosen]

        @functools.wraps(verb)
        def run(**values: Any) -> None:
            flags: dict[str, Any] = {}
            for setting in chosen:
                value = setting.value(values.pop(setting.parameter))
                if setting.section is None:
                    flags[setting.name] = value
                else:
                    flags.setdefault(setting.section, {})[setting.name] = value
            verb(**{INJECTED: load_settings(**flags)}, **values)

        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # two of one name are refused
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def _named(name: str, prefix: bool = False) -> list[Setting]:
    """The settings that ``section``, ``section.field`` or the name of a setting outside of all sections means."""
    section, _, only = name.partition(".")
    field = Settings.model_fields[section]
    model = field.annotation
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return [Setting(None, section, field, section)]
    fields = {only: model.model_fields[only]} if only else model.model_fields
    return [
        Setting(section, each, field, f"{section}_{each}" if prefix else each)
        for each, field in fields.items()
        if _plain(field.annotation) is not SecretStr
    ]


def _plain(annotation: Any) -> Any:
    """A type without ``| None``."""
    if get_origin(annotation) in (Union, UnionType):
        (annotation,) = (each for each in get_args(annotation) if each is not NoneType)
    return annotation


def _typed(annotation: Any) -> Any:
    """The type that the command line reads; choices and JSON are texts, which the settings models then check."""
    plain = _plain(annotation)
    return str if get_origin(plain) in (Literal, dict) else plain
