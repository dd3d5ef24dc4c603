"""Run in the Merlin environment: exports of the plainest possible models, with the signatures of any release.

    python odd_models.py FOLDER

Inputs have rank 2 and 64 bits, as before 23.6; the ranker's signature also holds an input that nothing reads and that
no table has, and one whose number of rows alone is read. A column of numbers is stored as integers. The export in
``plain`` has beside it the lists that it recommends, ``lists.json``. Each of the others has something that cannot be
migrated: ``list`` a list column, ``absent`` a column that is in no table, ``small`` embeddings for fewer ids than the
tables have.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import tensorflow as tf

USERS, ITEMS, DIM = 12, 9, 4
MORE = {"list": ["genres__values", "genres__offsets"], "absent": ["city"]}


def table(rows: int, random: np.random.Generator) -> tf.Variable:
    return tf.Variable(random.standard_normal((rows + 3, DIM)), dtype=tf.float32)


class Query(tf.Module):
    def __init__(self, users: int, random: np.random.Generator) -> None:
        self.ids = table(users, random)

    def __call__(self, user_id: tf.Tensor, age: tf.Tensor, **more: tf.Tensor) -> tf.Tensor:
        found = tf.gather(self.ids, tf.squeeze(user_id, 1)) * (1 + tf.cast(age, tf.float32) / 100)
        for value in more.values():
            found += tf.cast(tf.reduce_sum(value), tf.float32)
        return found


class DlrmShape(tf.Module):
    def __init__(self, random: np.random.Generator) -> None:
        self.users, self.items = table(USERS, random), table(ITEMS, random)

    def __call__(self, user_id: tf.Tensor, item_id: tf.Tensor, user_id_raw: tf.Tensor, click: tf.Tensor) -> tf.Tensor:
        rows = tf.shape(user_id_raw)[0]
        pairs = tf.gather(self.users, tf.squeeze(user_id, 1)) * tf.gather(self.items, tf.squeeze(item_id, 1))
        return tf.reshape(tf.sigmoid(tf.reduce_sum(pairs, axis=1)), [rows, 1])


def save(module: tf.Module, path: Path, inputs: list[str]) -> None:
    specs = {each: tf.TensorSpec([None, 1], tf.int64, each) for each in inputs}
    call = tf.function(lambda **values: {"output": module(**values)}).get_concrete_function(**specs)
    tf.saved_model.save(module, str(path), signatures={"serving_default": call})


def write(export: Path) -> None:
    random = np.random.default_rng(3)
    query, dlrm = Query(USERS - 5 if export.name == "small" else USERS, random), DlrmShape(random)
    save(query, export / "query_tower", ["user_id", "age", *MORE.get(export.name, [])])
    save(dlrm, export / "dlrm", ["user_id", "item_id", "user_id_raw", "click"])
    (export / "query_tower" / ".merlin").mkdir()
    feature = {"name": "age", "type": "INT", "annotation": {"tag": ["user", "continuous"]}}
    (export / "query_tower" / ".merlin" / "input_schema.json").write_text(json.dumps({"feature": [feature]}))
    ids = {"user": np.arange(USERS) + 3, "item": np.arange(ITEMS) + 3}
    users = pd.DataFrame({"user_id": ids["user"], "age": 20 + np.arange(USERS), "user_id_raw": 5000 + np.arange(USERS)})
    items = pd.DataFrame({"item_id": ids["item"], "item_id_raw": 7000 + np.arange(ITEMS)})
    users.to_parquet(export / "user_features.parquet")
    items.to_parquet(export / "item_features.parquet")
    vectors = pd.DataFrame(random.standard_normal((ITEMS, DIM)).astype("float32"), columns=map(str, range(DIM)))
    vectors.assign(item_id=ids["item"]).to_parquet(export / "item_embeddings.parquet")
    (export / "categories").mkdir()
    for side, frame in (("user", users), ("item", items)):
        name = f"{side}_id"
        counted = pd.DataFrame({name: frame[f"{name}_raw"], f"{name}_size": 1})
        counted.to_parquet(export / "categories" / f"unique.{name}.parquet")
        kinds = [("pad", 0, 1, 0), ("null", 1, 1, 0), ("oov", 2, 1, 0), ("unique", 3, len(frame), len(frame))]
        meta = pd.DataFrame(kinds, columns=["kind", "offset", "num_indices", "num_observed"])
        meta.to_parquet(export / "categories" / f"meta.{name}.parquet")
    if export.name != "plain":
        return
    near = query.ids.numpy()[ids["user"]] * (1 + users.age.to_numpy()[:, None] / 100) @ vectors.to_numpy().T
    logits = dlrm.users.numpy()[ids["user"]] @ dlrm.items.numpy()[ids["item"]].T
    found = {}
    for row, raw in enumerate(users.user_id_raw):
        nearest = np.argsort(-near[row], kind="stable")[:4]
        best = nearest[np.argsort(-logits[row][nearest], kind="stable")]
        found[str(raw)] = [items.item_id_raw[best].tolist(), (1 / (1 + np.exp(-logits[row][best]))).tolist()]
    (export / "lists.json").write_text(json.dumps(found))


for name in ("plain", "list", "absent", "small"):
    write(Path(sys.argv[1]) / name)
