"""The load generator of the benchmarks, against a gRPC server that answers as Triton does."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from benchmarks.online.load import OUTPUTS, Answers, Load, order, requests, run, summary

TOPK = 4


def answer(items: list[int], degraded: bool = False) -> bytes:
    """As Triton writes it."""
    response = service_pb2.ModelInferResponse(model_name="recommender")
    for name, column in (("item_ids", np.array(items, np.int64)), ("degraded", np.array([degraded]))):
        response.outputs.add(name=name)
        response.raw_output_contents.append(column.tobytes())
    return response.SerializeToString()


def user_of(request: bytes) -> int:
    return int.from_bytes(service_pb2.ModelInferRequest.FromString(request).raw_input_contents[0], "little")


@contextmanager
def serving(recommend: Callable[[int, grpc.ServicerContext], bytes], threads: int = 4) -> Iterator[str]:
    """A server whose ``ModelInfer`` calls ``recommend`` with the user; yields its address."""
    handler = grpc.unary_unary_rpc_method_handler(lambda request, context: recommend(user_of(request), context))
    server = grpc.server(ThreadPoolExecutor(threads))
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("inference.GRPCInferenceService", {"ModelInfer": handler})]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def test_every_request_is_for_another_user_and_otherwise_the_same() -> None:
    made = [service_pb2.ModelInferRequest.FromString(each) for each in requests(300, None)]
    users = [int.from_bytes(each.raw_input_contents[0], "little") for each in made]
    assert sorted(users) == list(range(1, 301))
    assert users != sorted(users)
    for each in made:
        assert (each.model_name, [output.name for output in each.outputs]) == ("recommender", list(OUTPUTS))
        assert [(field.name, field.datatype, list(field.shape)) for field in each.inputs] == [
            ("user_id", "INT64", [1, 1])
        ]


def test_repeated_users_are_the_first_ones_again_and_again() -> None:
    users = [user_of(each) for each in itertools.islice(requests(300, 5), 12)]
    assert users == (order(300)[:5] * 3)[:12]


def test_the_summary_counts_what_is_wrong_and_takes_percentiles() -> None:
    good, popular = answer([1, 2, 3, 4]), answer([1, 2, 3, 4], degraded=True)
    raw = [good] * 96 + [popular, popular, answer([1, 2, 3, -1]), answer([1, 2, 2, 3])]
    latencies = [number / 1000 for number in range(1, 101)]
    found = summary(Answers(latencies, raw, Counter(UNAVAILABLE=3), seconds=2.0), TOPK)
    assert (found["requests"], found["per_second"]) == (100, 50)
    assert (found["degraded"], found["short"], found["errors"]) == (2, 2, {"UNAVAILABLE": 3})
    assert [found["p50_ms"], found["p99_ms"], found["max_ms"]] == pytest.approx([50.5, 99.01, 100])


def test_a_closed_load_asks_for_nobody_twice_and_counts_errors_by_kind() -> None:
    asked: Counter[int] = Counter()

    def recommend(user: int, context: grpc.ServicerContext) -> bytes:
        asked[user] += 1
        if user % 10 == 0:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no such user")
        return answer([1, 2, 3, 4])

    with serving(recommend) as address:
        found = run(Load(address, 200, TOPK, seconds=60, warm_up=0.0))
    assert asked == dict.fromkeys(range(1, 201), 1)
    assert (found["requests"], found["errors"]) == (180, {"INVALID_ARGUMENT: no such user": 20})
    assert found["seconds"] < 30  # it ends when nobody is left
    assert found["cpu_us"]["load generator"] > 0


def test_an_open_load_keeps_its_rate_and_everybody_behind_a_stall_counts_it() -> None:
    stalled = itertools.count()

    def recommend(user: int, context: grpc.ServicerContext) -> bytes:
        if not next(stalled):
            time.sleep(0.5)
        return answer([1, 2, 3, 4])

    with serving(recommend, threads=1) as address:
        found = run(Load(address, 1000, TOPK, seconds=0.5, warm_up=0.0, rate=200))
    assert (found["requests"], found["errors"]) == (100, {})
    assert found["p50_ms"] > 150  # in a closed load only as many as there are workers would have waited
    assert found["max_ms"] >= 500
