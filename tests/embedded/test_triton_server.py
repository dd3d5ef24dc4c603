"""The embedded Triton: it tells why it does not start, comes back when it dies, and is never left over."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tritonclient.utils import InferenceServerException

from redis_recsys.config import TritonSettings
from redis_recsys.embedded.triton_server import EmbeddedTriton
from redis_recsys.errors import ServingError
from redis_recsys.online.recommender_client import Client
from tests.support.doubles import BROKEN
from tests.support.paths import ROOT
from tests.support.tritons import WHOLE, infer, settings_in, triton_of

OWNER = """
import sys, time
from pathlib import Path
from tests.support.tritons import WHOLE, settings_in, triton_of
with triton_of(settings_in(Path(sys.argv[1])), WHOLE) as server:
    print(server.pid, server.memory, flush=True)
    time.sleep(60)
"""


def group(pid: int) -> dict[int, str]:
    """Processes of a group that are not defunct: id -> name."""
    answer = subprocess.run(["ps", "-eo", "pid=,pgid=,stat=,comm="], capture_output=True, text=True).stdout
    rows = [line.split(None, 3) for line in answer.splitlines()]
    return {int(row[0]): row[3] for row in rows if int(row[1]) == pid and not row[2].startswith("Z")}


def until(holds: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def answers(server: EmbeddedTriton) -> bool:
    with contextlib.suppress(InferenceServerException):
        return bool(infer(server, [2], "item_ids", timeout=5)["item_ids"][0, 0] == 200)
    return False


def shared_memory(prefix: str) -> list[str]:
    return [name for name in os.listdir("/dev/shm") if name.startswith(prefix)]


@contextlib.contextmanager
def watched(server: EmbeddedTriton) -> Iterator[EmbeddedTriton]:
    stop = threading.Event()
    thread = threading.Thread(target=server.watch, args=(stop,))
    with server:
        thread.start()
        try:
            yield server
        finally:
            stop.set()
            thread.join()


def test_a_server_or_a_model_that_is_killed_comes_back_by_itself(tmp_path: Path) -> None:
    with watched(triton_of(settings_in(tmp_path), WHOLE)) as server:
        processes = group(server.pid)
        stub = next(pid for pid, name in processes.items() if name.startswith("triton_python"))
        os.kill(stub, signal.SIGKILL)
        until(lambda: server.restarts == 1 and answers(server))
        old = server.pid
        os.kill(next(pid for pid, name in group(old).items() if name == "tritonserver"), signal.SIGKILL)
        until(lambda: server.restarts == 2 and answers(server))
        assert not group(old)
        last, memory = server.pid, server.memory
        assert shared_memory(memory)
    assert not group(last)
    assert not shared_memory(memory)
    assert not (tmp_path / "server.json").exists()


def test_nothing_is_left_when_the_starter_is_killed(tmp_path: Path) -> None:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", OWNER, str(tmp_path)]
    owner = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path})
    assert owner.stdout is not None
    number, memory = owner.stdout.readline().split()
    pid = int(number)
    assert shared_memory(memory)
    assert {"tritonserver"} <= set(group(pid).values())
    owner.kill()
    owner.wait()
    owner.stdout.close()
    until(lambda: not group(pid))
    until(lambda: not shared_memory(memory))


def test_a_model_that_does_not_load_is_named_with_its_reason(tmp_path: Path) -> None:
    server = triton_of(settings_in(tmp_path), WHOLE, RECSYS_ONLINE_TOPK=str(BROKEN))
    with pytest.raises(ServingError, match=r"does not start: .*this Redis holds no deployment yet"):
        server.start()


def test_a_damaged_model_file_is_named(tmp_path: Path) -> None:
    def damage(folder: Path) -> None:
        (folder / "recommender" / "1" / "model.py").write_text("this is no Python")

    with pytest.raises(ServingError, match=r"does not start: .*SyntaxError|invalid syntax"):
        triton_of(settings_in(tmp_path), WHOLE, damage).start()


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServingError, match=f"{port}.* in use"):
            triton_of(settings_in(tmp_path, grpc_port=port), WHOLE).start()


def test_one_folder_has_one_server(triton: tuple[EmbeddedTriton, TritonSettings]) -> None:
    server, settings = triton
    with pytest.raises(ServingError, match="another Triton runs in"):
        triton_of(settings, WHOLE).start()
    assert answers(server)


def test_what_python_compiled_of_the_backend_is_no_obstacle_to_the_next_start(tmp_path: Path) -> None:
    compiled = tmp_path / "backends" / "python" / "__pycache__"
    compiled.mkdir(parents=True)
    (compiled / "triton_python_backend_utils.cpython-311.pyc").touch()
    with triton_of(settings_in(tmp_path), WHOLE) as server:
        assert infer(server, [5])["rows"].tolist() == [[1]]


def test_backends_of_somebody_elses_triton_stay(tmp_path: Path) -> None:
    theirs = tmp_path / "backends" / "python" / "libtriton_python.so"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"theirs")
    with (
        pytest.raises(ServingError, match=r"backends/python is not this project's: set RECSYS_TRITON_REPOSITORY"),
        triton_of(settings_in(tmp_path), WHOLE),
    ):
        pass
    assert theirs.read_bytes() == b"theirs"


def test_without_a_serving_environment_it_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ServingError, match="recsys setup serving"):
        triton_of(settings_in(tmp_path, environment=tmp_path / "none"), WHOLE).start()


def test_it_listens_on_this_machine_only(triton: tuple[EmbeddedTriton, TritonSettings]) -> None:
    server, _ = triton
    command = " ".join(server.command("x"))
    assert command.count("-address=127.0.0.1") == 3


def test_tls_and_token_are_demanded_and_the_client_says_what_is_missing(tmp_path: Path) -> None:
    for name in ("server", "other"):
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
        command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", f"{name}.key", "-out", f"{name}.pem"]
        subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    certificate = tmp_path / "server.pem"
    server = settings_in(
        tmp_path / "triton", tls_certificate=certificate, tls_key=tmp_path / "server.key", token="sesame"
    )
    with triton_of(server, WHOLE):
        good = server.model_copy(update={"tls": True, "tls_ca": certificate})
        with Client(good) as client:
            assert client.recommend([4])[0].items[0] == 400
        for change, message in (
            ({"tls_ca": tmp_path / "other.pem"}, "TLS"),
            ({"tls": False}, "TLS"),
            ({"token": None}, "RECSYS_TRITON_TOKEN"),
            ({"tls_ca": tmp_path / "absent.pem"}, "RECSYS_TRITON_TLS_CA"),
        ):
            with pytest.raises(ServingError, match=message), Client(good.model_copy(update=change)) as client:
                client.recommend([4])


def test_repeated_requests_come_from_the_cache_when_it_is_on(tmp_path: Path) -> None:
    from tests.support.tritons import metric

    with triton_of(settings_in(tmp_path, cache=True), WHOLE) as server:
        first, second = (infer(server, [8]) for _ in range(2))
        assert {name: values.tolist() for name, values in first.items()} == {
            name: values.tolist() for name, values in second.items()
        }
        assert metric(server, "nv_cache_num_hits_per_model") == 1
