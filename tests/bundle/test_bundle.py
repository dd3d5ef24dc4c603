"""Bundles hold what was put in, appear whole or not at all, and are refused if anything in them is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from redis_recsys.bundle.bundle import Bundle
from redis_recsys.bundle.models import Ranker, Tower
from redis_recsys.bundle.writer import finish, write_tables, writing_bundle
from redis_recsys.dataset import entities
from redis_recsys.dataset.entities import Entities, read_entities, write_entities
from redis_recsys.dataset.interactions import PARTS, Rows
from redis_recsys.dataset.popularity import Clicks
from redis_recsys.dataset.schema import Column, Schema
from redis_recsys.dataset.user_history import History
from redis_recsys.errors import BundleError
from tests.support.planted import Trained

FILES = (
    "schema.yaml",
    "user_tower.onnx",
    "ranker.onnx",
    "user_features.parquet",
    "history.parquet",
    "popularity.parquet",
)


@pytest.fixture
def copied(trained: Trained, tmp_path: Path) -> Path:
    """A bundle that a test may damage."""
    return Path(shutil.copytree(trained.bundle.path, tmp_path / "copied"))


def refused(path: Path) -> str:
    with pytest.raises(BundleError) as caught:
        Bundle(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Content


def test_tables_are_those_of_the_dataset(variant: Trained) -> None:
    dataset, bundle = variant.dataset, variant.bundle
    assert (bundle.manifest.users, bundle.manifest.items) == (len(dataset.users), len(dataset.items))
    assert bundle.schema == dataset.schema
    np.testing.assert_array_equal(bundle.items.raw_ids, dataset.items.raw_ids)
    np.testing.assert_array_equal(bundle.items.categorical, dataset.items.categorical)
    np.testing.assert_array_equal(bundle.items.numeric, dataset.items.numeric)
    assert bundle.items.labels == dataset.items.labels
    users = read_entities(bundle.path / "user_features.parquet", bundle.schema, "user")
    np.testing.assert_array_equal(users.raw_ids, dataset.users.raw_ids)
    np.testing.assert_array_equal(users.numeric, dataset.users.numeric)


def test_it_has_a_vocabulary_for_every_categorical_column(variant: Trained) -> None:
    for side in ("user", "item"):
        for column in variant.bundle.schema.categorical(side):
            name = variant.bundle.schema.vocabulary_column(column).name
            values = pq.read_table(variant.bundle.path / "vocab" / f"{name}.parquet")["value"]
            assert len(values) + 1 == column.cardinality


def test_embeddings_are_the_item_towers_and_of_unit_length(variant: Trained) -> None:
    bundle = variant.bundle
    expected = Tower(bundle.path / "item_tower.onnx").embed(bundle.items.categorical, bundle.items.numeric)
    np.testing.assert_array_equal(bundle.item_embeddings, expected)
    np.testing.assert_allclose(np.linalg.norm(bundle.item_embeddings, axis=1), 1, rtol=1e-5)


def test_popular_is_what_was_clicked_most_among_the_newest_tenth_and_then_ever(variant: Trained) -> None:
    rows = variant.dataset.rows(*PARTS)
    clicked = rows.item[rows.target > 0]
    times = rows.time[rows.target > 0]
    edge = np.sort(times)[::-1][-(-len(times) // 10) - 1]
    table = pq.read_table(variant.bundle.path / "popularity.parquet").to_pydict()
    for item, ever, recent in zip(table["item"], table["count"], table["recent"], strict=True):
        assert ever == (clicked == item).sum()
        assert recent == (clicked[times >= edge] == item).sum()
    order = list(zip(table["recent"], table["count"], strict=True))
    assert order == sorted(order, reverse=True)
    assert set(table["item"]) == set(clicked)
    popular = variant.bundle.popularity
    assert set(popular.items[: len(order)]) == set(clicked)
    assert sorted(popular.items) == list(range(1, variant.bundle.manifest.items + 1))  # the others come last
    assert [np.floor(score) for score in popular.scores[: len(order)]] == table["recent"]
    assert not popular.scores[len(order) :].any()


def test_histories_hold_what_each_user_clicked_in_any_part(variant: Trained) -> None:
    rows = variant.dataset.rows(*PARTS)
    seen = 0
    for users, history in variant.bundle.users(block=7):
        for row in range(len(users)):
            clicked = (rows.user == seen + 1) & (rows.target > 0)
            assert sorted(history[row + 1]) == sorted(rows.item[clicked])
            seen += 1
    assert seen == variant.bundle.manifest.users


def test_the_recent_items_of_a_user_are_the_end_of_the_history(trained: Trained) -> None:
    vocabulary = pq.read_table(trained.bundle.path / "vocab" / "item.parquet")["value"].to_pylist()
    raw_ids = trained.bundle.items.raw_ids
    for users, history in trained.bundle.users():
        for row in range(len(users)):
            newest = [raw_ids[item - 1] for item in history[row + 1][::-1][:3]]
            shown = users.categorical[row, 2:5]  # after the user id and the group
            assert [vocabulary[value - 1] for value in shown if value] == [i for i in newest if i in vocabulary]


def test_onnx_equals_torch_on_every_user_and_item(torch_variant: Trained) -> None:
    import torch

    bundle, items = torch_variant.bundle, torch_variant.bundle.items
    users = read_entities(bundle.path / "user_features.parquet", bundle.schema, "user")
    for side, table, tower in (
        ("user", users, torch_variant.two_tower.user_tower),
        ("item", items, torch_variant.two_tower.item_tower),
    ):
        unknown = (np.zeros((1, part.shape[1]), part.dtype) for part in (table.categorical, table.numeric))
        known = (table.categorical, table.numeric)
        packed = [np.concatenate(pair) for pair in zip(unknown, known, strict=True)]
        with torch.inference_mode():
            expected = tower(*map(torch.from_numpy, packed)).numpy()
        model = Tower(bundle.path / f"{side}_tower.onnx")
        np.testing.assert_allclose(model.embed(*packed), expected, atol=1e-5)
        np.testing.assert_allclose(model.embed(*(part[:1] for part in packed)), expected[:1], atol=1e-5)


def test_the_onnx_ranker_equals_torch_on_every_pair(torch_variant: Trained) -> None:
    import torch

    from redis_recsys.trainers.torch.inputs import Batch, Packed

    bundle, items = torch_variant.bundle, torch_variant.bundle.items
    users = read_entities(bundle.path / "user_features.parquet", bundle.schema, "user")
    n, m = len(users), len(items)

    def pairs(entities: Entities, at: np.ndarray) -> Packed:
        return Packed(torch.from_numpy(entities.categorical[at]), torch.from_numpy(entities.numeric[at]))

    batch = Batch(
        pairs(users, np.repeat(np.arange(n), m)), pairs(items, np.tile(np.arange(m), n)), *[torch.zeros(0)] * 4
    )
    with torch.inference_mode():
        expected = torch.sigmoid(torch_variant.dlrm.eval()(batch)).view(n, m).numpy()
    everything = [np.repeat(part[None], n, axis=0) for part in (items.categorical, items.numeric)]
    model = Ranker(bundle.path / "ranker.onnx")
    np.testing.assert_allclose(model(users.categorical, users.numeric, *everything), expected, atol=1e-5)
    one = model(users.categorical[:1], users.numeric[:1], *(part[:1, 3:4] for part in everything))
    np.testing.assert_allclose(one, expected[:1, 3:4], atol=1e-5)


# Writing and reading


def one_column_schema() -> Schema:
    sides = ("user", "item")
    return Schema(
        name="x", columns=[Column(name=s, side=s, kind="categorical", role="id", cardinality=9) for s in sides]
    )


def write(target: Path, users: int = 3, per_user: int = 2) -> None:
    """A bundle without models: user u has clicked on the items u and u + 1, and so on."""
    schema, user = one_column_schema(), np.repeat(np.arange(1, users + 1), per_user)
    item = (user + np.tile(np.arange(per_user), users)).astype(np.int32)
    rows = Rows(user.astype(np.int32), item, np.ones(len(user), np.float32), np.arange(len(user)))
    with writing_bundle(target) as folder:
        for name in ("user_tower.onnx", "item_tower.onnx", "ranker.onnx"):
            (folder / name).write_bytes(name.encode())
        for side, count in (("user", users), ("item", 4)):
            ids = np.arange(1, count + 1)
            packed = Entities(ids, ids[:, None].astype(np.int32), np.empty((count, 0), np.float32))
            write_entities(folder / f"{side}_features.parquet", schema, side, packed)
        write_tables(
            folder, np.eye(4, dtype=np.float32), Clicks(np.array([0, 5, 0, 7])), History.of(rows, users), users
        )
        finish(folder, schema, "by hand", {"auc": 0.5}, 4, users, 4)


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    write(tmp_path / "bundle")
    bundle = Bundle(tmp_path / "bundle")
    assert (bundle.manifest.trainer, bundle.manifest.metrics) == ("by hand", {"auc": 0.5})
    assert bundle.item_embeddings.tolist() == np.eye(4).tolist()
    assert bundle.popularity.items.tolist() == [4, 2, 3, 1]  # equally popular items fall by id as text
    assert bundle.popularity.scores.tolist() == [7, 5, 0, 0]
    (block,) = bundle.users()
    assert [block[1][user].tolist() for user in (1, 2, 3)] == [[1, 2], [2, 3], [3, 4]]


def test_a_bundle_without_any_history_can_be_read(tmp_path: Path) -> None:
    write(tmp_path / "bundle", per_user=0)
    (block,) = Bundle(tmp_path / "bundle").users()
    assert [block[1][user].tolist() for user in (1, 2, 3)] == [[], [], []]


@pytest.mark.parametrize("block", [1, 7, 16, 100, 1000])
def test_users_come_in_blocks_of_any_size_across_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(entities, "ROW_GROUP", 16)
    monkeypatch.setattr("redis_recsys.bundle.writer.ROW_GROUP", 16)
    write(tmp_path / "bundle", users=100)
    blocks = list(Bundle(tmp_path / "bundle").users(block))
    assert {len(users) for users, _ in blocks[:-1]} <= {block}
    assert np.concatenate([users.raw_ids for users, _ in blocks]).tolist() == list(range(1, 101))
    first = [history[1].tolist() for _, history in blocks]
    assert first == [[int(users.raw_ids[0]), int(users.raw_ids[0]) + 1] for users, _ in blocks]


def test_the_fingerprint_changes_with_any_file(tmp_path: Path) -> None:
    write(tmp_path / "one")
    write(tmp_path / "other", per_user=1)
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    one, other, copy = (Bundle(tmp_path / name).fingerprint for name in ("one", "other", "copy"))
    assert one == copy != other


def test_a_new_bundle_replaces_the_old_one_at_once(tmp_path: Path) -> None:
    write(tmp_path / "bundle", users=3)
    write(tmp_path / "bundle", users=4)
    assert Bundle(tmp_path / "bundle").manifest.users == 4
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_error_while_writing_leaves_the_old_bundle(tmp_path: Path, error: type[BaseException]) -> None:
    write(tmp_path / "bundle")
    with pytest.raises(error), writing_bundle(tmp_path / "bundle") as folder:  # noqa: PT012
        (folder / "manifest.json").write_text("{}")
        raise error
    assert Bundle(tmp_path / "bundle").manifest.users == 3
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_bundle_that_was_not_finished_does_not_appear(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not finished"), writing_bundle(tmp_path / "bundle"):
        pass
    assert list(tmp_path.iterdir()) == []


# Refusals


def test_no_bundle_is_said(tmp_path: Path) -> None:
    assert refused(tmp_path / "none") == f"no bundle at {tmp_path / 'none'}: make one with 'recsys train'"


def test_a_file_in_place_of_a_bundle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in refused(tmp_path / "file")


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_found(copied: Path, name: str) -> None:
    data = bytearray((copied / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copied / name).write_bytes(data)
    assert f"{copied / name} does not match its checksum" in refused(copied)


@pytest.mark.parametrize("name", [*FILES, "vocab/user.parquet"])
def test_a_missing_file_is_named(copied: Path, name: str) -> None:
    (copied / name).unlink()
    assert f"{copied / name} is missing" in refused(copied)


def test_a_cut_file_is_named(copied: Path) -> None:
    data = (copied / "ranker.onnx").read_bytes()
    (copied / "ranker.onnx").write_bytes(data[:-100])
    assert f"{copied / 'ranker.onnx'} does not match its checksum" in refused(copied)


def test_another_version_is_refused(copied: Path) -> None:
    manifest = json.loads((copied / "manifest.json").read_text())
    (copied / "manifest.json").write_text(json.dumps(manifest | {"version": 3, "of the future": 1}))
    assert f"{copied} has bundle version 3, this code reads 1 to 2" in refused(copied)


def test_a_manifest_that_leaves_out_a_file_is_refused(copied: Path) -> None:
    manifest = json.loads((copied / "manifest.json").read_text())
    del manifest["files"]["ranker.onnx"]
    (copied / "manifest.json").write_text(json.dumps(manifest))
    assert "does not list ranker.onnx" in refused(copied)


def test_a_bundle_of_an_earlier_release_is_read(copied: Path) -> None:
    manifest = json.loads((copied / "manifest.json").read_text())
    of_then = {name: value for name, value in manifest.items() if name not in ("final", "learned_from")}
    (copied / "manifest.json").write_text(json.dumps(of_then | {"version": 1}))
    bundle = Bundle(copied)
    assert (bundle.manifest.final, bundle.manifest.learned_from) == (False, {})


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"version": 2}', b"\xff\xfe", b"null"])
def test_a_damaged_manifest_is_named(copied: Path, content: bytes) -> None:
    (copied / "manifest.json").write_bytes(content)
    assert str(copied / "manifest.json") in refused(copied)


def test_a_model_that_is_none_is_named_even_when_checksums_are_not_compared(tmp_path: Path) -> None:
    write(tmp_path / "bundle")
    for load in (Tower, Ranker):
        with pytest.raises(BundleError, match=r"user_tower\.onnx cannot be loaded"):
            load(tmp_path / "bundle" / "user_tower.onnx")


def test_embeddings_are_stored_as_plain_parquet(tmp_path: Path) -> None:
    write(tmp_path / "bundle")
    table = pq.read_table(tmp_path / "bundle" / "item_embeddings.parquet")
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 4)
