"""Every user gets recommendations in a real Redis: the right ones, whatever the blocks, threads and interruptions."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis
from scipy.stats import chisquare

from redis_recsys.bundle.bundle import Bundle
from redis_recsys.config import BatchSettings, Settings
from redis_recsys.offline import batch as module
from redis_recsys.offline.batch import BatchReport, batch, score
from redis_recsys.store import recommendations
from redis_recsys.store.recommendations import RecommendationsWriter, get, get_many
from tests.support.planted import Trained, one_by_one

SETTINGS = BatchSettings(candidates=12, topk=6, block=32, workers=2)


def settings(**changes: Any) -> BatchSettings:
    return SETTINGS.model_copy(update=changes)


def run(bundle: Bundle, client: redis.Redis, how: BatchSettings, **others: Any) -> BatchReport:
    return batch(bundle, client, Settings(batch=how, **others))


def users_of(bundle: Bundle) -> list[Any]:
    return [user for users, _ in bundle.users() for user in users.raw_ids.tolist()]


def scored(bundle: Bundle, how: BatchSettings) -> tuple[np.ndarray, np.ndarray]:
    """Items and scores of all users."""
    blocks = [result for _, result in score(bundle, how)]
    return np.concatenate([b.items for b in blocks]), np.concatenate([b.scores for b in blocks])


def content(client: redis.Redis, bundle: Bundle) -> list[tuple[list[Any], list[float]]]:
    """Content of Redis for all users."""
    return [(found.items, found.scores) for found in get_many(client, users_of(bundle))]


def assert_same(found: tuple[np.ndarray, np.ndarray], expected: tuple[np.ndarray, np.ndarray]) -> None:
    """Check that scores are equal, and items too, except where scores are so close that rounding may swap them."""
    np.testing.assert_allclose(found[1], expected[1], atol=1e-5)
    close = np.abs(np.diff(expected[1], axis=1, append=-1)) < 1e-5
    different = (found[0] != expected[0]) & ~close & ~np.roll(close, 1, axis=1)
    assert not different[:, :-1].any()


# Recommendations


def test_a_batch_recommends_what_a_loop_over_users_does(variant: Trained) -> None:
    items, scores = scored(variant.bundle, SETTINGS)
    expected = one_by_one(variant.bundle, SETTINGS.candidates, SETTINGS.topk)
    assert_same((items, scores), (np.array([i for i, _ in expected]), np.array([s for _, s in expected])))


def test_redis_holds_the_raw_ids_and_the_probabilities(variant: Trained, client: redis.Redis) -> None:
    report = run(variant.bundle, client, SETTINGS)
    items, scores = scored(variant.bundle, SETTINGS)
    raw = variant.bundle.items.raw_ids
    for n, found in enumerate(get_many(client, users_of(variant.bundle))):
        assert found.items == raw[items[n] - 1].tolist()
        np.testing.assert_allclose(found.scores, scores[n], rtol=1e-6)
        assert (found.source, found.generation) == ("model", report.generation)
    assert (report.users, report.resumed_at) == (len(items), 0)


def test_seen_items_are_never_recommended(variant: Trained) -> None:
    for temperature in (0.0, 0.5):
        blocks = variant.bundle.users(SETTINGS.block)
        results = score(variant.bundle, settings(temperature=temperature, candidates=1000, topk=1000))
        for (users, history), (_, result) in zip(blocks, results, strict=True):
            for row in range(len(users)):
                assert not set(result.items[row]) & set(history[row + 1])


def test_a_user_who_has_seen_everything_gets_nothing_again(
    trained: Trained, client: redis.Redis, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(trained.bundle.path, tmp_path / "bundle"))
    histories = pq.read_table(folder / "history.parquet")["items"].to_pylist()
    histories[2] = list(range(1, trained.bundle.manifest.items + 1))
    histories[3] = histories[2][1:]
    pq.write_table(pa.table({"items": pa.array(histories, pa.large_list(pa.int32()))}), folder / "history.parquet")
    bundle = Bundle(folder, verify=False)
    run(bundle, client, SETTINGS)
    everything, all_but_one = get_many(client, users_of(bundle)[2:4])
    assert (everything.source, everything.items) == ("model", [])
    assert (all_but_one.source, all_but_one.items) == ("model", [bundle.items.raw_ids[0]])


def test_an_unknown_user_gets_the_items_that_are_popular_now(variant: Trained, client: redis.Redis) -> None:
    run(variant.bundle, client, SETTINGS)
    found = get(client, "nobody")
    items, scores = variant.bundle.popularity.items[: SETTINGS.topk], variant.bundle.popularity.scores[: SETTINGS.topk]
    assert (found.source, found.scores) == ("popular", scores.tolist())
    assert found.items == variant.bundle.items.raw_ids[items - 1].tolist()


# Results do not depend on the way of computing


@pytest.mark.parametrize("how", [{"block": 1}, {"block": 7}, {"block": 5000}, {"workers": 1}, {"workers": 5}])
def test_block_size_and_threads_change_nothing(trained: Trained, how: dict[str, int]) -> None:
    assert_same(scored(trained.bundle, settings(**how)), scored(trained.bundle, SETTINGS))


def test_threads_change_nothing_where_chance_orders(trained: Trained) -> None:
    one, two = (scored(trained.bundle, settings(temperature=0.3, workers=n)) for n in (1, 2))
    assert (one[0] == two[0]).all()


def test_few_blocks_are_computed_ahead_of_the_reader(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    blocks = Bundle.users
    monkeypatch.setattr(Bundle, "users", lambda *args: (taken.append(1) or block for block in blocks(*args)))
    results = score(trained.bundle, settings(block=4, workers=2))
    for _ in range(10):
        next(results)
    assert len(taken) <= 10 + 2 * 2 + 1
    results.close()


# Sampling


def test_temperature_draws_from_the_softmax_of_the_probabilities(trained: Trained) -> None:
    draws, temperature, k = 1500, 0.1, 8
    items, probabilities = scored(trained.bundle, settings(candidates=k, topk=k))
    drawn = np.stack(
        [
            scored(trained.bundle, settings(candidates=k, topk=1, temperature=temperature, seed=seed, block=1000))[0]
            for seed in range(draws // 50)
        ]
    )[..., 0]
    weights = np.exp(probabilities.astype(float) / temperature)
    weights /= weights.sum(axis=1, keepdims=True)
    place = (drawn[..., None] == items[None]).argmax(axis=-1)
    observed = np.bincount(place.ravel(), minlength=k)
    expected = weights.sum(axis=0) * len(drawn)
    assert chisquare(observed, expected).pvalue > 0.001


def test_a_seed_draws_the_same_and_another_differently(trained: Trained) -> None:
    first, again, other = (scored(trained.bundle, settings(temperature=0.3, seed=seed))[0] for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


# Interruptions


@pytest.mark.parametrize("temperature", [0.0, 0.3])
@pytest.mark.parametrize("block", [32, 150])
def test_a_resumed_run_equals_an_uninterrupted_one(
    trained: Trained, client: redis.Redis, monkeypatch: pytest.MonkeyPatch, temperature: float, block: int
) -> None:
    how = settings(temperature=temperature, block=block)
    run(trained.bundle, client, how)
    expected = content(client, trained.bundle)
    client.flushall()
    monkeypatch.setattr(recommendations, "PIPELINE", 60)  # two pipelines of a block of 150 are written
    pipelines, encode = iter(range(100)), recommendations.encode

    def cut(*args: Any) -> Any:
        if next(pipelines) == 2:
            raise KeyboardInterrupt
        return encode(*args)

    monkeypatch.setattr(recommendations, "encode", cut)
    with pytest.raises(KeyboardInterrupt):
        run(trained.bundle, client, how)
    assert client.get("recs:live") is None
    report = run(trained.bundle, client, how)
    assert report.generation == "1"
    assert report.resumed_at % block == 0
    assert (report.resumed_at > 0) == (block == 32)
    assert content(client, trained.bundle) == expected


def test_a_run_with_other_settings_or_another_bundle_starts_anew(
    trained: Trained, bundle_of: Any, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # noqa: PT012
        patch.setattr(RecommendationsWriter, "publish", stop)
        run(trained.bundle, client, SETTINGS)
    assert run(trained.bundle, client, settings(topk=5)).resumed_at == 0
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # noqa: PT012
        patch.setattr(RecommendationsWriter, "publish", stop)
        run(trained.bundle, client, SETTINGS)
    assert run(bundle_of("numerics-no-history").bundle, client, SETTINGS).resumed_at == 0


def test_an_interruption_just_before_the_switch_is_resumed_at_the_end(
    trained: Trained, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(trained.bundle, client, settings(topk=5)).generation

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # noqa: PT012
        patch.setattr(RecommendationsWriter, "publish", stop)
        run(trained.bundle, client, SETTINGS)
    assert client.get("recs:live") == first.encode()
    assert len(get(client, 1).items) == 5
    report = run(trained.bundle, client, SETTINGS)
    assert report.users - report.resumed_at < SETTINGS.block
    assert len(get(client, 1).items) == 6


def test_an_error_in_a_thread_ends_the_run_and_leaves_the_live_generation(
    trained: Trained, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = run(trained.bundle, client, SETTINGS).generation

    def fail(*_: Any) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(module.Recommender, "recommend", fail)
    with pytest.raises(RuntimeError, match="broken"):
        run(trained.bundle, client, settings(topk=5))
    assert get(client, 1).generation == live
