"""Reader of Ali-CCP, the public Alibaba click and conversion set: its raw files become raw tables.

The set (Tianchi data set 408; its terms forbid redistribution) comes as four files, two for training and two for
testing. A row of ``sample_skeleton_*.csv`` is an impression of an item::

    sample_id,click,conversion,common_feature_index,feature_num,feature_list

and a row of ``common_features_*.csv`` holds the user's features in a session::

    common_feature_index,feature_num,feature_list

A feature list joins features with \\x01; each is ``field_id \\x02 feature_id \\x03 weight``. The files are read in
blocks of lines, so memory holds a block, the map from session to user, and the features of users and items.

The data has no times. The row number stands in for the time, the training file first: the publisher cut the
files by time, so a temporal split keeps later rows for testing, while the order inside a file says little.
A user's or an item's features are those of its first row, hence from the training file if it occurs there.

Source: X. Ma et al., "Entire Space Multi-Task Model", SIGIR 2018.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from ..dataset.schema import Column, Schema
from ..errors import DataError
from ..utils.files import keep_inputs, written_aside
from ..utils.output_kinds import RAW
from ..utils.progress import progress

USER_FIELDS = {
    "user_profile": "121",
    "user_group": "122",
    "user_gender": "124",
    "user_age": "125",
    "user_consumption_2": "127",
    "user_is_occupied": "128",
    "user_geography": "129",
}
USER_LISTS = {
    "user_categories": "109_14",
    "user_shops": "110_14",
    "user_brands": "127_14",
    "user_intentions": "150_14",
}
ITEM_FIELDS = {"item_category": "206", "item_shop": "207", "item_brand": "216"}
LIST_LENGTH = 10  # number of a user's 14-day behaviours that are kept, the heaviest first
BLOCK = 1 << 25  # bytes

_FEATURE = r"[\d_]+\x02\d+\x03[^\x01-\x03,]+"
_FEATURES = rf"{_FEATURE}(?:\x01{_FEATURE})*"
SKELETON = ("sample_id,click,conversion,common_feature_index,feature_num,feature_list", "205", "[^,]+,[01],[01],[^,]+")
COMMON = ("common_feature_index,feature_num,feature_list", "101", "[^,]+")


def read(source: Path, folder: Path) -> None:
    """Write the raw folder of an unpacked Ali-CCP, whole or not at all.

    Rows with a conversion but no click, which the set holds by mistake, are left out.

    Args:
        source: folder that holds the four files, at any depth; the two test files may be missing.
        folder: raw data folder to write.

    Raises:
        DataError: a file is missing, a line is malformed (named by file and line number), or ``folder`` holds them.
    """
    keep_inputs(folder, source)
    parts = ["train"]
    if any(Path(source).rglob("sample_skeleton_test.csv")):
        parts.append("test")
    files = [
        (_find(source, f"common_features_{part}.csv"), _find(source, f"sample_skeleton_{part}.csv")) for part in parts
    ]
    with written_aside(folder, RAW) as raw:
        (raw / "interactions").mkdir()
        users = items = None
        time = 0
        for common, skeleton in files:
            owners, users = _sessions(common, users)
            time, items = _impressions(skeleton, common, owners, items, time, raw / "interactions")
        for name, table in (("users", users), ("items", items)):
            if table is not None:
                table.write_parquet(raw / f"{name}.parquet")
        SCHEMA.save(raw / "schema.yaml")


def _find(source: Path, name: str) -> Path:
    paths = sorted(Path(source).rglob(name))
    if not paths:
        raise DataError(f"no {name} in or below {source}: unpack the Ali-CCP archives there")
    return paths[0]


def _sessions(path: Path, users: pl.DataFrame | None) -> tuple[pl.DataFrame, pl.DataFrame | None]:
    """The user of each session (``index``), and ``users`` with new ones added."""
    owners = []
    for lines in _blocks(path, COMMON):
        table = lines.select(
            index=pl.col("line").str.extract("^([^,]+)"),
            user_id=_one("101"),
            **{name: _one(field) for name, field in USER_FIELDS.items()},
            **{name: _heaviest(field) for name, field in USER_LISTS.items()},
        )
        owners.append(table.select("index", "user_id"))
        users = _with_new(users, table.drop("index"), "user_id")
    return pl.concat(owners).unique("index"), users


def _impressions(
    path: Path, common: Path, owners: pl.DataFrame, items: pl.DataFrame | None, time: int, folder: Path
) -> tuple[int, pl.DataFrame | None]:
    """Write the rows of a skeleton; return the time after the last one, and ``items`` with the new ones added."""
    for lines in _blocks(path, SKELETON):
        fields = pl.col("line").str.splitn(",", 5).struct
        table = lines.select(
            "number",
            item_id=_one("205"),
            click=fields[1].cast(pl.Int8),
            conversion=fields[2].cast(pl.Int8),
            index=fields[3],
            **{name: _one(field) for name, field in ITEM_FIELDS.items()},
        ).join(owners, on="index", how="left", maintain_order="left")
        orphans = table.filter(pl.col("user_id").is_null())
        if len(orphans):
            raise DataError(
                f"{path}, line {orphans['number'][0]}: common_feature_index {orphans['index'][0]!r} is not in {common}"
            )
        table = table.filter((pl.col("click") == 1) | (pl.col("conversion") == 0))
        table = table.with_columns(time=pl.int_range(pl.len(), dtype=pl.Int64) + time)
        table.select("user_id", "item_id", "click", "time").write_parquet(folder / f"part-{time:011}.parquet")
        time += len(table)
        items = _with_new(items, table.select("item_id", *ITEM_FIELDS), "item_id")
    return time, items


def _with_new(entities: pl.DataFrame | None, seen: pl.DataFrame, key: str) -> pl.DataFrame:
    """``entities``, followed by those of ``seen`` that it lacks."""
    seen = seen.unique(key, keep="first", maintain_order=True)
    return (
        seen
        if entities is None
        else pl.concat([entities, seen.join(entities, on=key, how="anti", maintain_order="left")])
    )


def _blocks(path: Path, layout: tuple[str, str, str]) -> Iterator[pl.DataFrame]:
    """Checked lines in blocks, as tables of ``number, line``."""
    columns, key, head = layout
    form = rf"^{head},\d+,{_FEATURES}$"
    start = 1
    with path.open("rb") as file, progress(f"reading {path.name}", path.stat().st_size, in_bytes=True) as advance:
        while block := file.read(BLOCK) + file.readline():
            text = block.decode("utf-8", "replace").replace("\r\n", "\n").removesuffix("\n")
            lines = pl.DataFrame({"line": text.split("\n")}).with_row_index("number", start)
            line = pl.col("line")
            stated = line.str.extract(r",(\d+),[^,]*$").cast(pl.Int64, strict=False)
            right = line.str.contains(form) & (line.str.count_matches("\x03", literal=True) == stated)
            wrong = lines.filter(~(right & _one(key).is_not_null()).fill_null(value=False))
            if len(wrong):
                raise DataError(
                    f"{path}, line {wrong['number'][0]}: not of the form {columns} with feature_num features, "
                    f"field {key} among them; download the file again"
                )
            yield lines
            start += len(lines)
            advance(len(block))
    if start == 1:
        raise DataError(f"{path} is empty: download it again")


def _one(field: str) -> pl.Expr:
    """The feature id of a line in a field; null where it has none."""
    return pl.col("line").str.extract(rf"[,\x01]{field}\x02(\d+)\x03").cast(pl.Int64, strict=False)


def _heaviest(field: str) -> pl.Expr:
    """The feature ids of a field with several, by falling weight."""
    weight = pl.element().str.extract(r"\x03(.+)$").cast(pl.Float64, strict=False)
    heaviest = pl.element().sort_by(weight, descending=True, nulls_last=True, maintain_order=True).head(LIST_LENGTH)
    features = pl.col("line").str.extract_all(rf"[,\x01]{field}\x02\d+\x03[^\x01]+")
    return features.list.eval(heaviest.str.extract(r"\x02(\d+)").cast(pl.Int64, strict=False))


SCHEMA = Schema(
    name="aliccp",
    columns=[
        Column(name="user_id", side="user", kind="categorical", role="id"),
        *(Column(name=name, side="user", kind="categorical") for name in USER_FIELDS),
        *(Column(name=name, side="user", kind="multi-categorical", max_length=LIST_LENGTH) for name in USER_LISTS),
        Column(name="item_id", side="item", kind="categorical", role="id"),
        *(Column(name=name, side="item", kind="categorical") for name in ITEM_FIELDS),
        Column(name="click", side="target", kind="categorical"),
        Column(name="time", side="time", kind="numeric"),
    ],
)
