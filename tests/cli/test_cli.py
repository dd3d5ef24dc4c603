"""The verbs one after the other, as --help tells, and what each of them prints."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from redis_recsys.store.recommendations import get_many
from tests.support.commands import Recsys, good
from tests.support.planted import Trained, planted

RECSYS = Path(sys.executable).with_name("recsys")


def test_synthetic_data_becomes_recommendations_with_nothing_configured(recsys: Recsys, tmp_path: Path) -> None:
    printed = good(recsys("data", "synthetic", "--rows", 20_000, "--users", 300, "--items", 100))
    assert "16,000 train, 2,000 valid, 2,000 test rows, 300 users, 100 items in data/dataset" in one_line(printed)
    printed = good(recsys("train", "--epochs", 1, "--embedding-dim", 8, "--device", "cpu", "--no-refit"))
    assert "bundle with 300 users and 100 items in data/bundle" in one_line(printed)
    report = json.loads(good(recsys("evaluate", "--json", "--no-baselines")))
    assert set(report["retrieval"]) == {"two-tower", "two-tower + DLRM"}
    best = report["ceilings"]["true probability"]["click_probability@10"]
    assert 0 < report["retrieval"]["two-tower"]["click_probability@10"] < best < 1
    batch = json.loads(good(recsys("batch", "--topk", 5, "--json")))
    assert (batch["users"], batch["resumed_at"]) == (300, 0)
    found = json.loads(good(recsys("get", 1, "--json")))
    assert (found["source"], len(found["items"]), found["generation"]) == ("model", 5, batch["generation"])
    assert set(found["items"]) <= set(range(1, 101))
    assert found["scores"] == sorted(found["scores"], reverse=True)
    assert not list(tmp_path.rglob(".*"))
    assert not (tmp_path / "data" / "redis" / "server.json").exists()


def one_line(text: str) -> str:
    return " ".join(text.split())


def test_tables_of_ones_own_become_a_dataset(recsys: Recsys, tmp_path: Path) -> None:
    raw = planted(tmp_path / "mine")
    (schema, rows, users, items) = (
        raw / name for name in ("schema.yaml", "interactions", "users.parquet", "items.parquet")
    )
    printed = good(
        recsys("data", "tabular", rows, "--schema", schema, "--users", users, "--items", items, "--out", "d")
    )
    assert "planted: 2,400 train, 300 valid, 300 test rows, 60 users, 40 items in d" in one_line(printed)


@pytest.mark.parametrize("split", ["random", "user"])
def test_the_split_can_be_chosen(recsys: Recsys, tmp_path: Path, split: str) -> None:
    raw = planted(tmp_path / "mine")
    options = ("--schema", raw / "schema.yaml", "--users", raw / "users.parquet", "--items", raw / "items.parquet")
    good(recsys("data", "tabular", raw / "interactions", *options, "--split", split, "--test", 0.3))
    manifest = json.loads((tmp_path / "data" / "dataset" / "manifest.json").read_text())
    assert manifest["split"]["by"] == split
    assert manifest["rows"]["test"] == pytest.approx(900, abs=60)


def test_each_users_last_rows_can_be_left_out_by_their_number(recsys: Recsys, tmp_path: Path) -> None:
    raw = planted(tmp_path / "mine")
    options = ("--schema", raw / "schema.yaml", "--users", raw / "users.parquet", "--items", raw / "items.parquet")
    for flags, counts in (((), (59, 59)), (("--valid", 2, "--test", 3), (118, 177))):
        good(recsys("data", "tabular", raw / "interactions", *options, "--split", "last", *flags, "--force"))
        rows = json.loads((tmp_path / "data" / "dataset" / "manifest.json").read_text())["rows"]
        assert (rows["valid"], rows["test"], sum(rows.values())) == (*counts, 3000)
    refused = recsys("data", "tabular", raw / "interactions", *options, "--split", "last", "--test", 0.1, "--force")
    assert "numbers of each user's rows" in refused.error()


def test_get_prints_a_table_with_labels(recsys: Recsys, trained: Trained, use_server: redis.Redis) -> None:
    printed = good(recsys("batch", trained.bundle.path, "--topk", 3))
    assert "200 users in generation 1" in printed
    printed = good(recsys("get", 5, 999_999, "--bundle", trained.bundle.path))
    assert "user 5: model items, generation 1" in printed
    assert "user 999999: popular items, generation 1" in printed
    for found in get_many(use_server, [5, 999_999]):
        assert len(found.items) == 3
        for item in found.items:
            assert f"│ {item} " in printed
            assert f"Item {item} " in printed


def test_get_gives_json_for_one_and_for_many_users(recsys: Recsys, trained: Trained, use_server: redis.Redis) -> None:
    good(recsys("batch", trained.bundle.path))
    one = json.loads(good(recsys("get", 5, "--json")))
    many = json.loads(good(recsys("get", 5, 999_999, "--json")))
    assert many[0] == one
    assert [each["source"] for each in many] == ["model", "popular"]
    assert set(one) == {"user", "items", "scores", "source", "generation"}


def test_ids_with_brackets_are_shown_as_they_are(recsys: Recsys, trained: Trained, use_server: redis.Redis) -> None:
    good(recsys("batch", trained.bundle.path))
    assert "user [/x] [red]: popular items" in good(recsys("get", "[/x] [red]"))


def test_flags_win_over_variables_and_these_over_the_file(
    recsys: Recsys, trained: Trained, use_server: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recsys.yaml").write_text("batch: {topk: 2, block: 7}\n")
    monkeypatch.setenv("RECSYS_CONFIG", "recsys.yaml")

    def shown(*flags: object) -> int:
        good(recsys("batch", trained.bundle.path, *flags))
        return len(json.loads(good(recsys("get", 5, "--json")))["items"])

    assert shown() == 2
    monkeypatch.setenv("RECSYS_BATCH_TOPK", "3")
    assert shown() == 3
    assert shown("--topk", 4) == 4


def test_the_evaluation_is_a_table_beside_baselines_and_a_plot(
    recsys: Recsys, trained: Trained, tmp_path: Path
) -> None:
    printed = good(recsys("evaluate", trained.bundle.path, "--dataset", trained.dataset.path, "--plot", "metrics.png"))
    for name in ("popularity", "item-knn", "rp3beta", "ease", "als", "bpr", "two-tower", "two-tower + DLRM"):
        assert name in printed
    assert "ideal reordering" in printed
    interval = r"[+-]?\.\d{3} \[[+-]?\.\d{3}, [+-]?\.\d{3}\]"
    assert re.search(rf"two-tower \+ DLRM +{interval} +{interval} +{interval}", printed)
    said = " ".join(printed.split())
    assert re.search(r"two-tower \+ DLRM (raises|lowers|has) NDCG@10 .*95% interval [+-]", said)
    assert re.search(r"Of [\d,]+ rows, [\d.]+% are clicks; the mean prediction is [\d.]+%", said)
    assert (tmp_path / "metrics.png").read_bytes().startswith(b"\x89PNG")


VERBS: list[tuple[str, ...]] = [
    (),
    ("data",),
    ("data", "movielens"),
    ("data", "synthetic"),
    ("data", "aliccp"),
    ("data", "tabular"),
    ("data", "pull"),
    ("data", "push"),
    ("train",),
    ("evaluate",),
    ("batch",),
    ("get",),
    ("demo",),
]


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_verb_has_help(recsys: Recsys, verb: tuple[str, ...]) -> None:
    assert "Usage: " in good(recsys(*verb, "--help"))


def test_an_unknown_option_is_refused_with_the_usage(recsys: Recsys) -> None:
    outcome = recsys("batch", "--top-k", 5)
    assert outcome.code == 2
    assert "--top-k" in outcome.err


def test_reading_loads_no_training_library(use_server: redis.Redis, tmp_path: Path) -> None:
    code = "import sys; from redis_recsys.cli.main import main\ntry: main()\nfinally: print('loaded', *sys.modules)"
    command = [sys.executable, "-c", code, "get", "1"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.stderr == "error: this Redis holds no recommendations yet: write some with 'recsys batch'\n"
    loaded = set(run.stdout.partition("loaded")[2].split())
    assert "redis" in loaded
    assert not loaded & {"torch", "polars", "pandas", "matplotlib", "implicit", "boto3", "onnxruntime", "pyarrow"}


def test_the_installed_command_runs_and_says_how_it_ended(tmp_path: Path) -> None:
    run = subprocess.run([RECSYS, "train", "none"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr == "error: no dataset at none: make one with 'recsys data ...'\n"
    assert not list(tmp_path.iterdir())
