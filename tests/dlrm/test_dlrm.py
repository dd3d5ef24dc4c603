"""The model ``dlrm`` in a real Triton, over a real cluster, asked in HugeCTR's form."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
import tritonclient.http as httpclient
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from redis_recsys.config import Settings, load_settings
from redis_recsys.dlrm.configure import PS, Place, configure, configure_hugectr
from redis_recsys.dlrm.dlrm_client import DlrmClient
from redis_recsys.dlrm.dlrm_serving import reached, serving
from redis_recsys.dlrm.statistics import statistics
from redis_recsys.embedded.redis_cluster import EmbeddedCluster
from redis_recsys.embedded.triton_server import EmbeddedTriton
from redis_recsys.errors import DataError, ServingError
from redis_recsys.hugectr import dense, network, sparse
from redis_recsys.hugectr.network import DlrmShape
from redis_recsys.parameter_server.remote import Remote
from redis_recsys.utils.output_kinds import DENSE, NETWORK, SPARSE
from tests.support.paths import ROOT

RECSYS = Path(sys.executable).parent / "recsys"
SHAPE = DlrmShape(13, (40,) * 26, 16, (32, 16), (32, 1))
TABLE = "dlrm.sparse_embedding0"


@dataclass(frozen=True)
class World:
    """A served model and its parts."""

    triton: EmbeddedTriton
    cluster: EmbeddedCluster
    settings: Settings
    ps: Path
    layers: list[dense.Layer]
    rows: np.ndarray

    def expected(self, features: np.ndarray, embeddings: np.ndarray) -> np.ndarray:
        """The trained model's probabilities, computed here: features [n, 13], embeddings [n, 26, 16]."""
        x = features.astype(np.float64)
        for kernel, bias in self.layers[:2]:
            x = np.maximum(x @ kernel + bias, 0)
        vectors = np.concatenate([x[:, None], embeddings], axis=1)
        gram = vectors @ vectors.transpose(0, 2, 1)
        pairs = np.stack([gram[:, i, j] for i in range(27) for j in range(i)], axis=1)
        z = np.concatenate([x, pairs, np.zeros((len(x), 1))], axis=1)
        z = np.maximum(z @ self.layers[2][0] + self.layers[2][1], 0) @ self.layers[3][0] + self.layers[3][1]
        return 1 / (1 + np.exp(-z[:, 0]))

    def client(self) -> grpc.InferenceServerClient:
        return grpc.InferenceServerClient(f"127.0.0.1:{self.triton.grpc_port}")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("dlrm")
    random = np.random.default_rng(0)
    layers = [
        ((random.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32), random.random(shape[1], np.float32))
        for shape in SHAPE.layers()
    ]
    rows = random.standard_normal((sum(SHAPE.slot_sizes), SHAPE.dim), np.float32)
    model = folder / "dlrm"
    network.write(model / NETWORK, SHAPE)
    dense.write(model / DENSE, layers)
    sparse.write(model / SPARSE, [(np.arange(len(rows)), rows)])
    ports = {"grpc_port": 0, "http_port": 0, "metrics_port": 0}
    settings = load_settings(triton=ports | {"repository": folder / "triton", "environment": ROOT / ".venv-serving"})
    with EmbeddedCluster(folder / "cluster", persist=False) as cluster:
        settings = reached(settings, cluster)
        ps = configure(model, Place())
        with serving(ps, settings) as triton:
            yield World(triton, cluster, settings, ps, layers, rows)


