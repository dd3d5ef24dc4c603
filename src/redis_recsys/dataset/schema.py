"""Meaning of the columns: the contract between raw data, models, the feature store and serving.

A schema is a list of columns. Each has a *side* (user, item, target, time), a *kind*, and, once the data has
been encoded, a cardinality. Id 0 always means "unknown or padding", so an unseen value never fails.

The *packed row* of an entity is the categorical ids as int32 and the numerics as float32, both in schema order;
a multi-categorical column takes ``max_length`` slots padded with 0.
"""

from __future__ import annotations

import codecs
import unicodedata
from pathlib import Path
from typing import Annotated, Literal

import yaml
from annotated_types import MinLen
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ..errors import SchemaError, explain_validation

Side = Literal["user", "item"]
SIDES: tuple[Side, Side] = ("user", "item")
IdKind = Literal["int", "str"]  # type of raw ids
Unit = Literal["s", "ms", "us", "ns"]
TICKS: dict[Unit, int] = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}  # units per second
SCHEMA_VERSION = 1
RAW_ID = "raw_id"  # beside the features in tables of entities and in attributes of vectors
INTERNAL = "__recsys_"  # prefix of columns that are added while encoding


class TextOptions(BaseModel):
    """Format of the text files of one table."""

    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)

    separator: str | None = Field(None, description="character between fields; default: found in the header")
    encoding: str = Field(
        "utf-8", description="encoding, such as cp1252 or latin-1; UTF-16 is known by its first bytes"
    )
    decimal: Literal[".", ","] = Field(".", description="decimal mark of numbers")
    quote: str = Field('"', description="character around fields that hold a separator; empty: there is none")
    nulls: list[str] = Field([], description="texts that mean a missing value, besides the empty one")
    names: list[str] | None = Field(None, description="names of the columns, for files without a header line")

    @field_validator("separator", "quote")
    @classmethod
    def _one_byte(cls, mark: str | None) -> str | None:
        if mark and not (len(mark) == 1 and mark.isascii()):
            raise ValueError(f'{mark!r} is not one ASCII character (write a tab as "\\t" in double quotes)')
        return mark

    @field_validator("separator")
    @classmethod
    def _not_empty(cls, separator: str | None) -> str | None:
        if separator == "":
            raise ValueError("is empty: give one character, or leave it out")
        return separator

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, encoding: str) -> str:
        try:
            "".encode(encoding)  # codecs that are no encodings of text, such as base64, fail here
            return codecs.lookup(encoding).name
        except LookupError:
            raise ValueError(f"{encoding!r} is not a known encoding, such as cp1252, latin-1 or utf-16") from None

    @field_validator("nulls", mode="before")
    @classmethod
    def _quoted(cls, nulls: object) -> object:
        if isinstance(nulls, list) and any(word is None or isinstance(word, bool) for word in nulls):
            raise ValueError("quote each word, such as 'NULL': without quotes YAML reads it as something else")
        return nulls


class SourceOptions(TextOptions):
    """Format of the text files, and where those of users and items differ from the interactions.

    Tables of users and items inherit every option but ``names``.
    """

    users: TextOptions | None = None
    items: TextOptions | None = None

    def of(self, table: str) -> TextOptions:
        """The options of ``interactions``, ``users`` or ``items``."""
        if table == "interactions":
            return self
        own: TextOptions = getattr(self, table) or TextOptions()
        inherited = self.model_dump(exclude_unset=True, exclude={"users", "items", "names"})
        return TextOptions(**inherited | own.model_dump(exclude_unset=True))


