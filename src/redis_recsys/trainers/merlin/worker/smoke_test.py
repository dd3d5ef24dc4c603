"""Check of the Merlin environment by a tiny training; the last step of ``recsys setup merlin``."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from ..worker_job import Feature, Job
from .convert import convert
from .fit import fit

ROWS = 400


def check() -> None:
    """Train and convert both models on a few made-up rows.

    Raises:
        Exception: any error that Merlin raises.
    """
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        for name in ("rows", "export", "onnx"):
            (home / name).mkdir()
        rows = pd.DataFrame({name: random.integers(1, 40, ROWS) for name in ("user_id", "item_id", "age", "brand")})
        rows = rows.assign(user_id_raw=rows.user_id, item_id_raw=rows.item_id, click=random.integers(0, 2, ROWS))
        for part in ("train", "valid"):
            rows.to_parquet(home / "rows" / f"{part}.parquet")
        sides = {"user_id": "user", "age": "user", "item_id": "item", "brand": "item"}
        features = [Feature(name, side, False, [name]) for name, side in sides.items()]
        fit(
            Job(
                rows=str(home / "rows"), export=str(home / "export"), features=features,
                user_id="user_id", item_id="item_id", target="click", tower_dim=8, encoder_dim=8, ranking_dim=8,
                epochs=1, patience=1, retrieval_batch=200, ranking_batch=200, learning_rate=0.001, seed=1,
            )
        )  # fmt: skip
        convert(home / "export", home / "onnx")
