"""Tables of all settings, one per section, from the models in ``redis_recsys.config``."""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import typer.main
from annotated_types import Ge, Gt, Le, Lt, MultipleOf
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from verbs import verbs

from redis_recsys.cli import app
from redis_recsys.config import Settings

Flags = dict[tuple[str, str], dict[str, list[str]]]
WORDS = {Path: "path", SecretStr: "secret", str: "text", int: "whole number", float: "number", bool: "yes or no"}
BOUNDS = {Ge: "≥ {0.ge}", Gt: "> {0.gt}", Le: "≤ {0.le}", Lt: "< {0.lt}", MultipleOf: "a multiple of {0.multiple_of}"}
HEAD = "| setting | type | default | variable | flag | meaning |\n| --- | --- | --- | --- | --- | --- |"


def settings_page() -> str:
    """Markdown of every section, in the order of the settings file."""
    flags = _flags()
    top = [name for name, field in Settings.model_fields.items() if not _is_section(field)]
    parts = ["## Top level", "", *_table(_row("", name, Settings.model_fields[name], flags) for name in top)]
    for section, field in Settings.model_fields.items():
        if _is_section(field):
            model: type[BaseModel] = field.annotation  # type: ignore[assignment]
            rows = [_row(section, name, each, flags) for name, each in model.model_fields.items()]
            parts += ["", f"## {section}", "", " ".join((model.__doc__ or "").split()), "", *_table(rows)]
    return "\n".join(parts)


def _table(rows: Iterable[str]) -> list[str]:
    return ['<div class="settings" markdown>', "", HEAD, *rows, "", "</div>"]


def _is_section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


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
    """Section and name of a setting -> option -> verbs that have it.

    An option belongs to the setting whose name it has and whose description begins its help text. Where several
    sections have such a setting without a description, it is the section of the verb's other options.
    """
    flags: Flags = {}
    for path, command in verbs(typer.main.get_command(app)):
        found = {
            parameter: [section for section, field in _named(parameter.name) if _is_help_of(parameter, field)]
            for parameter in command.params
            if parameter.param_type_name == "option"
        }
        certain = {sections[0] for sections in found.values() if len(sections) == 1}
        for parameter, sections in found.items():
            for section in sections if len(sections) == 1 else certain.intersection(sections):
                flags.setdefault((section, parameter.name), {}).setdefault(parameter.opts[0], []).append(path)
    return flags


def _named(name: str) -> Iterator[tuple[str, FieldInfo]]:
    """Settings of that name, with their sections."""
    for section, field in Settings.model_fields.items():
        if _is_section(field) and name in field.annotation.model_fields:  # type: ignore[union-attr]
            yield section, field.annotation.model_fields[name]  # type: ignore[union-attr]


def _is_help_of(parameter: Any, field: FieldInfo) -> bool:
    return (parameter.help or "").startswith(field.description or f"{parameter.name}")