class Column(BaseModel):
    """One column of the data.

    Roles: ``id`` marks the raw user or item id, ``history`` the user's most recent items (computed here, not read;
    it shares the item id's vocabulary), ``oracle`` the true click probability that synthetic data carries,
    ``label`` a text about an entity that people read and models do not.
    """

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    name: str
    read_from: str | Annotated[list[str], MinLen(1)] | None = Field(
        None,
        alias="from",
        description="name in the files, or several, of which the first that a file has is read",
    )
    side: Literal["user", "item", "target", "time"]
    kind: Literal["categorical", "numeric", "multi-categorical", "text"]
    role: Literal["id", "history", "oracle", "label"] | None = None
    cardinality: int | None = Field(None, ge=1, description="number of ids, the unknown id 0 included; set by the ETL")
    max_length: int | None = Field(
        None, ge=1, description="largest number of values kept of a multi-categorical column"
    )
    separator: str | None = Field(None, description="text between the values of a multi-categorical column")
    min_frequency: int = Field(1, ge=1, description="values seen in fewer training rows become unknown (0)")
    max_vocabulary: int | None = Field(None, ge=1, description="only so many of the most frequent values get an id")
    unit: Unit | None = Field(None, description="unit of times since 1970; without one, times are steps: only an order")
    positive_from: float | None = Field(None, description="lowest target value that counts as a click")
    mean: float | None = Field(None, description="mean of a numeric feature in the training data; set by the ETL")
    std: float | None = Field(None, gt=0, description="its standard deviation in the training data; set by the ETL")

    @field_validator("name")
    @classmethod
    def _usable(cls, name: str) -> str:
        advice = "give it another name here, and say 'from' which column of the files it is read"
        if not name.strip():
            raise ValueError(f"a column needs a name: {advice}")
        if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name):
            raise ValueError(f"column {name!r}: a name holds no line breaks or control characters: {advice}")
        if name.startswith(INTERNAL):
            raise ValueError(f"column {name!r}: names that begin with {INTERNAL} are reserved: {advice}")
        if name == "*" or (name.startswith("^") and name.endswith("$")):  # Polars would take several columns for it
            raise ValueError(f"column {name!r}: that is a pattern, not a name: {advice}")
        return name

    @model_validator(mode="after")
    def _consistent(self) -> Column:
        if self.name == RAW_ID and self.side in ("user", "item"):
            raise ValueError(
                f"column {self.name!r}: the name is reserved for the raw id in tables of users and items: "
                "give it another name here, and say 'from' which column of the files it is read"
            )
        if self.kind == "multi-categorical" and self.max_length is None:
            raise ValueError(f"column {self.name!r} is multi-categorical and needs a max_length")
        if self.kind != "multi-categorical" and (self.max_length or self.separator):
            raise ValueError(f"column {self.name!r}: max_length and separator belong to multi-categorical columns")
        if self.role == "history" and (self.side, self.kind) != ("user", "multi-categorical"):
            raise ValueError(f"column {self.name!r}: the history role needs side user and kind multi-categorical")
        if self.role == "id" and (self.side not in ("user", "item") or self.kind != "categorical"):
            raise ValueError(f"column {self.name!r}: the id role needs side user or item and kind categorical")
        if (self.role == "label") != (self.kind == "text"):
            raise ValueError(f"column {self.name!r}: kind text and role label go together")
        if self.unit is not None and self.side != "time":
            raise ValueError(f"column {self.name!r}: unit belongs to the time column")
        if self.role == "history" and self.read_from is not None:
            raise ValueError(f"column {self.name!r}: the history is computed, it is not read 'from' a column")
        return self

    @property
    def names_in_files(self) -> list[str]:
        """Names that the column may have in people's files, in the order in which they are tried."""
        if self.read_from is None:
            return [self.name]
        return [self.read_from] if isinstance(self.read_from, str) else self.read_from

    @property
    def ticks_per_day(self) -> int | None:
        """Length of a day in the unit of a time column; None where its values are steps."""
        return None if self.unit is None else 86_400 * TICKS[self.unit]

    @property
    def width(self) -> int:
        """Slots of the packed row that this column takes."""
        return self.max_length or 1


