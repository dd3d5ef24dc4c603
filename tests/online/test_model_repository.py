"""The generated model repository: its contents, and the models it refuses."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from redis_recsys.config import TritonSettings
from redis_recsys.errors import ConfigError, DataError, ServingError
from redis_recsys.online.model_repository import write
from redis_recsys.online.partition import Model
from redis_recsys.triton.repository import pbtxt
from redis_recsys.triton.tensors import Field
from tests.support.tritons import ANSWER, CANDIDATES, USER, WHOLE, three


def config(folder: Path, name: str) -> str:
    return (folder / name / "config.pbtxt").read_text()


def test_one_model_is_the_recommender_itself(tmp_path: Path) -> None:
    write(tmp_path / "models", WHOLE, TritonSettings(instances=3, max_batch=8, queue_delay=50, cache=True))
    text = config(tmp_path / "models", "recommender")
    assert 'backend: "python"' in text
    assert "max_batch_size: 8\n" in text
    assert "count: 3\n" in text
    assert "max_queue_delay_microseconds: 50\n" in text
    assert "queue_policy" not in text  # with one, Triton's batcher sleeps half a second beside a full queue
    assert re.search(r"response_cache \{\s+enable: true", text)
    assert re.search(r'name: "item_ids"\s+data_type: TYPE_INT64\s+dims: 20', text)
    assert (tmp_path / "models" / "recommender" / "1" / "model.py").read_text().startswith("from redis_recsys.online")


def test_several_models_become_an_ensemble_in_which_every_tensor_has_one_maker(tmp_path: Path) -> None:
    write(tmp_path / "models", three("object"), TritonSettings(cache=True), outward=("generation",))
    text = config(tmp_path / "models", "recommender")
    outputs = re.findall(r'output \{\s+name: "(\w+)"', text)
    assert sorted(outputs) == ["degraded", "generation", "item_ids", "rows", "scores", "size", "width"]
    made = re.findall(r'output_map \{\s+key: "\w+"\s+value: "(.+)"', text)
    assert len(made) == len(set(made)) == 9
    assert re.search(r'input_map \{\s+key: "degraded"\s+value: "degraded.first"', text)
    assert "allow_ragged_batch: true" in config(tmp_path / "models", "middle")
    assert "enable: true" in text
    assert "enable: true" not in config(tmp_path / "models", "first")


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([*WHOLE, *three("int64")], "none of several models may be called 'recommender'"),
        (
            [
                Model("first", ("first",), (USER,), (CANDIDATES,)),
                Model("last", ("last",), (Field("candidates", "int64", (-1,)),), ANSWER),
            ],
            "'last' reads .*int64.* but that column is .*int32",
        ),
        ([Model("only", ("first",), (USER,), (USER, *ANSWER))], "'user_id', which the client sends"),
    ],
    ids=["two recommenders", "two types", "made and sent"],
)
def test_models_that_do_not_fit_together_are_refused_and_nothing_is_written(
    models: list[Model], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ServingError, match=message):
        write(tmp_path / "models", models, TritonSettings())
    assert not list(tmp_path.iterdir())


def test_a_repository_replaces_the_one_before(tmp_path: Path) -> None:
    write(tmp_path / "models", three("int64"), TritonSettings())
    write(tmp_path / "models", WHOLE, TritonSettings())
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["recommender"]


def test_text_in_a_configuration_is_quoted() -> None:
    written = pbtxt({"name": 'x"y\n', "output": [{"name": "a"}, {"dims": [2]}]})
    assert written == 'name: "x\\"y\\n"\noutput {\n  name: "a"\n}\noutput {\n  dims: 2\n}\n'


def test_without_tritonclient_a_configuration_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", None)
    with pytest.raises(ConfigError, match=r"need tritonclient: pip install 'redis-recsys\[online\]'"):
        pbtxt({"name": "a"})


def test_somebody_elses_repository_is_left_alone(tmp_path: Path) -> None:
    write(tmp_path / "models", WHOLE, TritonSettings())
    theirs = tmp_path / "models" / "resnet" / "1" / "model.py"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("class TritonPythonModel: ...\n")
    with pytest.raises(DataError, match="models exists and is not a model repository: it holds recommender, resnet"):
        write(tmp_path / "models", WHOLE, TritonSettings())
    assert theirs.read_text() == "class TritonPythonModel: ...\n"
    assert "recommender" in config(tmp_path / "models", "recommender")
