"""``ps.json``: files for HPS are accepted, and errors are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from redis_recsys.errors import ConfigError
from redis_recsys.parameter_server.ps_json import finds, read
from tests.support.published_ps import PUBLISHED

# as in the public notebook of Merlin and Redis


def written(folder: Path, document: object) -> Path:
    (folder / "ps.json").write_text(json.dumps(document))
    return folder / "ps.json"


def changed(*path: str | int, value: Any) -> dict[str, Any]:
    document = json.loads(json.dumps(PUBLISHED))
    place = document
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    return document


def test_the_published_file_is_taken(tmp_path: Path) -> None:
    config = read(written(tmp_path, PUBLISHED))
    (model,) = config.models
    assert config.volatile_db.overflow_resolution_target == 0.99
    assert model.embedding_table_names == ["sparse_embedding0"]  # HPS' name for a table without a name
    assert model.default_value_for_each_table == [0.0]  # of the two, one belongs to a table
    assert model.hit_rate_threshold == 0.5
    assert "volatile_db.allocation_rate has no effect here" in config.remarks
    assert not any(config.remarks.values())


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (changed("volatile_db", "num_partitions", value="8"), r"volatile_db\.num_partitions: .*valid integer"),
        (changed("volatile_db", "num_partitions", value=0), r"volatile_db\.num_partitions: .*greater than or equal"),
        (
            changed("volatile_db", "type", value="hash_map"),
            r"volatile_db\.type: 'hash_map' is not supported: use redis",
        ),
        (changed("volatile_db", "overflow_policy", value="evict_least_used"), r"overflow_policy: .* use evict_oldest"),
        (changed("volatile_db", "initial_cache_rate", value=1.5), r"volatile_db\.initial_cache_rate"),
        (changed("volatile_db", value=[]), r"volatile_db: .*valid dictionary"),
        (changed("models", value=[]), "models: .*at least 1"),
        (changed("models", 0, "model", value="a/b"), r"models\.0\.model"),
        (changed("models", 0, "gpucache", value=1), r"models\.0\.gpucache: .*valid boolean"),
        (changed("models", 0, "sparse_files", value="one"), r"models\.0\.sparse_files: .*valid list"),
        (changed("models", 0, "embedding_vecsize_per_table", value=[16, 16]), "has 2 entries, and sparse_files has 1"),
        (changed("models", 0, "embedding_vecsize_per_table", value=["128"]), r"embedding_vecsize_per_table\.0"),
        (changed("models", 0, "maxnum_catfeature_query_per_table_per_sample", value=[26, 26]), "has 2 entries, and"),
        (changed("models", 0, "slot_num", value="26"), r"models\.0\.slot_num: .*valid integer"),
        ({}, "models: Field required"),
        ([], "must hold an object"),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, document: object, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        read(written(tmp_path, document))


@pytest.mark.parametrize("path", [("supportlonglong",), ("models", 0, "i64_input_key")])
def test_keys_of_32_bits_are_refused_with_what_to_do(tmp_path: Path, path: tuple[str | int, ...]) -> None:
    with pytest.raises(ConfigError, match=rf"{path[-1]}: .*keys of 32 bits .* set it to true, .*load --again"):
        read(written(tmp_path, changed(*path, value=False)))
    read(written(tmp_path, changed(*path, value=True)))


@pytest.mark.parametrize(
    ("path", "value", "remark"),
    [
        (("models", 0, "refresh_interval"), 5, "is 5 and has no effect here: rows that others write to Redis reach"),
        (("models", 0, "cache_refresh_percentage_per_iteration"), 0.2, "rows that others write to Redis"),
        (("models", 0, "use_mixed_precision"), True, "the dense part is computed in float32"),
        (("models", 0, "embedding_cache_type"), "static", 'is "static" and has no effect here: the cache holds'),
        (("volatile_db", "tls_server_name_identification"), "redis", "the certificate has to be for the address"),
    ],
)
def test_what_would_change_answers_or_safety_in_hps_is_said(
    tmp_path: Path, path: tuple[str | int, ...], value: object, remark: str
) -> None:
    remarks = read(written(tmp_path, changed(*path, value=value))).remarks
    (said,) = (line for line, serious in remarks.items() if serious)
    assert said.startswith(".".join(map(str, path)))
    assert remark in said


def test_all_wrong_values_are_named_at_once(tmp_path: Path) -> None:
    document = changed("volatile_db", "num_partitions", value="8")
    document["models"][0]["hit_rate_threshold"] = "high"
    with pytest.raises(ConfigError, match=r"num_partitions: .*models\.0\.hit_rate_threshold: "):
        read(written(tmp_path, document))


def test_unknown_fields_are_reported_and_not_fatal(tmp_path: Path) -> None:
    config = read(written(tmp_path, changed("models", 0, "gpucachper", value=0.3)))
    assert config.remarks["models.0.gpucachper is not a field of ps.json: a slip of the pen?"]


def test_kafka_is_answered_with_where_updates_come_from(tmp_path: Path) -> None:
    document = changed("update_source", value={"type": "kafka_message_queue", "brokers": "127.0.0.1:9092"})
    config = read(written(tmp_path, document))
    assert config.update_source.type == "redis_stream"
    assert any("Kafka brokers" in remark and "Redis Streams" in remark for remark in config.remarks)


def test_a_file_that_is_not_there_or_no_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ps\.json: No such file"):
        read(tmp_path / "ps.json")
    (tmp_path / "ps.json").write_text("{")
    with pytest.raises(ConfigError, match=r"ps\.json is not JSON"):
        read(tmp_path / "ps.json")


def test_filters_are_regular_expressions() -> None:
    assert finds(["^hps_.+$"], "hps_et.dlrm.t")
    assert not finds(["other"], "hps_et.dlrm.t")
    with pytest.raises(ConfigError, match="not a regular expression"):
        finds(["("], "hps_et.dlrm.t")
