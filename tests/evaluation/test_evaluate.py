"""Relevant items, users that count, and the report, on a dataset small enough to check by eye."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from redis_recsys.cli.tables import CEILINGS, intervals_table, ranker_table, report_table
from redis_recsys.dataset.entities import Entities, write_entities
from redis_recsys.dataset.interactions import DATASET_VERSION, Dataset, Rows
from redis_recsys.dataset.schema import Column, Schema
from redis_recsys.errors import DataError
from redis_recsys.evaluation.baselines import fit_baselines
from redis_recsys.evaluation.evaluate import IDEAL, NEGATIVES, TRUE, evaluate, evaluate_ranker

USERS, ITEMS = 4, 6
# (user, item, target, oracle)
TRAIN = [(1, 1, 1, 0.9), (1, 2, 0, 0.2), (2, 1, 1, 0.8), (2, 3, 1, 0.7)]
VALID = [(1, 3, 1, 0.6)]
# user 1 clicks on 1 again and on 2 and 5, twice on 5; user 3 is cold; user 4 clicks on nothing
TEST = [
    (1, 1, 1, 0.9),
    (1, 2, 1, 0.6),
    (1, 5, 1, 0.7),
    (1, 5, 1, 0.7),
    (1, 4, 0, 0.4),
    (2, 6, 1, 0.3),
    (2, 2, 0, 0.5),
    (3, 4, 1, 0.8),
    (4, 1, 0, 0.1),
]


def make_dataset(folder: Path, parts: dict[str, list], clicks: bool = True, oracle: bool = True) -> Dataset:
    columns = [
        Column(name="user_id", side="user", kind="categorical", role="id", cardinality=USERS + 1),
        Column(name="item_id", side="item", kind="categorical", role="id", cardinality=ITEMS + 1),
        Column(name="time", side="time", kind="numeric"),
    ]
    if clicks:
        columns.append(Column(name="click", side="target", kind="numeric"))
    if oracle:
        columns.append(Column(name="truth", side="target", kind="numeric", role="oracle"))
    schema = Schema(name="tiny", columns=columns)
    folder.mkdir()
    schema.save(folder / "schema.yaml")
    (folder / "manifest.json").write_text(json.dumps({"version": DATASET_VERSION}))
    for side, count in (("user", USERS), ("item", ITEMS)):
        ids = np.arange(1, count + 1)
        entities = Entities(ids, ids[:, None].astype(np.int32), np.empty((count, 0), np.float32))
        write_entities(folder / f"{side}s.parquet", schema, side, entities)
    for part, rows in parts.items():
        user, item, target, truth = zip(*rows, strict=True)
        table = {
            "user": pa.array(user, pa.int32()),
            "item": pa.array(item, pa.int32()),
            "target": pa.array(target, pa.float32()),
            "time": pa.array(range(len(rows)), pa.int64()),
        }
        if oracle:
            table["oracle"] = pa.array(truth, pa.float32())
        (folder / part).mkdir()
        pq.write_table(pa.table(table), folder / part / "part-0.parquet")
    return Dataset(folder)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return make_dataset(tmp_path / "dataset", {"train": TRAIN, "valid": VALID, "test": TEST})


class Fixed:
    """Recommender of one list for everybody, which remembers the users it was asked about."""

    def __init__(self, name: str, items: list[int]) -> None:
        self.name, self.items, self.asked = name, items, []

    def recommend(self, users: np.ndarray, k: int) -> np.ndarray:
        self.asked += users.tolist()
        return np.tile(np.array(self.items[:k], np.int32), (len(users), 1))


def test_only_users_with_a_new_click_in_the_test_part_are_asked_about(dataset: Dataset):
    fixed = Fixed("fixed", [5, 4])
    report = evaluate(dataset, [fixed], ks=(2,))
    assert fixed.asked == [1, 2, 3]
    assert report.users == {"all": 3, "warm": 2, "cold": 1}


def test_metrics_by_hand_for_all_warm_and_cold_users(dataset: Dataset):
    # relevant: user 1 {2, 5} (1 is seen, the second click on 5 is the same item), user 2 {6}, user 3 {4}
    report = evaluate(dataset, [Fixed("fixed", [5, 4])], ks=(1, 2))
    ndcg = [1 / (1 + 1 / math.log2(3)), 0, 1 / math.log2(3)]
    metrics = report.retrieval["fixed"]
    assert metrics["ndcg@2"] == pytest.approx(sum(ndcg) / 3)
    assert metrics["ndcg@2_error"] == pytest.approx(np.std(ndcg) / math.sqrt(3))
    assert metrics["recall@2_error"] == pytest.approx(np.std([0.5, 0, 1]) / math.sqrt(3))
    assert metrics["mrr_error"] == pytest.approx(np.std([1, 0, 0.5]) / math.sqrt(3))
    assert metrics["hit_rate@2_error"] == pytest.approx(np.std([1, 0, 1]) / math.sqrt(3))
    assert metrics["recall@1"] == pytest.approx((0.5 + 0 + 0) / 3)
    assert metrics["recall@2"] == pytest.approx((0.5 + 0 + 1) / 3)
    assert metrics["hit_rate@2"] == pytest.approx(2 / 3)
    assert metrics["mrr"] == pytest.approx((1 + 0 + 1 / 2) / 3)
    assert metrics["coverage@2"] == pytest.approx(2 / ITEMS)
    assert metrics["ndcg@2_low"] < metrics["ndcg@2"] < metrics["ndcg@2_high"]
    assert report.warm["fixed"]["ndcg@2"] == pytest.approx((ndcg[0] + ndcg[1]) / 2)
    assert report.cold["fixed"]["ndcg@2"] == pytest.approx(ndcg[2])


def test_lists_that_the_catalogue_makes_short_are_evaluated(dataset: Dataset):
    report = evaluate(dataset, [Fixed("short", [5, 2, 6, 4])], ks=(10,))
    assert report.retrieval["short"]["recall@10"] == 1


def test_baselines_are_fitted_on_train_and_valid_together(dataset: Dataset):
    popularity = fit_baselines(dataset)[0]
    # clicks: item 1 twice, item 3 twice, once in valid
    assert set(popularity.recommend(np.array([3]), 2)[0].tolist()) == {1, 3}
    assert popularity.popularity.tolist() == [2, 0, 2, 0, 0, 0]


def test_every_baseline_can_be_evaluated_on_the_smallest_data(dataset: Dataset):
    report = evaluate(dataset, fit_baselines(dataset), ks=(2, 5))
    assert list(report.retrieval) == ["popularity", "recent-popularity", "item-knn", "rp3beta", "ease", "als", "bpr"]


def test_popularity_of_days_is_left_out_with_a_sentence_where_times_have_no_unit(
    dataset: Dataset, capsys: pytest.CaptureFixture[str]
):
    names = [baseline.name for baseline in fit_baselines(dataset)]
    assert not [name for name in names if "days" in name]
    said = capsys.readouterr()
    assert said.err == "popularity of the last days is left out: the times of the dataset have no unit\n"
    assert not said.out


def test_newcomers_get_the_popularity_that_was_best_for_newcomers_of_the_validation_part(tmp_path: Path):
    # item 1 was popular, item 2 is clicked now; the newcomer of the validation part clicks what was popular
    train = [(1, 1, 1, 0)] * 18 + [(2, 2, 1, 0)] * 2
    for clicked, first in ((1, 1), (2, 2)):
        parts = {"train": train, "valid": [(3, clicked, 1, 0)], "test": [(4, 5, 1, 0)]}
        ease = next(b for b in fit_baselines(make_dataset(tmp_path / str(first), parts)) if b.name == "ease")
        assert ease.recommend(np.array([4]), 1).tolist() == [[first]]


def test_a_baseline_takes_the_setting_that_is_best_on_the_validation_part(tmp_path: Path):
    # users 1 and 2 share a taste, 3 and 4 another one, which regularisation made for large data flattens to nothing
    parts = {
        "train": [(1, 1, 1, 0), (1, 2, 1, 0), (2, 1, 1, 0), (3, 5, 1, 0), (3, 6, 1, 0), (4, 5, 1, 0)],
        "valid": [(2, 2, 1, 0), (4, 6, 1, 0)],
        "test": [(2, 3, 1, 0)],
    }
    als = next(b for b in fit_baselines(make_dataset(tmp_path / "tastes", parts)) if b.name == "als")
    assert als.settings["regularization"] == 0.1


def test_a_test_part_without_new_clicks_is_refused(tmp_path: Path):
    parts = {"train": TRAIN, "valid": VALID, "test": [(1, 1, 1, 0.5), (3, 2, 0, 0.5)]}
    with pytest.raises(DataError, match="nothing to evaluate"):
        evaluate(make_dataset(tmp_path / "old", parts), [Fixed("fixed", [1])], ks=(1,))


def test_a_ranker_that_knows_the_truth_equals_the_oracle(dataset: Dataset):
    result = evaluate_ranker(dataset, lambda rows: rows.oracle)
    assert result["share_of_oracle_auc"] == pytest.approx(1)
    assert {m: result[m] for m in result["oracle"]} == result["oracle"]
    assert (result["rows"], result["positives"], result["sampled_negatives"]) == (9, 6, 0)


def test_ranker_metrics_by_hand(dataset: Dataset):
    # clicks score .9 .6 .7 .7 .3 .8, others .4 .5 .1: of 18 pairs, (.3, .4) and (.3, .5) are out of order
    result = evaluate_ranker(dataset, lambda rows: np.full(len(rows), 0.5))
    assert result["oracle"]["auc"] == pytest.approx(16 / 18)
    assert result["auc"] == 0.5
    assert result["log_loss"] == pytest.approx(math.log(2))
    assert result["share_of_oracle_auc"] == 0
    # user 1: 4 clicks before the only other; user 2: the click is second of two
    assert result["oracle"]["impression_ndcg@10"] == pytest.approx((1 + 1 / math.log2(3)) / 2)


def test_without_a_target_negatives_are_drawn_from_what_the_user_never_clicked(tmp_path: Path):
    parts = {part: [(u, i, 1, 0) for u, i, *_ in rows] for part, rows in (("train", TRAIN), ("valid", VALID))}
    parts["test"] = [(u, i, 1, 0) for u, i, *_ in TEST]
    implicit = make_dataset(tmp_path / "implicit", parts, clicks=False, oracle=False)
    given: list[Rows] = []

    def predict(rows: Rows) -> np.ndarray:
        given.append(rows)
        return rows.target * 0.8 + 0.1

    result = evaluate_ranker(implicit, predict)
    rows = given[0]
    drawn = rows.take(rows.target == 0)
    clicked = {(u, i) for part in parts.values() for u, i, *_ in part}
    assert not clicked & set(zip(drawn.user.tolist(), drawn.item.tolist(), strict=True))
    assert drawn.item.min() >= 1
    assert drawn.item.max() <= ITEMS
    assert 0 < len(drawn) <= NEGATIVES * len(TEST)
    assert result["sampled_negatives"] == len(drawn)
    assert result["positives"] == len(TEST)
    assert result["auc"] == 1
    evaluate_ranker(implicit, predict)
    assert np.array_equal(given[0].item, given[1].item)


def test_the_ideal_reordering_puts_every_hit_among_the_candidates_first(dataset: Dataset):
    towers = Fixed("towers", [3, 1, 4, 5])
    towers.candidates = 4
    report = evaluate(dataset, [towers], ks=(1, 2), retrieval=towers)
    # relevant: user 1 {2, 5}, 5 is a candidate; user 2 {6}, none; user 3 {4}
    assert list(report.retrieval) == ["towers"]
    assert report.by_user[IDEAL]["ndcg@2"] == pytest.approx([1 / (1 + 1 / math.log2(3)), 0, 1])
    assert report.by_user[IDEAL]["recall@1"].tolist() == [0.5, 0, 1]
    assert report.ceilings[IDEAL]["hit_rate@1"] == pytest.approx(2 / 3)
    assert report.groups["cold"].compare("towers", IDEAL, "ndcg@2").after == 1


def test_the_true_click_probability_of_the_first_items_is_measured_and_the_best_possible(dataset: Dataset):
    asked: list[tuple[np.ndarray, np.ndarray]] = []

    def truth(users: np.ndarray, items: np.ndarray) -> np.ndarray:
        asked.append((users, items))
        return (items / 10 + users[:, None] / 100).astype(np.float32)

    report = evaluate(dataset, [Fixed("fixed", [5, 4, 6])], ks=(2, 3), truth=truth)
    assert report.by_user["fixed"]["click_probability@2"] == pytest.approx([0.46, 0.47, 0.48])
    assert report.retrieval["fixed"]["click_probability@2"] == pytest.approx(0.47)
    # the best items that are not seen are 6 and 5, for everybody
    assert report.ceilings[TRUE]["click_probability@2"] == pytest.approx(0.57)
    assert report.by_user[TRUE]["recall@2"].tolist() == [0.5, 1, 0]
    assert evaluate(dataset, [Fixed("short", [5])], ks=(2,), truth=truth).by_user["short"][
        "click_probability@2"
    ] == pytest.approx([0.51, 0.52, 0.53])


def test_the_report_is_json_and_three_tables(dataset: Dataset):
    recommenders = [Fixed("good", [5, 6, 4, 2]), Fixed("bad", [1, 3])]
    recommenders[0].candidates = 4
    report = evaluate(dataset, recommenders, (2, 4), lambda rows: rows.oracle, recommenders[0])
    document = json.loads(json.dumps(report.to_dict()))
    assert document["users"] == {"all": 3, "warm": 2, "cold": 1}
    assert document["retrieval"]["good"]["recall@4"] == 1
    assert document["ranker"]["oracle"]["auc"] == pytest.approx(16 / 18)
    console = Console(width=140, record=True, quiet=True)
    with console.capture() as capture:
        console.quiet = False
        console.print(report_table(report, k=2), intervals_table(report, ["bad"], "ndcg@2"), ranker_table(report))
    text = capture.get()
    words = ("good", "bad", "NDCG@2", "minus", "bootstrap over users", "cold", "over 3 test users")
    words += (IDEAL, "all, 3 users", "warm, 2 users", "cold, 1 users", "+.000 [-1.00, +1.00]")
    for word in (*words, "2 users with and 1 without a history", "oracle", "0.8889"):
        assert word in " ".join(text.split())


def test_two_recommenders_are_compared_user_by_user(dataset: Dataset):
    report = evaluate(dataset, [Fixed("good", [5, 6, 4, 2]), Fixed("bad", [1, 3])], ks=(2, 4))
    found = report.compare("bad", "good", "recall@2")
    # recall of user 1 {2, 5}, user 2 {6}, user 3 {4} within [5, 6], and within [1, 3]
    assert report.by_user["good"]["recall@2"].tolist() == [0.5, 1, 0]
    assert (found.before, found.after, found.users) == (0, 0.5, 3)
    assert not {"by_user", "ids", "members", "groups"} & set(report.to_dict())
    assert set(CEILINGS) == {IDEAL, TRUE}


def test_the_ranker_is_measured_for_calibration_too(dataset: Dataset):
    report = evaluate(dataset, [Fixed("fixed", [5])], ks=(2, 10), predict=lambda rows: np.full(len(rows), 0.5))
    assert report.ranker["calibration"].observed == [pytest.approx(6 / 9)]
    assert report.to_dict()["ranker"]["calibration"] == {"predicted": [0.5], "observed": [6 / 9], "rows": [9]}
