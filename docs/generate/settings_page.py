"""Tables of all settings, one per section, from the models in ``redis_recsys.config``."""

from __future__ import annotations

import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import typer.main
from annotated_types import Ge, Gt, Le, Lt, MultipleOf
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from verbs import verbs

from redis_recsys.cli.main import app
from redis_recsys.cli.options import PANEL
from redis_recsys.config import Settings

Flags = dict[tuple[str, str], dict[str, list[str]]]
WORDS = {Path: "path", SecretStr: "secret", str: "text", int: "whole number", float: "number", bool: "yes or no"}
BOUNDS = {Ge: "≥ {0.ge}", Gt: "> {0.gt}", Le: "≤ {0.le}", Lt: "< {0.lt}", MultipleOf: "a multiple of {0.multiple_of}"}
HEAD = "| setting | type | default | variable | flag | meaning |\n| --- | --- | --- | --- | --- | --- |"


def _is_section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


TOP = {name: field for name, field in Settings.model_fields.items() if not _is_section(field)}


def settings_page() -> str:
    """Markdown of every section, in the order of the settings file."""
    flags = _flags()
    parts = ["## Top level", "", *_table(_row("", name, field, flags) for name, field in TOP.items())]
    for section, field in Settings.model_fields.items():
        if _is_section(field):
            model: type[BaseModel] = field.annotation  # type: ignore[assignment]
            rows = [_row(section, name, each, flags) for name, each in model.model_fields.items()]
            parts += ["", f"## {section}", "", " ".join((model.__doc__ or "").split()), "", *_table(rows)]
    return "\n".join(parts)


def _table(rows: Iterable[str]) -> list[str]:
    return ['<div class="settings" markdown>', "", HEAD, *rows, "", "</div>"]


def _row(section: str, name: str, field: FieldInfo, flags: Flags) -> str:
    variable = "_".join(part for part in ("RECSYS", section.upper(), name.upper()) if part)
    flag = "; ".join(f"`{option}` of {', '.join(paths)}" for option, paths in flags.get((section, name), {}).items())
    cells = [f"`{name}`", _type(field), _default(field), f"`{variable}`", flag, field.description or ""]
    return "| " + " | ".join(cell.replace("|", "&#124;") for cell in cells) + " |"


def _type(field: FieldInfo) -> str:
    bounds = [BOUNDS[type(each)].format(each) for each in field.metadata if type(each) in BOUNDS]
    return ", ".join([_words(field.annotation), *bounds])


def _words(annotation: Any) -> str:
    """Type in words, such as ``list of whole numbers``."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        *others, last = (_words(each) for each in arguments if each is not type(None))
        return f"{', '.join(others)} or {last}" if others else last
    if origin is list:
        return f"list of {_words(arguments[0])}{'s' if arguments[0] in WORDS else ''}"
    if origin is dict:
        return f"mapping of {_words(arguments[0])} to {_words(arguments[1])}"
    return WORDS[annotation]


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _flags() -> Flags:
    """Section and name of a setting -> option -> verbs that have it; the panel of an option tells its section."""
    flags: Flags = {}
    for path, command in verbs(typer.main.get_command(app)):
        for parameter in command.params:
            section = (getattr(parameter, "rich_help_panel", None) or "").removeprefix(f"{PANEL} ")
            name = parameter.name.removeprefix(f"{section}_")
            if section in Settings.model_fields or parameter.name in TOP:
                options = flags.setdefault((section, name), {})
                options.setdefault(parameter.opts[0], []).append(path)
    return flags
