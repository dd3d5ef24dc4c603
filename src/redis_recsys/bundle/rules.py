"""Business rules: items that may be shown, chosen by raw values of their columns.

Rules are evaluated on the raw data, not on the ids that models see: values without an id of their own, values beyond
the length of lists for the models and values that no training row has all count.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..config import OnlineSettings
from ..dataset.schema import Column
from ..errors import ConfigError
from .bundle import Bundle

LOOKED_THROUGH = 50_000  # number of a column's values that a mistyped one is compared with
ALIKE = 0.75  # lowest similarity at which a value is suggested
BOOLEANS = {"true": "1", "false": "0"}  # as numbers, since boolean columns become these in parquet

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rules:
    """The settings' rules applied to the items of a bundle.

    Attributes:
        allowed: mask bool[items + 1] by entity number of the items that may be shown; never the unknown item 0.
        warnings: one line per value that no item has.
    """

    allowed: np.ndarray
    warnings: tuple[str, ...]

    @classmethod
    def of(cls, bundle: Bundle, online: OnlineSettings) -> Rules:
        """Evaluate ``online.allow`` and ``online.deny``.

        Raises:
            ConfigError: a rule names an unusable column, or all rules together leave no item.
        """
        allowed = np.ones(bundle.manifest.items + 1, bool)
        allowed[0] = False
        warnings: list[str] = []
        for rule, values_of in (("allow", online.allow), ("deny", online.deny)):
            for name, chosen in values_of.items():
                matching, unknown = _matching(_values(bundle, rule, name), chosen)
                allowed[1:] &= matching if rule == "allow" else ~matching
                warnings += (f"setting online.{rule} names {word} in {name}, {what}" for word, what in unknown)
        if bundle.manifest.items and not allowed.any():
            because = f": {'; '.join(warnings)}" if warnings else ""
            raise ConfigError(
                f"settings online.allow and online.deny leave none of the {bundle.manifest.items:,} items{because}"
            )
        return cls(allowed, tuple(warnings))

    def warn(self, where: str = "") -> None:
        """Log the warnings; ``where`` comes before each."""
        for warning in self.warnings:
            log.warning("%s%s", where, warning)


def _values(bundle: Bundle, rule: str, name: str) -> pa.ChunkedArray:
    """Raw values of a column, one per item."""
    columns: dict[str, Column] = {c.name: c for c in bundle.schema.columns if c.side == "item"}
    usable = [c.name for c in bundle.schema.categorical("item")]
    if name not in usable:
        what = "which items do not have"
        if name in columns:
            what = f"which holds {'numbers' if columns[name].kind == 'numeric' else 'texts for people'}"
        raise ConfigError(f"setting online.{rule} names {name}, {what}: name one of {', '.join(usable)}")
    if columns[name].role == "id":
        return pa.chunked_array([pa.array(bundle.items.raw_ids)])
    values = bundle.item_values(name)
    if values is None:
        raise ConfigError(
            f"setting online.{rule} names {name}, of which the bundle has no raw values: make the data set and train "
            f"again, or import again with a column {name}_raw"
        )
    return values


def _matching(values: pa.ChunkedArray, chosen: Sequence[bool | int | str]) -> tuple[np.ndarray, list[tuple[str, str]]]:
    """Mask bool[items] of the items with one of the chosen values, and remarks on chosen values that no item has."""
    column = values.combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # without any chunk
        column = pa.array([], column.type)
    lists = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    flat = (column.flatten() if lists else column).dictionary_encode()
    in_data = [_text(value) for value in flat.dictionary.to_pylist()]  # several may be the same, such as True and true
    whole = pa.types.is_integer(flat.dictionary.type)
    texts = [BOOLEANS.get(_text(value), _text(value)) if whole else _text(value) for value in chosen]
    chosen_texts = set(texts)
    ids = pa.array([number for number, text in enumerate(in_data) if text in chosen_texts], pa.int32())
    matching = pc.is_in(flat.indices, ids).to_numpy(zero_copy_only=False)
    if lists:
        matching_items = np.zeros(len(column), bool)
        matching_items[pc.list_parent_indices(column).to_numpy()[matching]] = True
        matching = matching_items
    distinct = set(in_data)
    missing = [(value, text) for value, text in zip(chosen, texts, strict=True) if text not in distinct]
    return matching, [(repr(value), _remark(in_data, text)) for value, text in missing]


def _text(value: object) -> str:
    """Text by which raw values and those of the settings are compared: 7 and "7", True and "true" are the same."""
    text = str(value)
    return text.lower() if text.lower() in BOOLEANS else text


def _remark(in_data: Sequence[str], text: str) -> str:
    """Remark on a value that is not in the data, with similar values that are."""
    names = {value.casefold().strip(): value for value in in_data[:LOOKED_THROUGH]}
    close = [repr(names[name]) for name in get_close_matches(text.casefold().strip(), names, cutoff=ALIKE)]
    return "which no item has" + (f": did you mean {' or '.join(close)}?" if close else "")
