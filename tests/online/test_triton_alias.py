"""The public multi-stage example's clients are answered under the names that they know."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
from pydantic import ValidationError
from tritonclient.utils import InferenceServerException

from redis_recsys.config import TritonSettings
from redis_recsys.embedded.triton_server import EmbeddedTriton
from redis_recsys.errors import ServingError
from redis_recsys.online.model_repository import write
from tests.support.tritons import ROOT, WHOLE, infer, settings_in, three, triton_of

ALIAS = "ensemble-model"


@pytest.fixture(scope="module", params=["fused", "staged"])
def aliased(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedTriton]:
    """A recommender of one model, and one of three, with the alias."""
    models = WHOLE
    if request.param == "staged":
        first, middle, last = three("int64")
        models = [first, middle, replace(last, inputs=(*last.inputs, middle.outputs[0]))]  # none unused
    with triton_of(settings_in(tmp_path_factory.mktemp("alias"), alias=ALIAS), models) as server:
        yield server


def ask(server: EmbeddedTriton, users: list[int]) -> np.ndarray:
    """Ask like the public client: one INT32 input of shape [1, 1], one output."""
    with grpc.InferenceServerClient(url=f"{server.host}:{server.grpc_port}") as client:
        given = np.array(users, dtype=np.int32).reshape(-1, 1)
        tensor = grpc.InferInput("user_id_raw", given.shape, "INT32")
        tensor.set_data_from_numpy(given)
        outputs = [grpc.InferRequestedOutput("ordered_ids")]
        answer = client.infer(model_name=ALIAS, inputs=[tensor], outputs=outputs, client_timeout=10)
        found: np.ndarray = answer.as_numpy("ordered_ids")
        return found


def test_an_old_client_gets_a_column_of_items_of_32_bits(aliased: EmbeddedTriton) -> None:
    found = ask(aliased, [7])
    assert found.dtype == np.int32
    assert found.shape == (20, 1)
    np.testing.assert_array_equal(found[:, 0], 700 + np.arange(20))
    np.testing.assert_array_equal(found.T, infer(aliased, [7], "item_ids")["item_ids"])


def test_several_users_get_a_column_each(aliased: EmbeddedTriton) -> None:
    np.testing.assert_array_equal(ask(aliased, [3, 11, 5]).T, infer(aliased, [3, 11, 5], "item_ids")["item_ids"])


def test_old_clients_at_the_same_time_get_each_its_own(aliased: EmbeddedTriton) -> None:
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda user: ask(aliased, [user]), range(100)))
    for user, answer in enumerate(answers):
        np.testing.assert_array_equal(answer[:, 0], 100 * user + np.arange(20))


def test_what_the_recommender_refuses_is_told_to_old_clients_too(aliased: EmbeddedTriton) -> None:
    with pytest.raises(InferenceServerException, match="INVALID_ARGUMENT"):
        ask(aliased, [1] * 65)
    assert ask(aliased, [2])[0, 0] == 200


def test_its_metadata_is_that_of_the_public_ensemble(aliased: EmbeddedTriton) -> None:
    with grpc.InferenceServerClient(url=f"{aliased.host}:{aliased.grpc_port}") as client:
        found = client.get_model_metadata(ALIAS, as_json=True)
        assert "max_batch_size" not in client.get_model_config(ALIAS, as_json=True)["config"]  # 0
    (given,), (made,) = found["inputs"], found["outputs"]
    assert (given["name"], given["datatype"], given["shape"]) == ("user_id_raw", "INT32", ["-1", "1"])
    assert (made["name"], made["datatype"], made["shape"]) == ("ordered_ids", "INT32", ["-1", "-1"])


def test_an_item_beyond_32_bits_is_said_and_not_cut(aliased: EmbeddedTriton) -> None:
    with pytest.raises(InferenceServerException, match=r"item \d+ is too large for ordered_ids, which is INT32"):
        ask(aliased, [2**31 // 100 + 1])


def test_without_it_there_is_no_other_model(tmp_path: Path) -> None:
    write(tmp_path / "models", WHOLE, TritonSettings())
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["recommender"]


def test_text_ids_are_refused_before_anything_is_started(tmp_path: Path) -> None:
    with pytest.raises(ServingError, match=r"RECSYS_TRITON_ALIAS is for ids that are whole numbers, .* are text"):
        write(tmp_path / "models", three("object"), TritonSettings(alias=ALIAS))
    assert not list(tmp_path.iterdir())


def test_a_name_that_is_taken_or_is_no_name_is_refused(tmp_path: Path) -> None:
    for name in ("recommender", "middle"):
        with pytest.raises(ServingError, match=f"RECSYS_TRITON_ALIAS is '{name}'"):
            write(tmp_path / "models", three("int64"), TritonSettings(alias=name))
    with pytest.raises(ValidationError, match="alias"):
        TritonSettings(alias="../elsewhere")


def test_the_guides_clients_before_and_after_the_edits_get_the_same(aliased: EmbeddedTriton) -> None:
    guide = (ROOT / "docs" / "migrating-from-merlin.md").read_text()
    blocks = [block for block in re.findall(r"```python\n(.+?)```", guide, re.DOTALL) if "tritonclient" in block]
    items = []
    for block in blocks:
        names: dict[str, Any] = {}
        exec(block.replace("localhost:8001", f"{aliased.host}:{aliased.grpc_port}"), names)
        items.append(names["items"].tolist())
    assert items == [[700 + place for place in range(20)]] * 2
