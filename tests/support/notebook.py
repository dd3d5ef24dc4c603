"""Run in the Merlin environment: the public notebook's flow on a few rows, from raw clicks to its exported files.

    python notebook.py FOLDER CANDIDATES

Everything that makes its export differ from ours is as in the notebook: the raw ids are features by their tags, the
DLRM is trained on batches that hold them although its schema does not, ``Dropna`` ends the workflow, the item tower
stays in memory. Its cells 72 and 78 name a schema without one side's columns, which 23.8 refuses: the side's own schema
is used here.

The script writes to FOLDER: ``export`` with the notebook's files, and ``lists.json``, the lists that the notebook's own
loop would put into Redis: raw user -> [raw items, best first, their scores], the ranker's order of the candidates from
the two towers. It does not use the library.
"""

import json
import sys
from pathlib import Path

import merlin.models.tf as mm
import numpy as np
import nvtabular as nvt
import tensorflow as tf
from merlin.datasets.synthetic import generate_data
from merlin.io.dataset import Dataset
from merlin.models.utils.dataset import unique_rows_by_features
from merlin.schema.tags import Tags
from nvtabular import ops

ROWS, EPOCHS, RATE = (
    6000,
    3,
    0.01,
)  # fewer, more and faster than there: few steps must still tell the items apart
OF_USER = ("shops", "profile", "group", "gender", "age", "consumption_2", "is_occupied", "geography", "intentions",
           "brands", "categories")  # fmt: skip
OF_ITEM = ("category", "shop", "brand")
RAW = ["user_id_raw", "item_id_raw"]

home, candidates = Path(sys.argv[1]), int(sys.argv[2])
export, rows = home / "export", home / "rows"
tf.keras.utils.set_random_seed(1)


def encoded() -> dict[str, Dataset]:
    """Both parts, encoded and written to disk with the schema that the workflow gives them."""
    categories = {"dtype": "int32", "out_path": str(export)}
    outputs = ["click"] >> ops.AddMetadata(tags=[Tags.BINARY_CLASSIFICATION, "target"])
    sides = (("user", OF_USER, ops.TagAsUserID, ops.TagAsUserFeatures),
             ("item", OF_ITEM, ops.TagAsItemID, ops.TagAsItemFeatures))  # fmt: skip
    for side, features, id_tag, tag in sides:
        outputs += [f"{side}_id"] >> ops.Categorify(**categories) >> id_tag()
        outputs += [f"{side}_{name}" for name in features] >> ops.Categorify(**categories) >> tag()
        raw = [f"{side}_id"] >> ops.Rename(postfix="_raw") >> ops.LambdaOp(lambda ids: ids.astype("int32"))
        outputs += raw >> tag()
    workflow = nvt.Workflow(outputs >> ops.Dropna())
    train, valid = generate_data("aliccp-raw", ROWS, set_sizes=(0.7, 0.3))
    workflow.fit(train)
    for name, part in (("train", train), ("valid", valid)):
        workflow.transform(part).to_parquet(output_path=str(rows / name))
    return {name: Dataset(str(rows / name / "*.parquet")) for name in ("train", "valid")}


def clicked(parts: dict[str, Dataset]) -> dict[str, Dataset]:
    """The rows with a click, of both parts."""
    only = nvt.Workflow(parts["train"].schema.column_names >> ops.Filter(f=lambda table: table["click"] == 1))
    only.fit(parts["train"])
    for name, part in parts.items():
        only.transform(part).to_parquet(output_path=str(rows / "clicked" / name))
    return {name: Dataset(str(rows / "clicked" / name / "*.parquet")) for name in parts}


def trained_towers(clicks: dict[str, Dataset]) -> mm.TwoTowerModelV2:
    """Towers of 128 and 64."""
    schema = clicks["train"].schema.select_by_tag([Tags.USER, Tags.ITEM]).without([*RAW, "click"])
    for part in clicks.values():
        part.schema = schema
    user, item = (
        mm.Encoder(mm.InputBlockV2(schema.select_by_tag(tag)), mm.MLPBlock([128, 64], no_activation_last_layer=True))
        for tag in (Tags.USER, Tags.ITEM)
    )
    towers = mm.TwoTowerModelV2(user, item)
    towers.compile(optimizer=tf.keras.optimizers.Adam(RATE), loss="categorical_crossentropy", metrics=[mm.RecallAt(10)])
    towers.fit(clicks["train"], validation_data=clicks["valid"], batch_size=512, epochs=EPOCHS, verbose=0)
    return towers