def some(count: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.random((count, 13), np.float32), random.integers(0, 40, (count, 26)) + np.array(SHAPE.offsets())


def tensors(features: np.ndarray, keys: np.ndarray, pointers: np.ndarray) -> list[grpc.InferInput]:
    """Inputs in the form of the public notebook of Merlin and Redis."""
    inputs = []
    for name, value in (("DES", features), ("CATCOLUMN", keys), ("ROWINDEX", pointers)):
        inputs.append(grpc.InferInput(name, value.shape, np_to_triton_dtype(value.dtype)))
        inputs[-1].set_data_from_numpy(value)
    return inputs


def test_the_public_notebooks_request_is_answered_like_the_trained_model(world: World) -> None:
    features, keys = some(10)
    dense_features = np.array([list(features.flatten())], dtype="float32")
    embedding_columns = np.array([list(keys.flatten())], dtype="int64")
    row_ptrs = np.array([list(range(0, 261))], dtype="int32")
    with world.client() as client:
        inputs = tensors(dense_features, embedding_columns, row_ptrs)
        answer = client.infer("dlrm", inputs, request_id="1", outputs=[grpc.InferRequestedOutput("OUTPUT0")])
    found = answer.as_numpy("OUTPUT0")
    assert found.shape == (10,)  # one line, like HugeCTR's answers
    np.testing.assert_allclose(found, world.expected(features, world.rows[keys]), atol=1e-5)


def test_the_public_notebooks_http_client_gets_the_same(world: World) -> None:
    features, keys = some(10)
    values = {"DES": features.reshape(1, -1), "CATCOLUMN": keys.reshape(1, -1), "ROWINDEX": np.arange(261)[None]}
    types = {"DES": np.float32, "CATCOLUMN": np.int64, "ROWINDEX": np.int32}
    inputs = []
    for name, value in values.items():
        inputs.append(httpclient.InferInput(name, value.shape, np_to_triton_dtype(types[name])))
        inputs[-1].set_data_from_numpy(value.astype(types[name]))
    with httpclient.InferenceServerClient(f"localhost:{world.triton.http_port}") as client:
        answer = client.infer("dlrm", inputs, request_id="1", outputs=[httpclient.InferRequestedOutput("OUTPUT0")])
    np.testing.assert_allclose(answer.as_numpy("OUTPUT0"), world.expected(features, world.rows[keys]), atol=1e-5)
    # HugeCTR's answers had NumSample and DeviceID here, and so have ours from Triton 25.02 on; this is 24.10
    assert "parameters" not in answer.get_response()


class Response:
    """Triton's response, from 25.02 on."""

    def __init__(self, output_tensors: Sequence[Any], parameters: dict[str, Any] | None = None) -> None:
        self.output_tensors, self.parameters = output_tensors, parameters


def test_answers_say_how_many_samples_and_on_which_device_where_triton_can(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = SimpleNamespace(InferenceResponse=Response, Tensor=lambda name, values: (name, values))
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", backend)
    for name in ("redis_recsys.dlrm.dlrm_model", "redis_recsys.triton.python_backend"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module("redis_recsys.dlrm.dlrm_model")
    assert module.takes_parameters(Response)
    assert not module.takes_parameters(lambda output_tensors, error=None: None)
    model = object.__new__(module.TritonPythonModel)
    model.takes_parameters, model.device = True, 1
    assert model.response(np.zeros(10, np.float32)).parameters == {"NumSample": 10, "DeviceID": 1}
    for name in ("redis_recsys.dlrm.dlrm_model", "redis_recsys.triton.python_backend"):
        monkeypatch.delitem(sys.modules, name)


def test_the_same_over_http(world: World) -> None:
    features, keys = some(10)
    values = {"DES": features, "CATCOLUMN": keys, "ROWINDEX": np.arange(261)}
    types = {"DES": "FP32", "CATCOLUMN": "INT64", "ROWINDEX": "INT32"}
    inputs = [
        {"name": name, "datatype": types[name], "shape": [1, value.size], "data": value.ravel().tolist()}
        for name, value in values.items()
    ]
    url = f"http://127.0.0.1:{world.triton.http_port}/v2/models/dlrm/infer"
    with urllib.request.urlopen(url, json.dumps({"inputs": inputs}).encode()) as answer:
        (output,) = json.load(answer)["outputs"]
    assert output["shape"] == [10]
    np.testing.assert_allclose(output["data"], world.expected(features, world.rows[keys]), atol=1e-5)


@pytest.mark.parametrize("count", [1, 64, 1000])
def test_any_number_of_samples_is_answered(world: World, count: int) -> None:
    features, keys = some(count, count)
    with DlrmClient(world.settings.triton) as client:
        found = client.predict(features, keys)
    np.testing.assert_allclose(found, world.expected(features, world.rows[keys]), atol=1e-5)


def test_requests_of_different_lengths_wait_together_and_get_their_own_answers(world: World) -> None:
    sizes = [1, 5, 64, 2, 30, 1, 7, 11] * 4
    answers: dict[int, np.ndarray] = {}

    def ask(number: int) -> None:
        with DlrmClient(world.settings.triton) as client:
            answers[number] = client.predict(*some(sizes[number], number))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(sizes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, size in enumerate(sizes):
        features, keys = some(size, number)
        np.testing.assert_allclose(answers[number], world.expected(features, world.rows[keys]), atol=1e-5)


def test_slots_with_no_or_several_keys_are_summed(world: World) -> None:
    features, _ = some(2)
    random = np.random.default_rng(3)
    counts = random.integers(0, 3, 2 * 26)
    pointers = np.concatenate([[0], np.cumsum(counts)])
    keys = random.integers(0, len(world.rows), pointers[-1])
    embeddings = np.zeros((2 * 26, SHAPE.dim))
    for slot in range(2 * 26):
        embeddings[slot] = world.rows[keys[pointers[slot] : pointers[slot + 1]]].sum(axis=0)
    with world.client() as client:
        inputs = tensors(features.reshape(1, -1), keys[None], pointers[None].astype(np.int32))
        found = client.infer("dlrm", inputs).as_numpy("OUTPUT0")
    np.testing.assert_allclose(found, world.expected(features, embeddings.reshape(2, 26, -1)), atol=1e-5)


def test_rows_of_a_request_are_samples_too(world: World) -> None:
    """perf_analyzer -b sends one sample per row, each with its own row pointers."""
    features, keys = some(4)
    pointers = np.tile(np.arange(27, dtype=np.int32), (4, 1))
    with world.client() as client:
        found = client.infer("dlrm", tensors(features, keys, pointers)).as_numpy("OUTPUT0")
    np.testing.assert_allclose(found, world.expected(features, world.rows[keys]), atol=1e-5)


def test_keys_outside_the_table_get_the_default_vector(world: World) -> None:
    features, keys = some(1)
    keys[0, 5] = 10_000_000
    embeddings = world.rows[np.minimum(keys, len(world.rows) - 1)].copy()
    embeddings[0, 5] = 0
    with DlrmClient(world.settings.triton) as client:
        found = client.predict(features, keys)
    np.testing.assert_allclose(found, world.expected(features, embeddings), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"DES": np.zeros((1, 14), np.float32)}, "DES has 14 values, not a multiple of 13"),
        (
            {"ROWINDEX": np.arange(26, dtype=np.int32)[None]},
            "ROWINDEX has 26 values, and 1 samples of 26 slots",
        ),
        ({"ROWINDEX": np.arange(27, dtype=np.int32)[None] + 1}, "ROWINDEX must rise from 0 to 26"),
        ({"ROWINDEX": np.r_[0, 2, 1, np.arange(3, 27)].astype(np.int32)[None]}, "ROWINDEX must rise"),
        ({"CATCOLUMN": np.zeros((1, 25), np.int64)}, "ROWINDEX must rise from 0 to 25"),
        ({"DES": np.full((1, 13), np.nan, np.float32)}, "DES holds values that are not finite"),
        ({"CATCOLUMN": np.zeros((1, 26), np.int32)}, "CATCOLUMN"),
    ],
)
def test_a_malformed_request_is_refused_by_name_and_the_next_is_answered(
    world: World, change: dict[str, np.ndarray], reason: str
) -> None:
    features, keys = some(1)
    inputs = {"DES": features, "CATCOLUMN": keys, "ROWINDEX": np.arange(27, dtype=np.int32)[None]} | change
    with world.client() as client:
        with pytest.raises(InferenceServerException, match=reason):
            client.infer("dlrm", tensors(inputs["DES"], inputs["CATCOLUMN"], inputs["ROWINDEX"]))
        assert client.infer("dlrm", tensors(features, keys, np.arange(27, dtype=np.int32)[None])) is not None


def test_a_bad_request_takes_no_other_of_its_batch_with_it(world: World) -> None:
    features, keys = some(1)
    good = tensors(features, keys, np.arange(27, dtype=np.int32)[None])
    bad = tensors(features, keys, np.arange(27, dtype=np.int32)[None] + 1)
    done: list[tuple[bool, bool]] = []
    finished = threading.Semaphore(0)

    def note(is_good: bool):  # type: ignore[no-untyped-def]
        def finish(result, error) -> None:  # type: ignore[no-untyped-def]
            done.append((is_good, error is None))
            finished.release()

        return finish

    with grpc.InferenceServerClient(f"127.0.0.1:{world.triton.grpc_port}") as client:
        for number in range(40):
            client.async_infer("dlrm", bad if number % 4 == 0 else good, note(number % 4 != 0))
        for _ in range(40):
            assert finished.acquire(timeout=20)
    assert all(is_good == worked for is_good, worked in done)


def test_perf_analyzer_measures_it_as_it_measured_hugectr(world: World, tmp_path: Path) -> None:
    """The command line is that of the public notebook."""
    features, keys = some(64)
    data = {"DES": features.ravel().tolist(), "CATCOLUMN": keys.ravel().tolist(), "ROWINDEX": list(range(64 * 26 + 1))}
    content = {name: {"content": value, "shape": [len(value)]} for name, value in data.items()}
    (tmp_path / "64.json").write_text(json.dumps({"data": [content]}))
    command = [str(RECSYS), "perf-analyzer", "-m", "dlrm", "-u", f"localhost:{world.triton.http_port}"]
    command += ["--input-data", str(tmp_path / "64.json")]
    command += ["--shape", "CATCOLUMN:1664", "--shape", "DES:832", "--shape", "ROWINDEX:1665"]
    command += ["--measurement-interval", "300", "--max-trials", "3", "-s", "999"]
    variables = os.environ | {"RECSYS_TRITON_ENVIRONMENT": str(ROOT / ".venv-serving")}
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120, env=variables)
    assert answer.returncode == 0
    assert "Throughput:" in answer.stdout, answer.stdout + answer.stderr
    assert "error" not in answer.stderr.lower()


