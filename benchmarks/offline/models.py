"""Training speed, its breakdown, and quality of the models: on synthetic data and on MovieLens-100k."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.measure import FOLDER, in_child

if TYPE_CHECKING:
    from redis_recsys.evaluation.evaluate import Report


def synthetic(rows: int = 1_000_000) -> dict[str, Any]:
    """Train on synthetic data with the default settings and evaluate beside the baselines and the oracle."""
    return in_child(_synthetic, rows)


def movielens() -> dict[str, Any]:
    """Run the offline half of ``recsys demo`` and measure its time."""
    return in_child(_movielens)


def _synthetic(rows: int) -> dict[str, Any]:
    from redis_recsys.config import Settings
    from redis_recsys.data.synthetic import generate
    from redis_recsys.dataset.encode import encode
    from redis_recsys.dataset.interactions import Dataset
    from redis_recsys.dataset.split import Split
    from redis_recsys.evaluation.baselines import fit_baselines
    from redis_recsys.evaluation.evaluate import evaluate
    from redis_recsys.offline.recommender import BundleRecommender
    from redis_recsys.trainers.training import train

    raw, home = FOLDER / f"synthetic-{rows}", FOLDER / f"models-{rows}"
    if not raw.exists():
        generate(raw, rows)
    encode(raw, home / "dataset", Split())
    dataset = Dataset(home / "dataset")
    started = time.perf_counter()
    bundle = train(dataset, Settings(), home / "bundle")
    seconds = time.perf_counter() - started
    both = BundleRecommender(bundle, dataset)
    report = evaluate(
        dataset, [*fit_baselines(dataset), BundleRecommender(bundle, dataset, ranked=False), both], predict=both.predict
    )
    speed = _speed(bundle.manifest.metrics["curves"])
    return {
        "rows": rows,
        "train_s": seconds,
        "speed": speed,
        "comparisons": comparisons(report),
        **report.to_dict(),
    }


def _movielens() -> dict[str, Any]:
    from redis_recsys.config import RedisSettings, load_settings
    from redis_recsys.demos.movielens_demo import offline

    settings = load_settings()
    settings.redis = RedisSettings(folder=Path(FOLDER / "redis"))
    started = time.perf_counter()
    report, _ = offline(settings)
    return {"demo_s": time.perf_counter() - started, "comparisons": comparisons(report), **report.to_dict()}


def comparisons(report: Report) -> list[str]:
    """Compare the ranker with the towers alone, and the better of the two with the best baseline."""
    from redis_recsys.offline.recommender import OURS

    def ndcg(name: str) -> float:
        return report.retrieval[name]["ndcg@10"]

    best, ours = max(set(report.retrieval) - set(OURS), key=ndcg), max(OURS, key=ndcg)
    return [f"{report.compare(*names)}." for names in (OURS, (best, ours))]


def _speed(curves: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Return by model: rows per second over all epochs, and the shares of loader, forward and backward in an epoch."""
    speed = {}
    for name in ("retrieval", "ranking"):
        parts = {part: sum(epoch[f"{part}_s"] for epoch in curves[name]) for part in ("loader", "forward", "backward")}
        total = sum(parts.values())
        rates = [epoch["rows_per_s"] for epoch in curves[name]]
        speed[name] = {"rows_per_s": sorted(rates)[len(rates) // 2]}
        speed[name] |= {part: seconds / total for part, seconds in parts.items()}
    return speed