class Schema(BaseModel):
    """A named, versioned list of columns with exactly one user id and one item id."""

    model_config = ConfigDict(extra="forbid")

    version: int = SCHEMA_VERSION
    name: str
    source: SourceOptions = Field(SourceOptions(), description="format of people's files; of no use later")
    columns: list[Column]

    @field_validator("version")
    @classmethod
    def _known_version(cls, version: int) -> int:
        if version != SCHEMA_VERSION:
            raise ValueError(f"version {version} is not {SCHEMA_VERSION}, the one this code reads")
        return version

    @model_validator(mode="after")
    def _complete(self) -> Schema:
        names = [column.name for column in self.columns]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ValueError(f"columns named twice: {', '.join(doubled)}")
        for side in ("user", "item"):
            if sum(c.side == side and c.role == "id" for c in self.columns) != 1:
                raise ValueError(f"exactly one column must have side {side} and role id")
        for what, count in (
            ("time", sum(c.side == "time" for c in self.columns)),
            ("target (without a role)", sum(c.side == "target" and c.role is None for c in self.columns)),
            ("oracle", sum(c.role == "oracle" for c in self.columns)),
            ("history", sum(c.role == "history" for c in self.columns)),
        ):
            if count > 1:
                raise ValueError(f"at most one {what} column is allowed, found {count}")
        return self

    @classmethod
    def load(cls, path: Path) -> Schema:
        """Read ``schema.yaml``.

        Raises:
            SchemaError: the file is missing or not YAML, or a field is unknown, missing or wrong.
        """
        try:
            return cls.model_validate(yaml.safe_load(Path(path).read_text()))
        except FileNotFoundError:
            raise SchemaError(f"no schema at {path}: describe the columns there (see docs/your-own-data.md)") from None
        except OSError as error:
            raise SchemaError(f"{path} cannot be read: {error.strerror}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise SchemaError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
        except ValidationError as error:
            raise SchemaError(f"{path}: {explain_validation(error)}") from error

    def save(self, path: Path) -> None:
        """Write the schema as YAML, without values that are at their default."""
        path.write_text(
            yaml.safe_dump(
                self.model_dump(exclude_defaults=True, by_alias=True) | {"version": self.version}, sort_keys=False
            )
        )

    def id_column(self, side: Side) -> Column:
        """The column with the raw ids of users or items."""
        return next(c for c in self.columns if c.side == side and c.role == "id")

    def features(self, side: Side) -> list[Column]:
        """The columns of a side that models see, in schema order; the id column is one of them."""
        return [c for c in self.columns if c.side == side and c.kind != "text"]

    def categorical(self, side: Side) -> list[Column]:
        """Categorical and multi-categorical features of a side, in packed order."""
        return [c for c in self.features(side) if c.kind != "numeric"]

    def numeric(self, side: Side) -> list[Column]:
        """Numeric features of a side, in packed order."""
        return [c for c in self.features(side) if c.kind == "numeric"]

    def labels(self, side: Side) -> list[Column]:
        """Texts about the entities of a side, such as a title."""
        return [c for c in self.columns if c.side == side and c.role == "label"]

    def categorical_width(self, side: Side) -> int:
        """Number of int32 slots of a packed row."""
        return sum(c.width for c in self.categorical(side))

    def widths(self, side: Side) -> tuple[int, int]:
        """Numbers of int32 and of float32 slots of a packed row."""
        return self.categorical_width(side), len(self.numeric(side))

    def slots(self, column: Column) -> slice:
        """Position of a categorical column in the packed row of its side."""
        before = self.categorical(column.side)  # type: ignore[arg-type]  # categorical columns are of users or items
        start = sum(c.width for c in before[: before.index(column)])
        return slice(start, start + column.width)

    def vocabulary_column(self, column: Column) -> Column:
        """Column whose vocabulary ``column`` uses: itself, or the item id for the history."""
        return self.id_column("item") if column.role == "history" else column

    def _one(self, **having: object) -> Column | None:
        return next((c for c in self.columns if all(getattr(c, k) == v for k, v in having.items())), None)

    @property
    def target(self) -> Column | None:
        """The click column; None when every row is a positive interaction (implicit feedback)."""
        return self._one(side="target", role=None)

    @property
    def time(self) -> Column | None:
        """The time column; None when rows carry no time."""
        return self._one(side="time")

    @property
    def oracle(self) -> Column | None:
        """The true click probability of synthetic rows."""
        return self._one(role="oracle")

    @property
    def history(self) -> Column | None:
        """The user's most recent items, as a user feature."""
        return self._one(role="history")
