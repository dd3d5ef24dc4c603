"""Run in the Merlin environment: TensorFlow's recommendations from an export, as the public notebook computes them.

    python reference.py EXPORT CANDIDATES K OUT.json

For each user: the query tower's inner products with the exported item embeddings, the best candidates, DLRM's score
of each, and the best k of these. It does not use the library.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import tensorflow as tf

export, candidates, k = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
users, items = (pd.read_parquet(export / f"{side}_features.parquet") for side in ("user", "item"))
models = {name: tf.saved_model.load(str(export / name)) for name in ("query_tower", "dlrm")}


def run(name, rows):
    signature = models[name].signatures["serving_default"]
    specs = signature.structured_input_signature[1]
    inputs = {key: tf.constant(rows[key].to_numpy(spec.dtype.as_numpy_dtype)) for key, spec in specs.items()}
    return next(iter(signature(**inputs).values())).numpy()


item_id, user_raw, item_raw = sys.argv[5:8]
vectors = pd.read_parquet(export / "item_embeddings.parquet")
vectors = vectors.loc[items[item_id]].to_numpy(np.float32)
nearness = run("query_tower", users) @ vectors.T
found = {}
for row, near in enumerate(nearness):
    nearest = np.argsort(-near, kind="stable")[:candidates]
    pairs = items.iloc[nearest].reset_index(drop=True)
    one = users.iloc[[row] * len(nearest)].reset_index(drop=True)
    scores = run("dlrm", pd.concat([one, pairs], axis=1)).reshape(-1)
    best = np.argsort(-scores, kind="stable")[:k]
    found[str(users[user_raw][row])] = [
        [str(item) for item in pairs[item_raw][best]],
        [float(score) for score in scores[best]],
    ]
Path(sys.argv[4]).write_text(json.dumps(found))
