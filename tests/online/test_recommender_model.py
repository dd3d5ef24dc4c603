"""Models in a real Triton: batches, both types of ids, an ensemble, and requests that fail."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from redis_recsys.config import TritonSettings
from redis_recsys.embedded.triton_server import EmbeddedTriton
from redis_recsys.errors import ServingError
from redis_recsys.online.recommender_client import Client
from tests.support.doubles import FAILS, HELD, SECONDS, SLOW
from tests.support.faulty import until
from tests.support.tritons import infer, metric, settings_in, three, triton_of

Served = tuple[EmbeddedTriton, TritonSettings]


def test_concurrent_requests_are_answered_each_with_its_own(triton: Served) -> None:
    server, _ = triton
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda user: infer(server, [user, user + 1], "item_ids"), range(200)))
    for user, answer in enumerate(answers):
        np.testing.assert_array_equal(answer["item_ids"], np.array([[user], [user + 1]]) * 100 + np.arange(20))


def test_requests_that_wait_are_computed_together(triton: Served) -> None:
    server, settings = triton
    gate = settings.repository.with_name("gate")
    with ThreadPoolExecutor(12) as pool:
        held = [pool.submit(infer, server, [HELD] * 64, "rows") for _ in range(2)]  # two are too many for one batch
        until(lambda: len(list(gate.iterdir())) == 2)  # both instances are busy
        waiting = [pool.submit(infer, server, [user], "rows") for user in range(10)]
        until(lambda: metric(server, "nv_inference_pending_request_count") == 10)
        (gate / "open").touch()
        assert max(int(future.result()["rows"][0, 0]) for future in waiting) > 2
        assert [future.result()["rows"].shape for future in held] == [(64, 1), (64, 1)]


def test_only_the_outputs_that_were_asked_for_come(triton: Served) -> None:
    assert list(infer(triton[0], [1], "scores")) == ["scores"]
    assert set(infer(triton[0], [1])) == {"item_ids", "scores", "degraded", "generation", "rows", "pid"}


def test_a_request_that_fails_takes_no_other_of_its_batch_with_it(triton: Served) -> None:
    server, _ = triton

    def ask(user: int) -> str:
        try:
            return str(infer(server, [user], "item_ids")["item_ids"][0, 1])
        except InferenceServerException as error:
            return f"{error.message()}"

    users = [FAILS if place % 4 == 0 else place for place in range(64)]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, users))
    for user, answer in zip(users, answers, strict=True):
        assert "this user makes it fail" in answer if user == FAILS else answer == str(100 * user + 1)


def test_counts_of_all_instances_reach_the_metrics_port(triton: Served) -> None:
    server, _ = triton
    infer(server, [1])
    time.sleep(2.5)  # counts of earlier tests' requests have been sent by then
    before = metric(server, "recsys_requests_total")
    pids: set[int] = set()
    sent = 0
    with ThreadPoolExecutor(8) as pool:
        while len(pids) < 2:
            for answer in pool.map(lambda user: infer(server, [user], "pid"), range(50)):
                pids.add(int(answer["pid"][0, 0]))
                sent += 1
    deadline = time.monotonic() + 15
    while metric(server, "recsys_requests_total") - before < sent and time.monotonic() < deadline:
        time.sleep(0.1)
    assert metric(server, "recsys_requests_total") - before == sent
    count = metric(server, "recsys_stage_seconds_count", stage="whole")
    assert count > 0
    assert metric(server, "recsys_stage_seconds_bucket", le="+Inf", stage="whole") == count
    assert metric(server, "recsys_stage_seconds_sum", stage="whole") > 0


@pytest.mark.parametrize(
    ("shape", "dtype", "name"),
    [
        ([1, 2], "INT64", "user_id"),
        ([1], "INT64", "user_id"),
        ([1, 1], "FP32", "user_id"),
        ([1, 1], "INT64", "item"),
        ([65, 1], "INT64", "user_id"),
    ],
)
def test_malformed_requests_get_an_error_and_others_an_answer(
    shape: list[int], dtype: str, name: str, triton: Served
) -> None:
    server, _ = triton
    with grpc.InferenceServerClient(f"{server.host}:{server.grpc_port}") as client:
        request = grpc.InferInput(name, shape, dtype)
        request.set_data_from_numpy(np.zeros(shape, np.int64 if dtype == "INT64" else np.float32))
        with pytest.raises(InferenceServerException, match="INVALID_ARGUMENT"):
            client.infer("recommender", [request], client_timeout=10)
    assert infer(server, [3], "item_ids")["item_ids"][0, 0] == 300


def test_requests_whose_client_has_given_up_delay_nobody(triton: Served) -> None:
    server, _ = triton

    def give_up(_: int) -> None:
        with pytest.raises(InferenceServerException, match="Deadline"):
            infer(server, [SLOW] * 64, "scores", timeout=SECONDS / 2)

    with ThreadPoolExecutor(40) as pool:
        list(pool.map(give_up, range(40)))
    began = time.monotonic()
    infer(server, [5], "scores")
    assert time.monotonic() - began < 5 * SECONDS  # 40 of them would take two instances 20 times as long


def test_an_ensemble_of_three_with_text_ids_and_lengths_that_differ(tmp_path: Path) -> None:
    def unbatched(folder: Path) -> None:  # so that requests come to the second model with different lengths
        path = folder / "first" / "config.pbtxt"
        text = path.read_text()
        assert "dynamic_batching" in text
        path.write_text(text.replace("dynamic_batching {\n  max_queue_delay_microseconds: 20000\n}\n", ""))

    settings = settings_in(tmp_path, queue_delay=20_000)
    server = triton_of(settings, three("object"), unbatched)
    names = ["item_ids", "degraded", "generation", "size", "width"]
    with server, grpc.InferenceServerClient(f"{server.host}:{server.grpc_port}") as client:

        def ask(user: int) -> dict[str, np.ndarray]:
            request = grpc.InferInput("user_id", [1, 1], "BYTES")
            request.set_data_from_numpy(np.array([[b"%d" % user]], object))
            outputs = [grpc.InferRequestedOutput(name) for name in names]
            answer = client.infer("recommender", [request], outputs=outputs, client_timeout=10)
            return {name: answer.as_numpy(name)[0] for name in names}

        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(ask, range(100)))
        with Client(settings) as own:
            assert own.recommend(["11"])[0].items[:2] == ["item 1100", "item 1101"]
    for user, answer in enumerate(answers):
        assert answer["item_ids"][1] == b"item %d" % (100 * user + 1)
        assert answer["size"][0] == user % 10 + 1
        assert answer["degraded"][0]  # from the later of its two producers
        assert answer["generation"][0] == 7
    assert any(answer["width"][0] > answer["size"][0] for answer in answers)  # some were padded


def test_the_client_says_what_is_wrong(triton: Served) -> None:
    _, settings = triton
    with Client(settings) as client:
        assert client.ready()
        assert [answer.items[0] for answer in client.recommend(list(range(150)))] == [100 * u for u in range(150)]
        with pytest.raises(ServingError, match="this user makes it fail"):
            client.recommend([FAILS])
        with pytest.raises(ServingError, match="whole numbers of 64 bits, not x"):
            client.recommend(["x"])
        with pytest.raises(ServingError, match="RECSYS_TRITON_EXPLAIN"):
            client.recommend([1], explain=True)
    hasty = settings.model_copy(update={"timeout": SECONDS / 3})
    with Client(hasty) as client, pytest.raises(ServingError, match="did not answer within"):
        client.recommend([SLOW])
    absent = settings.model_copy(update={"host": "127.0.0.1", "grpc_port": 9})
    with Client(absent) as client:
        assert not client.ready()
        with pytest.raises(ServingError, match=r"cannot reach Triton at 127\.0\.0\.1:9: is 'recsys serve' running"):
            client.recommend([1])
