"""Run in the Merlin environment: an export of the plainest possible models, with the signatures of any release.

    python odd_models.py FOLDER [list|absent|small]

Inputs have rank 2 and 64 bits, as before 23.6; the ranker's signature also holds an input that nothing reads and that
no table has, and one whose number of rows alone is read. A column of numbers is stored as integers. The second
argument adds something that cannot be migrated: a list column, a column that is in no table, embeddings for fewer ids
than the tables have.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import tensorflow as tf

export, wrong = Path(sys.argv[1]), (sys.argv[2:] or [""])[0]
USERS, ITEMS, DIM = 12, 9, 4
random = np.random.default_rng(3)


def table(rows: int) -> tf.Variable:
    return tf.Variable(random.standard_normal((rows + 3, DIM)), dtype=tf.float32)


class Query(tf.Module):
    def __init__(self) -> None:
        self.ids = table(USERS - 5 if wrong == "small" else USERS)

    def __call__(self, user_id: tf.Tensor, age: tf.Tensor, **more: tf.Tensor) -> tf.Tensor:
        found = tf.gather(self.ids, tf.squeeze(user_id, 1)) * (1 + tf.cast(age, tf.float32) / 100)
        for value in more.values():
            found += tf.cast(tf.reduce_sum(value), tf.float32)
        return found


class DlrmShape(tf.Module):
    def __init__(self) -> None:
        self.users, self.items = table(USERS), table(ITEMS)

    def __call__(self, user_id: tf.Tensor, item_id: tf.Tensor, user_id_raw: tf.Tensor, click: tf.Tensor) -> tf.Tensor:
        rows = tf.shape(user_id_raw)[0]
        pairs = tf.gather(self.users, tf.squeeze(user_id, 1)) * tf.gather(self.items, tf.squeeze(item_id, 1))
        return tf.reshape(tf.sigmoid(tf.reduce_sum(pairs, axis=1)), [rows, 1])


def save(module: tf.Module, name: str, inputs: list[str]) -> None:
    specs = {each: tf.TensorSpec([None, 1], tf.int64, each) for each in inputs}
    call = tf.function(lambda **values: {"output": module(**values)}).get_concrete_function(**specs)
    tf.saved_model.save(module, str(export / name), signatures={"serving_default": call})


query, dlrm = Query(), DlrmShape()
more = {"list": ["genres__values", "genres__offsets"], "absent": ["city"]}.get(wrong, [])
save(query, "query_tower", ["user_id", "age", *more])
save(dlrm, "dlrm", ["user_id", "item_id", "user_id_raw", "click"])
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
if wrong:
    sys.exit()
near = query.ids.numpy()[ids["user"]] * (1 + users.age.to_numpy()[:, None] / 100) @ vectors.to_numpy().T
logits = dlrm.users.numpy()[ids["user"]] @ dlrm.items.numpy()[ids["item"]].T
found = {}
for row, raw in enumerate(users.user_id_raw):
    nearest = np.argsort(-near[row], kind="stable")[:4]
    best = nearest[np.argsort(-logits[row][nearest], kind="stable")]
    found[str(raw)] = [items.item_id_raw[best].tolist(), (1 / (1 + np.exp(-logits[row][best]))).tolist()]
(export / "lists.json").write_text(json.dumps(found))