def test_published_rows_change_the_answer_within_a_second(world: World) -> None:
    features, keys = some(1, seed=77)
    changed = np.unique(keys)
    rows = np.random.default_rng(7).standard_normal((len(changed), SHAPE.dim)).astype(np.float32)
    table = world.rows.copy()
    table[changed] = rows
    with DlrmClient(world.settings.triton) as client:
        client.predict(features, keys)  # now they are in the cache
        with Remote.open(world.ps, world.settings) as remote:
            remote.publish(TABLE, changed, rows)
            deadline = time.monotonic() + 1.0
            expected = world.expected(features, table[keys])
            while abs(client.predict(features, keys) - expected).max() > 1e-5:
                assert time.monotonic() < deadline
            remote.publish(TABLE, changed, world.rows[changed])
            while abs(client.predict(features, keys) - world.expected(features, world.rows[keys])).max() > 1e-5:
                assert time.monotonic() < deadline + 2


def test_rows_that_are_changed_for_a_while_are_put_back_even_after_an_error(world: World) -> None:
    features, keys = some(4, seed=78)
    changed = np.unique(keys)
    ones = np.ones((len(changed), SHAPE.dim), np.float32)
    table = world.rows.copy()
    table[changed] = ones
    with DlrmClient(world.settings.triton) as client, Remote.open(world.ps, world.settings) as remote:
        before = client.predict(features, keys)
        with pytest.raises(ZeroDivisionError), remote.changed(TABLE, changed, ones):
            fail_after(lambda: answers_become(client, features, keys, world.expected(features, table[keys])))
        np.testing.assert_array_equal(remote.rows(TABLE, changed), world.rows[changed])
        answers_become(client, features, keys, world.expected(features, world.rows[keys]))
        np.testing.assert_allclose(client.predict(features, keys), before, atol=1e-6)


