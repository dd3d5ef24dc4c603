"""An export of the public notebooks becomes a bundle that recommends the same, or is refused with the reason."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import polars as pl
import pytest
import redis

from redis_recsys.bundle.bundle import Bundle
from redis_recsys.bundle.models import Ranker, Tower
from redis_recsys.bundle.rules import Rules
from redis_recsys.config import MerlinSettings, OnlineSettings
from redis_recsys.dataset.entities import ITEM_VALUES, read_entities
from redis_recsys.errors import BundleError, ConfigError
from redis_recsys.trainers.merlin.categories import Categories
from redis_recsys.trainers.merlin.conversion import unit
from redis_recsys.trainers.merlin.importing import PIECES, assemble
from redis_recsys.trainers.merlin.worker_process import Worker
from tests.support.commands import Outcome
from tests.support.paths import SUPPORT
from tests.support.planted import MERLIN_ENVIRONMENT, Trained

Recsys = Callable[..., Outcome]
CANDIDATES, K = 20, 8
OOV = 2  # NVTabular's id of a value unseen in training


@pytest.fixture(scope="session")
def converted(by_merlin: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export's models, converted by the worker."""
    folder = tmp_path_factory.mktemp("converted")
    assert by_merlin.export is not None
    settings = MerlinSettings(environment=MERLIN_ENVIRONMENT, log=folder / "merlin.log")
    with Worker(settings, "convert", by_merlin.export, folder) as worker:
        assert [event["step"] for event in worker if event["event"] == "end"][1:] == [
            "convert query_tower", "convert candidate_tower", "convert dlrm"
        ]  # fmt: skip
    return folder


@pytest.fixture
def export(by_merlin: Trained, tmp_path: Path) -> Path:
    """A copy of the export, to be damaged."""
    assert by_merlin.export is not None
    return Path(shutil.copytree(by_merlin.export, tmp_path / "export"))


