"""Batch scoring: users per second into Redis, beside a loop over single users with the same models.

The models are untrained (speed does not depend on training) and have the shape of the Ali-CCP models.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import redis

from benchmarks.measure import FOLDER, in_child, matmul_rate
from redis_recsys.bundle.bundle import Bundle, features_file, tower_file
from redis_recsys.bundle.models import Ranker, Tower
from redis_recsys.config import BatchSettings, RedisSettings, Settings, TrainSettings
from redis_recsys.dataset.entities import Entities
from redis_recsys.dataset.popularity import Clicks
from redis_recsys.dataset.schema import Column, Schema, Side
from redis_recsys.offline.batch import batch, score
from redis_recsys.store.connection import connect

USER_VOCABULARY = 100_000
USER_ATTRIBUTES = (150, 60, 12, 2, 7, 3, 2, 5, 20, 30, 40)
ITEM_ATTRIBUTES = (80, 200, 60)
SEEN = 30


def make_bundle(path: Path, users: int, items: int) -> Path:
    """Write a bundle with untrained models, unless ``path`` already has it."""
    from redis_recsys.bundle.writer import finish, write_tables, writing_bundle
    from redis_recsys.dataset.entities import write_entities
    from redis_recsys.dataset.user_history import History
    from redis_recsys.trainers.torch.export import export_models
    from redis_recsys.trainers.torch.inputs import Table
    from redis_recsys.trainers.torch.ranker import DLRM
    from redis_recsys.trainers.torch.two_tower import TwoTower

    if path.exists():
        return path
    random = np.random.default_rng(0)
    known = min(users, USER_VOCABULARY)
    sizes: dict[Side, tuple[int, ...]] = {"user": (known, *USER_ATTRIBUTES), "item": (items, *ITEM_ATTRIBUTES)}
    columns, entities = [], {}
    counts: dict[Side, int] = {"user": users, "item": items}
    for side, count in counts.items():
        columns += [
            Column(
                name=f"{side}_{position}",
                side=side,
                kind="categorical",
                role="id" if position == 0 else None,
                cardinality=size + 1,
            )
            for position, size in enumerate(sizes[side])
        ]
        numbers = np.arange(1, count + 1)
        ids = np.where(numbers <= sizes[side][0], numbers, 0)
        others = [random.integers(1, size + 1, count) for size in sizes[side][1:]]
        categorical = np.stack([ids, *others], axis=1).astype(np.int32)
        entities[side] = Entities(numbers, categorical, np.empty((count, 0), np.float32))
    schema = Schema(name="benchmark", columns=columns)
    settings = TrainSettings()
    tables = [Table(entities[side]) for side in counts]
    lengths = random.integers(0, 2 * SEEN, users)
    starts = np.concatenate([[0, 0], np.cumsum(lengths)])
    history = History(starts, random.integers(1, items + 1, starts[-1], dtype=np.int32))
    with writing_bundle(path) as folder:
        towers = TwoTower(schema, tables[1], np.ones(items + 1), np.full(sizes["user"][0] + 1, SEEN), settings)
        export_models(towers, DLRM(schema, np.zeros(items + 1), settings), tables[0], tables[1], folder)
        catalogue = entities["item"]
        embeddings = Tower(folder / tower_file("item")).embed(catalogue.categorical, catalogue.numeric)
        write_tables(folder, embeddings, Clicks(random.integers(1, 1000, items)), history, users)
        for side in counts:
            write_entities(folder / features_file(side), schema, side, entities[side])
        finish(folder, schema, "benchmark", {}, embeddings.shape[1], users, items)
    return path


def into_redis(path: Path, settings: BatchSettings) -> dict[str, Any]:
    """Score every user of a bundle into an embedded Redis."""
    folder = Path(tempfile.mkdtemp(prefix="recsys-bench-"))
    try:
        with connect(RedisSettings(folder=folder)) as client:
            report = batch(Bundle(path), client, Settings(batch=settings))
        return {"users": report.users, "seconds": report.seconds, "users_per_s": report.users_per_second}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def scoring_alone(path: Path, settings: BatchSettings) -> dict[str, Any]:
    """Measure retrieval and ranking without Redis, and count their minimal floating-point operations."""
    bundle = Bundle(path)
    started = time.perf_counter()
    users = sum(len(entities) for entities, _ in score(bundle, settings))
    seconds = time.perf_counter() - started
    dim = TrainSettings().ranking_dim
    user_vectors, item_vectors = 1 + len(USER_ATTRIBUTES), 1 + len(ITEM_ATTRIBUTES)
    retrieval = 2 * bundle.manifest.items * bundle.manifest.embedding_dim
    per_user = 2 * item_vectors * 64 * user_vectors * dim
    per_pair = 2 * (item_vectors * dim * 64 + 64 * 32 + 32)
    operations = users * (retrieval + per_user + settings.candidates * per_pair)
    return {"users_per_s": users / seconds, "operations_per_s": operations / seconds}


def one_at_a_time(path: Path, settings: BatchSettings, users: int) -> dict[str, Any]:
    """Run the naive loop: for each user embed, score all items, sort, rank, and write one key."""
    bundle = Bundle(path)
    tower, ranker = bundle.user_tower(2), bundle.ranker(2)
    items, embeddings = bundle.items, bundle.item_embeddings
    folder = Path(tempfile.mkdtemp(prefix="recsys-bench-"))
    try:
        with connect(RedisSettings(folder=folder)) as client:
            block, history = next(bundle.users(users))
            started = time.perf_counter()
            for row in range(users):
                _recommend_one(client, tower, ranker, block, history[row + 1], items, embeddings, row, settings)
            seconds = time.perf_counter() - started
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {"users": users, "seconds": seconds, "users_per_s": users / seconds}


def _recommend_one(
    client: redis.Redis,
    tower: Tower,
    ranker: Ranker,
    users: Entities,
    seen: np.ndarray,
    items: Entities,
    embeddings: np.ndarray,
    row: int,
    settings: BatchSettings,
) -> None:
    categorical, numeric = users.categorical[row : row + 1], users.numeric[row : row + 1]
    scores = embeddings @ tower.embed(categorical, numeric)[0]
    scores[seen - 1] = -np.inf
    candidates = np.argsort(-scores)[: settings.candidates]
    clicks = ranker(categorical, numeric, items.categorical[candidates][None], items.numeric[candidates][None])[0]
    best = np.argsort(-clicks)[: settings.topk]
    value = {"items": items.raw_ids[candidates[best]].tolist(), "scores": clicks[best].tolist()}
    client.set(f"loop:{users.raw_ids[row]}", str(value))


def run(users: int = 100_000, many: int = 1_000_000, items: int = 10_000) -> dict[str, Any]:
    """Measure all figures of this benchmark."""
    settings = BatchSettings()
    public = BatchSettings(candidates=20, topk=10)
    paths = {
        "plain": make_bundle(FOLDER / f"batch-{users}-{items}", users, items),
        "many": make_bundle(FOLDER / f"batch-{many}-{items}", many, items),
        "public": make_bundle(FOLDER / f"batch-{users}-446", users, 446),
    }
    peak = matmul_rate()
    alone = in_child(scoring_alone, paths["plain"], settings)
    plain = in_child(into_redis, paths["plain"], settings)
    loop = in_child(one_at_a_time, paths["plain"], settings, 500)
    return {
        "matmul_gflops": peak / 1e9,
        "scoring_alone": alone,
        "share_of_matmul": alone["operations_per_s"] / peak,
        "batch": plain,
        "batch_many": in_child(into_redis, paths["many"], settings),
        "loop": loop,
        "batch_over_loop": plain["users_per_s"] / loop["users_per_s"],
        "public_shape": in_child(into_redis, paths["public"], public),
    }


if __name__ == "__main__":
    import json

    print(json.dumps(run(), indent=2))