def fail_after(action: Callable[[], None]) -> None:
    """Do something, then fail."""
    action()
    raise ZeroDivisionError


def answers_become(client: DlrmClient, features: np.ndarray, keys: np.ndarray, expected: np.ndarray) -> None:
    """Ask until the answers are those expected, for five seconds."""
    deadline = time.monotonic() + 5.0
    while abs(client.predict(features, keys) - expected).max() > 1e-5:
        assert time.monotonic() < deadline


def test_rows_that_redis_lacks_cannot_be_changed_for_a_while(world: World) -> None:
    missing = np.array([0, len(world.rows) + 5])
    with Remote.open(world.ps, world.settings) as remote:
        with (
            pytest.raises(DataError, match=f"no row for key {missing[1]}"),
            remote.changed(TABLE, missing, np.ones((2, SHAPE.dim), np.float32)),
        ):
            pass
        np.testing.assert_array_equal(remote.rows(TABLE, missing[:1]), world.rows[:1])


def test_what_was_published_is_in_the_dumped_table(world: World, tmp_path: Path) -> None:
    with Remote.open(world.ps, world.settings) as remote:
        assert remote.dump(TABLE, tmp_path / "dump") >= len(world.rows)
        with pytest.raises(DataError, match=r"no table 'dlrm\.other'"):
            remote.dump("dlrm.other", tmp_path / "other")
    table = sparse.SparseModel(tmp_path / "dump", SHAPE.dim)
    found = {int(key): row for key, row in zip(table.keys, table.rows, strict=True)}
    for key in range(0, len(world.rows), 97):
        np.testing.assert_array_equal(found[key], world.rows[key])