@pytest.fixture(scope="session")
def imported(by_merlin: Trained, converted: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The export as a bundle."""
    assert by_merlin.export is not None
    target = tmp_path_factory.mktemp("imported") / "bundle"
    assemble(by_merlin.export, converted, target)
    return Bundle(target)


@pytest.fixture(scope="session")
def expected(by_merlin: Trained, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """TensorFlow's recommendations by raw user id: items and scores."""
    out = tmp_path_factory.mktemp("reference") / "recommendations.json"
    script = SUPPORT / "reference.py"
    words = [script, by_merlin.export, CANDIDATES, K, out, "item", "user_raw", "item_raw"]
    command = [MERLIN_ENVIRONMENT / "bin" / "python", *words]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    found: dict[str, Any] = json.loads(out.read_text())
    return found


# The same recommendations


class Bomb:
    """Object that writes a file when unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (Path(self.path),)


@pytest.mark.usefixtures("use_server", "use_merlin")
def test_an_imported_model_recommends_what_tensorflow_does_and_no_pickled_workflow_is_loaded(
    recsys: Recsys, export: Path, expected: dict[str, Any], client: redis.Redis, tmp_path: Path
) -> None:
    for path in export.rglob("*.pkl"):
        path.write_bytes(pickle.dumps(Bomb(str(tmp_path / "exploded"))))
    assert list(export.rglob("*.pkl"))
    ended = recsys("import", "merlin", export, "--out", "bundle")
    assert f"{len(expected):,} users" in ended.out
    assert not (tmp_path / "exploded").exists()
    recsys("batch", "bundle", "--candidates", CANDIDATES, "--topk", K)
    found = json.loads(recsys("get", *expected, "--json").out)
    assert len(found) == len(expected) > 150
    for each, (items, scores) in zip(found, expected.values(), strict=True):
        assert each["source"] == "model"
        np.testing.assert_allclose(each["scores"], scores, atol=1e-5)
        same_order = np.array(list(map(str, each["items"]))) == np.array(items)
        ties = np.isclose(np.diff(scores, prepend=2), 0, atol=1e-5) | np.isclose(
            np.diff(scores, append=-1), 0, atol=1e-5
        )
        assert (same_order | ties).all()
    assert json.loads(recsys("deploy", "bundle", "--json").out)["users"] == len(expected)


def test_it_is_the_same_without_a_candidate_tower(
    export: Path, converted: Path, imported: Bundle, tmp_path: Path
) -> None:
    shutil.rmtree(export / "candidate_tower")
    models = shutil.copytree(converted, tmp_path / "models")
    (models / "candidate_tower.onnx").unlink()
    assemble(export, models, tmp_path / "bundle")
    bundle = Bundle(tmp_path / "bundle")
    np.testing.assert_allclose(bundle.item_embeddings, imported.item_embeddings, atol=1e-5)
    items = bundle.items
    tower = Tower(bundle.path / "item_tower.onnx")
    np.testing.assert_array_equal(tower.embed(items.categorical, items.numeric), bundle.item_embeddings)
    unknown = tower.embed(0 * items.categorical[:1], items.numeric[:1])
    assert np.linalg.norm(unknown) == pytest.approx(1, abs=1e-5)


def test_the_tables_hold_what_was_exported(imported: Bundle, by_merlin: Trained) -> None:
    assert by_merlin.export is not None
    frame = pl.read_parquet(by_merlin.export / "item_features.parquet")
    assert sorted(imported.items.raw_ids.tolist()) == sorted(frame["item_raw"])
    assert imported.manifest.trainer == "merlin"
    assert [column.name for column in imported.schema.categorical("item")] == ["item", "genres_1", "genres_2"]
    users = read_entities(imported.path / "user_features.parquet", imported.schema, "user")
    ages = pl.read_parquet(by_merlin.export / "user_features.parquet").select("user_raw", "age")
    np.testing.assert_allclose(
        users.numeric[:, 0], [dict(ages.iter_rows())[raw] for raw in users.raw_ids.tolist()], rtol=1e-6
    )
    popular = imported.popularity
    clicks = by_merlin.dataset.rows("train")
    for item, count in zip(popular.items[:5], popular.scores[:5], strict=True):
        raw = imported.items.raw_ids[item - 1]
        number = by_merlin.dataset.items.raw_ids.tolist().index(raw) + 1
        assert count == (clicks.item == number).sum()  # NVTabular counts rows, clicked or not


def test_a_value_stands_for_the_same_in_the_vocabulary(imported: Bundle, by_merlin: Trained) -> None:
    values = pl.read_parquet(imported.path / "vocab" / "group.parquet")["value"].to_list()
    users = read_entities(imported.path / "user_features.parquet", imported.schema, "user")
    slot = imported.schema.slots(next(c for c in imported.schema.columns if c.name == "group")).start
    groups = [str(values[number - 1]) for number in users.categorical[:, slot].tolist()]
    assert groups == [str((raw - 1) % 4) for raw in users.raw_ids.tolist()]


def test_raw_values_of_items_are_kept_for_business_rules_where_they_can_be_told(
    imported: Bundle, by_merlin: Trained, export: Path, converted: Path, tmp_path: Path
) -> None:
    lists = pl.read_parquet(by_merlin.dataset.path / ITEM_VALUES)["genres"].to_list()
    genres = dict(zip(by_merlin.dataset.items.raw_ids.tolist(), lists, strict=True))
    expected = [(genres[raw] or [None])[0] for raw in imported.items.raw_ids.tolist()]
    first = imported.item_values("genres_1")
    assert first is not None
    assert first.to_pylist() == expected
    assert not Rules.of(imported, OnlineSettings(deny={"genres_1": ["g3"]})).warnings
    # one item's genre is out of vocabulary: it might be any value
    onnx = Path(shutil.copytree(converted, tmp_path / "onnx", ignore=shutil.ignore_patterns("candidate_tower*")))
    path = export / "item_features.parquet"
    frame = pl.read_parquet(path)
    lost = frame.with_columns(pl.when(pl.int_range(pl.len()) == 3).then(OOV).otherwise("genres_1").alias("genres_1"))
    lost.write_parquet(path)
    assemble(export, onnx, tmp_path / "lost")
    assert Bundle(tmp_path / "lost").item_values("genres_1") is None
    with pytest.raises(ConfigError, match=r"genres_1, .* no raw values: .* a column genres_1_raw"):
        Rules.of(Bundle(tmp_path / "lost"), OnlineSettings(deny={"genres_1": ["g3"]}))
    lost.with_columns(genres_1_raw=pl.format("x{}", "item_raw")).write_parquet(path)
    assemble(export, onnx, tmp_path / "told")
    told = Bundle(tmp_path / "told")
    values = told.item_values("genres_1")
    assert values is not None
    assert values.to_pylist() == [f"x{raw}" for raw in told.items.raw_ids.tolist()]


def test_the_ranker_computes_the_user_side_once(imported: Bundle) -> None:
    model = onnx.shape_inference.infer_shapes(onnx.load(imported.path / "ranker.onnx"))
    gathers = [node for node in model.graph.node if node.op_type == "Gather" and node.name.startswith("user/")]
    assert gathers
    repeated = [node for node in model.graph.node if node.name.startswith("pair/") and node.op_type == "Gather"]
    assert not {name for node in repeated for name in node.input} & {name for node in gathers for name in node.input}
    users = read_entities(imported.path / "user_features.parquet", imported.schema, "user").rows(slice(0, 7))
    items = imported.items
    everything = [np.repeat(part[None], 7, axis=0) for part in (items.categorical, items.numeric)]
    ranker = Ranker(imported.path / "ranker.onnx")
    together = ranker(users.categorical, users.numeric, *everything)
    for n in range(7):
        one = ranker(users.categorical[n : n + 1], users.numeric[n : n + 1], *(part[:1] for part in everything))
        np.testing.assert_allclose(one[0], together[n], atol=1e-6)


def test_unit_vectors_keep_the_order_of_inner_products_of_any_length() -> None:
    random = np.random.default_rng(0)
    users, items = random.standard_normal((50, 8)), random.standard_normal((200, 8)) * random.uniform(0.1, 3, (200, 1))
    lengths = np.linalg.norm(items, axis=1)
    a, b = unit(users, "user", 1.05 * lengths.max()), unit(items, "item", 1.05 * lengths.max())
    for vectors in (a, b):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    inner = users @ items.T
    np.testing.assert_allclose(
        a @ b.T, inner / np.linalg.norm(users, axis=1, keepdims=True) / (1.05 * lengths.max()), atol=1e-6
    )


# NVTabular's files


def test_categories_of_today_know_padding_null_and_out_of_vocabulary(tmp_path: Path) -> None:
    pl.DataFrame({"c": [7.0, 3.0], "c_size": [5, 4]}).write_parquet(tmp_path / "unique.c.parquet")
    rows = [("pad", 0, 1, 0), ("null", 1, 1, 2), ("oov", 2, 1, 0), ("unique", 3, 2, 9)]
    names = ["kind", "offset", "num_indices", "num_observed"]
    pl.DataFrame(rows, schema=names, orient="row").write_parquet(tmp_path / "meta.c.parquet")
    categories = Categories.read(tmp_path, "c")
    assert categories.values.to_list() == [7, 3]
    assert categories.ids(pl.Series([3, 7, 8])).tolist() == [4, 3, 2]
    assert (categories.missing, categories.size) == (1, 5)


def test_categories_from_before_2023_6_begin_at_1_with_0_for_the_rest(tmp_path: Path) -> None:
    frame = pl.DataFrame({"c": [None, "x", "y"], "c_size": [0, 5, 4]})
    frame.write_parquet(tmp_path / "unique.c.parquet")
    categories = Categories.read(tmp_path, "c")
    assert categories.values.to_list() == ["x", "y"]
    assert categories.ids(pl.Series(["y", "z", None])).tolist() == [2, 0, 0]
    assert (categories.missing, categories.size) == (0, 3)
    assert categories.counts is not None
    assert categories.counts.tolist() == [5, 4]


# Refusals


@pytest.mark.parametrize("piece", PIECES)
def test_a_missing_piece_is_named_with_the_way_to_make_it(recsys: Recsys, export: Path, piece: str) -> None:
    path = export / piece
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    error = recsys("import", "merlin", export, "--out", "bundle").error()
    assert f"has no {piece}: {PIECES[piece]}" in error
    assert not Path("bundle").exists()


def test_without_an_environment_one_line_says_how_to_make_it(
    recsys: Recsys, export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECSYS_MERLIN_ENVIRONMENT", "nowhere")
    assert "make it with 'recsys setup merlin'" in recsys("import", "merlin", export, "--out", "bundle").error()
    assert "make it with 'recsys setup merlin'" in recsys("export", "merlin-systems", export).error()


@pytest.mark.usefixtures("use_merlin")
def test_a_saved_model_that_is_none_is_named(recsys: Recsys, export: Path, tmp_path: Path) -> None:
    (export / "dlrm" / "saved_model.pb").write_bytes(b"nothing")
    error = recsys("import", "merlin", export, "--out", "bundle").error()
    assert "Merlin convert failed" in error
    assert "dlrm" in error
    assert {path.name for path in tmp_path.iterdir()} == {"export", "data"}


def alter(path: Path, change: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
    change(pl.read_parquet(path)).write_parquet(path)


def set_first(name: str, value: Any) -> Callable[[pl.DataFrame], pl.DataFrame]:
    def change(frame: pl.DataFrame) -> pl.DataFrame:
        first = pl.int_range(pl.len()) == 0
        return frame.with_columns(pl.when(first).then(pl.lit(value)).otherwise(pl.col(name)).alias(name))

    return change


USERS, ITEMS, VECTORS = "user_features.parquet", "item_features.parquet", "item_embeddings.parquet"


@pytest.mark.parametrize(
    ("file", "change", "reason"),
    [
        (USERS, lambda f: f.head(0), "user_features.parquet holds no rows"),
        (USERS, lambda f: f.drop("user_raw"), "needs one id column with its raw ids beside it"),
        (USERS, set_first("group", None), "column 'group' of .* has 1 nulls"),
        (USERS, set_first("group", 99), "'group' of user_features.parquet has the id 99, but .* ids up to 6"),
        (USERS, lambda f: f.with_columns(group=pl.lit("x")), "column 'group' of .* is String: encoded"),
        (USERS, lambda f: f.with_columns(user=pl.col("user").cast(pl.Float64)), "column 'user' .* is not an integer"),
        (USERS, lambda f: pl.concat([f, f.head(1)]), "the raw id .* more than once"),
        (USERS, lambda f: f.with_columns(user_raw=pl.col("user_raw").shift(1, fill_value=999)), "of different runs"),
        (ITEMS, lambda f: f.with_columns(age=pl.lit(0.5)), "both feature tables have age"),
        (VECTORS, lambda f: f.drop("item"), "item_embeddings.parquet has no item"),
        (VECTORS, lambda f: f.drop("15"), "vectors of 15 numbers, the query tower has 16"),
        (VECTORS, lambda f: f.slice(2), "lacks 2 items of item_features.parquet"),
        (VECTORS, lambda f: f.with_columns(pl.col("0") + 1), "candidate_tower computes: .* of different runs"),
    ],
)  # fmt: skip
def test_pieces_that_do_not_fit_together_are_named(
    export: Path, converted: Path, tmp_path: Path, file: str, change: Any, reason: str
) -> None:
    alter(export / file, change)
    with pytest.raises(BundleError, match=reason) as caught:
        assemble(export, converted, tmp_path / "bundle")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (USERS, "not a readable parquet file"),
        (VECTORS, "not a readable parquet file"),
        ("categories/unique.group.parquet", "not what NVTabular's Categorify writes"),
    ],
)
def test_truncated_files_are_named(export: Path, converted: Path, tmp_path: Path, file: str, reason: str) -> None:
    (export / file).write_bytes((export / file).read_bytes()[:60])
    with pytest.raises(BundleError, match=reason):
        assemble(export, converted, tmp_path / "bundle")


def test_missing_categories_of_a_column_are_named(export: Path, converted: Path, tmp_path: Path) -> None:
    (export / "categories" / "unique.group.parquet").unlink()
    with pytest.raises(BundleError, match=r"unique.group.parquet is missing: copy the folder 'categories'"):
        assemble(export, converted, tmp_path / "bundle")


def test_categories_may_lie_one_folder_deeper(export: Path, converted: Path, tmp_path: Path) -> None:
    (export / "categories").rename(tmp_path / "inner")
    (export / "categories").mkdir()
    (tmp_path / "inner").rename(export / "categories" / "categories")
    assemble(export, converted, tmp_path / "bundle")
    assert Bundle(tmp_path / "bundle").manifest.items > 30


def test_a_model_that_is_no_click_model_is_refused(export: Path, converted: Path, tmp_path: Path) -> None:
    models = shutil.copytree(converted, tmp_path / "models")
    model = onnx.load(models / "dlrm.onnx")
    for node in model.graph.node:
        if node.op_type == "Sigmoid":
            node.op_type = "Softplus"
    onnx.save(model, models / "dlrm.onnx")
    with pytest.raises(BundleError, match="ends in Softplus, not in a sigmoid"):
        assemble(export, models, tmp_path / "bundle")


def test_a_conversion_that_computes_something_else_is_refused(export: Path, converted: Path, tmp_path: Path) -> None:
    models = shutil.copytree(converted, tmp_path / "models")
    with np.load(models / "dlrm.npz") as arrays:
        rows = dict(arrays)
    rows["output"] += np.float32(1e-3)
    np.savez(models / "dlrm.npz", **rows)
    with pytest.raises(BundleError, match=r"ranker.onnx differs from TensorFlow by 0.001"):
        assemble(export, models, tmp_path / "bundle")