def trained_dlrm(parts: dict[str, Dataset]) -> mm.Model:
    """A DLRM whose schema lacks the raw ids, while its batches have them."""
    assert set(RAW) <= set(parts["train"].schema.column_names)
    model = mm.DLRMModel(
        parts["train"].schema.without(RAW), embedding_dim=64, bottom_block=mm.MLPBlock([128, 64]),
        top_block=mm.MLPBlock([128, 64, 32]), prediction_tasks=mm.BinaryClassificationTask("click"),
    )  # fmt: skip
    model.compile(optimizer=tf.keras.optimizers.Adam(RATE), metrics=[tf.keras.metrics.AUC()])
    model.fit(parts["train"], validation_data=parts["valid"], batch_size=1024, epochs=EPOCHS, verbose=0)
    return model


def recommended(towers: mm.TwoTowerModelV2, dlrm: mm.Model, clicks: Dataset, tables: dict) -> dict[str, list]:
    """The notebook's loop over users, one at a time, with Merlin's own top-k encoder and its own DLRM."""
    nearest = towers.to_top_k_encoder(unique_rows_by_features(clicks, Tags.ITEM, Tags.ITEM_ID), k=candidates,
                                      batch_size=128)  # fmt: skip
    nearest.compile(run_eagerly=False)
    users, items = tables["user"], tables["item"]
    of_towers = [name for name in users.columns if name not in RAW]
    found = {}
    for start in range(0, len(users), 128):
        block = users.iloc[start : start + 128]
        _, ids = nearest({name: tf.constant(block[name].to_numpy()[:, None]) for name in of_towers})
        for (_, user), chosen in zip(block.iterrows(), ids.numpy(), strict=True):
            pairs = items[items.item_id.isin(chosen)].reset_index(drop=True)
            for name in users.columns:
                pairs[name] = np.int32(user[name])
            scores = dlrm({name: tf.constant(pairs[name].to_numpy()[:, None]) for name in pairs}).numpy().reshape(-1)
            best = np.argsort(-scores, kind="stable")
            raw = pairs.item_id_raw.to_numpy()[best]
            found[str(int(user.user_id_raw))] = [raw.tolist(), scores[best].tolist()]
    return found


parts = encoded()
clicks = clicked(parts)
whole = clicks["train"].schema.select_by_tag([Tags.USER, Tags.ITEM]).without(["click"])
towers = trained_towers(clicks)
dlrm = trained_dlrm(parts)
clicks["train"].schema = whole
tables = {}
for side, tag, key in (("user", Tags.USER, Tags.USER_ID), ("item", Tags.ITEM, Tags.ITEM_ID)):
    tables[side] = unique_rows_by_features(clicks["train"], tag, key).compute().reset_index(drop=True)
    tables[side].to_parquet(str(export / f"{side}_features.parquet"))
users, items = (Dataset(tables[side], schema=whole.select_by_tag(tag)) for side, tag in
                (("user", Tags.USER), ("item", Tags.ITEM)))  # fmt: skip
assert len(towers.query_embeddings(users, batch_size=1024, index=Tags.USER_ID).compute(scheduler="synchronous"))
vectors = towers.candidate_embeddings(items, batch_size=1024, index=Tags.ITEM_ID)
vectors.compute(scheduler="synchronous").to_parquet(str(export / "item_embeddings.parquet"))
towers.query_encoder.save(str(export / "query_tower"))
dlrm.save(str(export / "dlrm"))
signature = tf.saved_model.load(str(export / "dlrm")).signatures["serving_default"]
assert set(RAW) < set(signature.structured_input_signature[1])  # otherwise the public notebook no longer exports this
clicks["train"].schema = whole.without(RAW)
(home / "lists.json").write_text(json.dumps(recommended(towers, dlrm, clicks["train"], tables)))