def test_a_dead_node_of_the_cluster_changes_no_answer(world: World) -> None:
    features, keys = some(64, seed=5)
    with DlrmClient(world.settings.triton) as client:
        world.cluster.kill(2)
        try:
            for seed in range(5, 10):
                features, keys = some(64, seed)
                started = time.monotonic()
                found = client.predict(features, keys)
                assert time.monotonic() - started < 3
                np.testing.assert_allclose(found, world.expected(features, world.rows[keys]), atol=1e-5)
        finally:
            world.cluster.restart(2)


def test_hits_are_on_the_metrics_port(world: World) -> None:
    before = statistics(world.triton.host, world.triton.metrics_port)[TABLE]
    with DlrmClient(world.settings.triton) as client:
        for _ in range(10):
            client.predict(*some(1, seed=123))
            time.sleep(0.02)  # so that the rows are in the cache
    deadline = time.monotonic() + 10
    while (after := statistics(world.triton.host, world.triton.metrics_port)[TABLE]).keys < before.keys + 260:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert after.keys == before.keys + 260
    assert after.cache >= before.cache + 130
    with pytest.raises(ServingError, match="cannot read Triton's metrics"):
        statistics("127.0.0.1", 1)


def test_a_killed_model_process_comes_back_with_everything(world: World) -> None:
    features, keys = some(3)
    stop = threading.Event()
    watcher = threading.Thread(target=world.triton.watch, args=(stop,))
    watcher.start()
    try:
        restarts = world.triton.restarts
        out = subprocess.run(
            ["pgrep", "-g", str(world.triton.pid), "-f", "triton_python_backend_stub"], capture_output=True
        )
        os.kill(int(out.stdout.split()[0]), signal.SIGKILL)
        deadline = time.monotonic() + 60
        while world.triton.restarts == restarts:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        with DlrmClient(world.settings.triton) as client:
            found = client.predict(features, keys)
        np.testing.assert_allclose(found, world.expected(features, world.rows[keys]), atol=1e-5)
    finally:
        stop.set()
        watcher.join()


def test_the_models_configuration_names_hugectrs_tensors(world: World) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{world.triton.http_port}/v2/models/dlrm") as answer:
        document = json.load(answer)
    inputs = {field["name"]: field["datatype"] for field in document["inputs"]}
    assert inputs == {"DES": "FP32", "CATCOLUMN": "INT64", "ROWINDEX": "INT32"}
    assert [(field["name"], field["datatype"]) for field in document["outputs"]] == [("OUTPUT0", "FP32")]


def test_a_ps_json_that_does_not_fit_the_model_is_said_at_the_start(world: World, tmp_path: Path) -> None:
    for file in (NETWORK, DENSE, SPARSE):
        (tmp_path / file).symlink_to(world.ps.parent / file)
    document = json.loads(world.ps.read_text())
    document["persistent_db"]["path"] = "rocks"
    document["models"][0]["dense_file"] = "gone.model"
    (tmp_path / PS).write_text(json.dumps(document))
    own = world.settings.triton.model_copy(update={"repository": tmp_path / "triton"})
    settings = world.settings.model_copy(update={"triton": own})
    with (
        pytest.raises(ServingError, match=r"cannot read the dense weights .*gone\.model"),
        serving(tmp_path / PS, settings),
    ):
        pass


def test_the_configurations_for_nvidias_container_are_those_of_the_repository(tmp_path: Path) -> None:
    """large-scale-recsys/hugectr is generated, for the public Criteo tables and the cluster of the compose file."""
    sizes = (4976199, 25419, 14705, 7112, 19283, 4, 6391, 1282, 60, 3289052, 282487, 138210, 11, 2203, 8901, 67, 4, 948,
             15, 5577159, 1385790, 4348882, 178673, 10023, 88, 34)  # fmt: skip
    public = DlrmShape(13, sizes, 128, (512, 256, 128), (1024, 1024, 512, 256, 1))
    folder = ROOT / "large-scale-recsys" / "hugectr"
    address = json.loads((folder / "ps.json").read_text())["volatile_db"]["address"]
    configure_hugectr(public, tmp_path, Place("/model-data/dlrm/1/", address, "/tmp/rocksdb"))
    for name in ("ps.json", "config.pbtxt"):
        assert (tmp_path / name).read_text() == (folder / name).read_text()
