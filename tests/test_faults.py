"""Faults of every kind: the command line explains them in one line, exits non-zero, and leaves nothing half-visible."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis
import yaml

from redis_recsys.store import lock, recommendations
from redis_recsys.store.recommendations import get_many
from tests.support.commands import Outcome
from tests.support.planted import TINY, Trained, planted

Recsys = Callable[..., Outcome]
RECSYS = Path(sys.executable).with_name("recsys")
SMALL = {f"RECSYS_TRAIN_{name.upper()}": str(value) for name, value in TINY.items()}


@pytest.fixture(autouse=True)
def _quick_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A live writer renews its lock within tenths of a second; that of a dead one expires after two seconds."""
    monkeypatch.setattr(lock, "LOCK_SECONDS", 2.0)
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.1)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones included."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def leftovers(folder: Path) -> list[str]:
    """Files that an unfinished write would leave."""
    return [path.name for path in folder.rglob(".*") if ".writing-" in path.name or ".old-" in path.name]


# Raw data


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A user's own tables, as `recsys data tabular` takes them."""
    return planted(tmp_path / "mine")


@pytest.fixture
def read(recsys: Recsys, mine: Path, tmp_path: Path) -> Callable[..., str]:
    """Function that runs `recsys data tabular`, which must fail and leave the old dataset, and returns the error."""
    target = tmp_path / "dataset"
    target.mkdir()
    (target / "manifest.json").write_text('{"version": 1, "split": {}, "rows": {}}')
    before = contents(target)

    def run(*flags: object) -> str:
        tables = ("--users", mine / "users.parquet", "--items", mine / "items.parquet")
        schema = ("--schema", mine / "schema.yaml")
        outcome = recsys("data", "tabular", mine / "interactions", *schema, *tables, "--out", target, *flags)
        error = outcome.error()
        assert contents(target) == before
        assert not leftovers(tmp_path)
        return error

    return run


def change(path: Path, name: str, values: Any, rename: str | None = None) -> None:
    """Replace a column of a parquet file; None as values removes it."""
    table = pq.read_table(path)
    at = table.schema.get_field_index(name)
    table = table.remove_column(at) if values is None else table.set_column(at, rename or name, values(table[name]))
    pq.write_table(table, path)


def with_null(column: pa.ChunkedArray) -> pa.Array:
    values = column.to_pylist()
    return pa.array([*values[:4], None, *values[5:]])


def test_a_missing_column_is_named(read: Callable[..., str], mine: Path) -> None:
    change(mine / "interactions" / "part-0.parquet", "click", None)
    assert "'click'" in read()


def test_a_misnamed_column_is_named_with_what_may_be_meant(read: Callable[..., str], mine: Path) -> None:
    change(mine / "items.parquet", "genres", lambda column: column, rename="genre")
    error = read()
    assert "'genres'" in error
    assert "'genre'" in error


@pytest.mark.parametrize(
    ("file", "column", "values"),
    [
        ("interactions/part-0.parquet", "time", lambda column: pa.array(["yesterday"] * len(column))),
        ("interactions/part-0.parquet", "click", lambda column: pa.array(["yes"] * len(column))),
        ("interactions/part-0.parquet", "user", lambda column: pa.array(np.arange(len(column)) + 0.5)),
        ("users.parquet", "age", lambda column: pa.array(["old"] * len(column))),
        ("items.parquet", "genres", lambda column: pa.array([1] * len(column))),
    ],
)
def test_a_wrong_type_is_named_with_its_column(
    read: Callable[..., str], mine: Path, file: str, column: str, values: Any
) -> None:
    change(mine / file, column, values)
    assert f"{column!r}" in read()


@pytest.mark.parametrize("column", ["user", "item"])
def test_a_null_id_is_named_with_its_row(read: Callable[..., str], mine: Path, column: str) -> None:
    change(mine / "interactions" / "part-0.parquet", column, with_null)
    error = read()
    assert f"{column!r}" in error
    assert "row 5" in error


def test_an_empty_part_of_the_split_is_named(read: Callable[..., str], mine: Path) -> None:
    change(mine / "interactions" / "part-0.parquet", "time", lambda column: pa.array(np.minimum(column, 60)))
    assert "part of the split by 'time' is empty" in read()
    assert "split" in read("--valid", 0.9, "--test", 0.9)


def test_an_unknown_field_of_the_schema_is_named(read: Callable[..., str], mine: Path) -> None:
    schema = yaml.safe_load((mine / "schema.yaml").read_text())
    schema["columns"][1]["cardinalty"] = 3
    (mine / "schema.yaml").write_text(yaml.safe_dump(schema))
    assert "columns.1.cardinalty: is not a known field" in read()


@pytest.mark.parametrize("name", ["interactions/part-0.parquet", "items.parquet"])
def test_a_truncated_file_is_named(read: Callable[..., str], mine: Path, name: str) -> None:
    data = (mine / name).read_bytes()
    (mine / name).write_bytes(data[: len(data) // 2])
    assert str(mine / name) in read()


# Datasets and bundles


@pytest.fixture
def copied(trained: Trained, tmp_path: Path) -> Path:
    """A bundle that a test may damage."""
    return Path(shutil.copytree(trained.bundle.path, tmp_path / "bundle"))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def make_newer(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 99}))


@pytest.mark.parametrize(
    ("damage", "file", "named"),
    [
        (flip, "ranker.onnx", "ranker.onnx does not match its checksum"),
        (flip, "vocab/user.parquet", "vocab/user.parquet does not match its checksum"),
        (make_newer, "manifest.json", "has bundle version 99, this code reads 1"),
        (Path.unlink, "item_embeddings.parquet", "item_embeddings.parquet is missing"),
        (Path.unlink, "manifest.json", "no bundle at"),
    ],
)
def test_a_wrong_bundle_is_named_and_not_deployed(
    recsys: Recsys, trained: Trained, copied: Path, use_server: redis.Redis, damage: Any, file: str, named: str
) -> None:
    assert recsys("batch", trained.bundle.path).code == 0
    before = {key: use_server.dump(key) for key in use_server.scan_iter()}
    damage(copied / file)
    assert named in recsys("batch", copied).error()
    assert named in recsys("evaluate", copied, "--dataset", trained.dataset.path).error()
    assert {key: use_server.dump(key) for key in use_server.scan_iter()} == before


def test_a_bundle_of_another_dataset_is_refused(recsys: Recsys, trained: Trained, bundle_of: Any) -> None:
    other = bundle_of("numerics-no-history").bundle.path
    assert "was not trained on" in recsys("evaluate", other, "--dataset", trained.dataset.path).error()


@pytest.mark.parametrize(
    "file", ["manifest.json", "schema.yaml", "users.parquet", "items.parquet", "train/part-00000.parquet"]
)
def test_a_damaged_dataset_is_named_and_the_bundle_stays(
    recsys: Recsys, trained: Trained, copied: Path, tmp_path: Path, file: str
) -> None:
    dataset = Path(shutil.copytree(trained.dataset.path, tmp_path / "dataset"))
    (dataset / file).write_bytes((dataset / file).read_bytes()[:40])
    before = contents(copied)
    assert str(dataset / file) in recsys("train", dataset, "--out", copied, "--device", "cpu").error()
    assert contents(copied) == before
    assert not leftovers(tmp_path)


# A full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real filesystem of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, text=True, check=False
    )
    if mount.returncode:
        pytest.skip(f"no filesystem can be mounted here: {mount.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def fill(disk: Path, leave: int) -> None:
    """Fill the disk until so many bytes are free."""
    free = shutil.disk_usage(disk).free
    (disk / "ballast").write_bytes(bytes(free - leave))
    assert shutil.disk_usage(disk).free <= leave


def test_a_disk_that_fills_while_data_is_generated(recsys: Recsys, small_disk: Path) -> None:
    error = recsys("data", "synthetic", "--rows", 100_000, "--out", small_disk / "dataset").error()
    assert f"the disk is full while writing {small_disk / 'dataset.raw'}" in error
    assert not contents(small_disk)


@pytest.mark.parametrize("leave", [0, 40_960, 200_000])
def test_a_disk_that_fills_while_a_dataset_is_encoded(recsys: Recsys, mine: Path, small_disk: Path, leave: int) -> None:
    # the planted data is too small to fill the free space, so its rows are repeated many times
    table = pq.read_table(mine / "interactions" / "part-0.parquet")
    random = np.random.default_rng(1)
    table = table.take(random.integers(len(table), size=100_000))
    time = pa.array(random.integers(2**37, size=len(table)))
    pq.write_table(
        table.set_column(table.schema.get_field_index("time"), "time", time), mine / "interactions" / "part-0.parquet"
    )
    fill(small_disk, leave)
    tables = ("--users", mine / "users.parquet", "--items", mine / "items.parquet")
    target = small_disk / "dataset"
    source = ("data", "tabular", mine / "interactions", "--schema", mine / "schema.yaml")
    assert f"the disk is full while writing {target}" in recsys(*source, *tables, "--out", target).error()
    assert set(contents(small_disk)) == {"ballast"}


@pytest.mark.parametrize("leave", [0, 40_960, 614_400])
def test_a_disk_that_fills_while_a_bundle_is_trained(
    recsys: Recsys, trained: Trained, small_disk: Path, monkeypatch: pytest.MonkeyPatch, leave: int
) -> None:
    for name, value in SMALL.items():
        monkeypatch.setenv(name, value)
    fill(small_disk, leave)
    target = small_disk / "bundle"
    assert "disk is full" in recsys("train", trained.dataset.path, "--out", target).error()
    assert not target.exists()
    assert not leftovers(small_disk)


def test_a_disk_that_fills_under_the_embedded_redis(
    recsys: Recsys, trained: Trained, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECSYS_REDIS_FOLDER", str(small_disk / "redis"))
    assert recsys("batch", trained.bundle.path, "--topk", 3).code == 0
    live = json.loads(recsys("get", 5, "--json").out)
    fill(small_disk, 8_192)
    assert "cannot write to its disk" in recsys("batch", trained.bundle.path, "--topk", 20).error()
    (small_disk / "ballast").unlink()
    assert json.loads(recsys("get", 5, "--json").out) == live
    assert recsys("batch", trained.bundle.path, "--topk", 20).code == 0
    assert not (small_disk / "redis" / "server.json").exists()


# Redis


@pytest.mark.parametrize("verb", ["batch", "get"])
def test_redis_that_is_down_is_named(recsys: Recsys, trained: Trained, verb: str) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nobody listens
        port = closed.getsockname()[1]
        argument = trained.bundle.path if verb == "batch" else 1
        assert f"127.0.0.1:{port}" in recsys(verb, argument, "--host", "127.0.0.1", "--port", port).error()


@pytest.mark.parametrize("verb", ["batch", "get"])
def test_a_wrong_password_is_named_and_not_shown(
    recsys: Recsys, trained: Trained, use_server: redis.Redis, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.setenv("RECSYS_REDIS_PASSWORD", "hush-hush")
    error = recsys(verb, trained.bundle.path if verb == "batch" else 1).error()
    assert "RECSYS_REDIS_PASSWORD" in error
    assert "hush-hush" not in error


def test_an_empty_redis_is_said(recsys: Recsys, use_server: redis.Redis) -> None:
    assert "recsys batch" in recsys("get", 1).error()


def test_redis_out_of_memory_leaves_the_live_generation(
    recsys: Recsys, trained: Trained, use_server: redis.Redis
) -> None:
    assert recsys("batch", trained.bundle.path, "--topk", 3).code == 0
    live = get_many(use_server, [1, 5, 999_999])
    used = use_server.info("memory")["used_memory"]
    use_server.config_set("maxmemory", used + 20_000)
    try:
        assert "out of memory" in recsys("batch", trained.bundle.path, "--topk", 20, "--block", 16).error()
        assert get_many(use_server, [1, 5, 999_999]) == live
    finally:
        use_server.config_set("maxmemory", 0)
    assert use_server.hgetall("recs:generations") == {live[0].generation.encode(): b"live"}
    assert not use_server.keys("recs:2*")


def test_redis_killed_while_it_is_written_to(
    recsys: Recsys, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECSYS_REDIS_FOLDER", str(tmp_path / "redis"))
    arguments = ("batch", trained.bundle.path, "--block", 16)
    assert recsys(*arguments, "--topk", 3).code == 0
    live = json.loads(recsys("get", 1, 5, 999_999, "--json").out)
    blocks, encode = iter(range(100)), recommendations.encode
    server: list[int] = []

    def kill(*args: Any) -> Any:
        if next(blocks) == 4:
            server.append(json.loads((tmp_path / "redis" / "server.json").read_text())["pid"])
            os.killpg(os.getpgid(server[0]), signal.SIGKILL)  # with the shell, which would start it again
        return encode(*args)

    with monkeypatch.context() as patch:
        patch.setattr(recommendations, "encode", kill)
        assert "Redis at 127.0.0.1:" in recsys(*arguments, "--topk", 6).error()
    assert gone(server[0])
    assert json.loads(recsys("get", 1, 5, 999_999, "--json").out) == live
    report = json.loads(recsys(*arguments, "--topk", 6, "--json").out)
    assert report["resumed_at"] in (48, 64)  # the last block may not have reached the disk
    assert len(json.loads(recsys("get", 5, "--json").out)["items"]) == 6


# Ctrl-C


def gone(pid: int, seconds: float = 10) -> bool:
    """Whether a process ends in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False


def interrupted(folder: Path, when: Callable[[], object], *args: object, **variables: str) -> str:
    """Start a command in a folder, press Ctrl-C as soon as a condition holds, and return its error."""
    process = subprocess.Popen(
        [RECSYS, *map(str, args)],
        cwd=folder,
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 60
        while not when():
            assert process.poll() is None, f"ended before it could be interrupted: {process.communicate()}"
            assert time.monotonic() < deadline
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGINT)  # the terminal sends it to the whole group
        out, err = process.communicate(timeout=30)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert process.returncode == 130, err
    return Outcome(process.returncode, out, err).error()


def exists(folder: Path, pattern: str) -> Callable[[], bool]:
    return lambda: any(folder.glob(pattern))


def test_ctrl_c_while_data_is_generated(tmp_path: Path) -> None:
    written = exists(tmp_path, "data/.dataset.raw.writing-*/interactions/part-00000.parquet")
    assert interrupted(tmp_path, written, "data", "synthetic", "--rows", 5_000_000) == "error: interrupted"
    assert not contents(tmp_path)
    assert not leftovers(tmp_path)


def test_ctrl_c_while_a_dataset_is_encoded(tmp_path: Path, recsys: Recsys) -> None:
    assert recsys("data", "synthetic", "--rows", 1000).code == 0
    before = contents(tmp_path / "data" / "dataset")
    encoding = exists(tmp_path, "data/.dataset.writing-*/train")
    assert interrupted(tmp_path, encoding, "data", "synthetic", "--rows", 2_000_000) == "error: interrupted"
    assert contents(tmp_path / "data" / "dataset") == before
    assert not leftovers(tmp_path)


def test_ctrl_c_while_training_leaves_the_old_bundle_and_can_be_resumed(
    trained: Trained, copied: Path, tmp_path: Path, recsys: Recsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(copied)
    many = SMALL | {"RECSYS_TRAIN_EPOCHS": "100000", "RECSYS_TRAIN_PATIENCE": "100000"}
    train = ("train", trained.dataset.path, "--out", copied)
    begun = exists(tmp_path, ".bundle.checkpoint/retrieval.pt")
    assert interrupted(tmp_path, begun, *train, **many) == "error: interrupted"
    assert contents(copied) == before
    assert not leftovers(tmp_path)
    for name, value in SMALL.items():
        monkeypatch.setenv(name, value)
    assert recsys(*train, "--resume").code == 0
    assert not (tmp_path / ".bundle.checkpoint").exists()
    assert contents(copied) != before


def test_ctrl_c_while_redis_is_written_to(
    trained: Trained, tmp_path: Path, recsys: Recsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data" / "redis"
    bundle = many_users(trained.bundle.path, tmp_path / "many users", 8)
    write = ("batch", bundle, "--block", 1)
    assert recsys("batch", bundle, "--topk", 3).code == 0
    live = json.loads(recsys("get", 1, 5, 999_999, "--json").out)
    server: list[int] = []

    def writing() -> bool:
        try:
            state = json.loads((folder / "server.json").read_text())
            server[:] = [state["pid"]]
            with redis.Redis(port=state["port"], password=state["password"]) as client:
                return int(client.hget("recs:2", "done") or 0) > 100
        except (FileNotFoundError, redis.RedisError):
            return False

    assert interrupted(tmp_path, writing, *write, "--topk", 6) == "error: interrupted"
    assert gone(server[0])
    assert not (folder / "server.json").exists()
    assert json.loads(recsys("get", 1, 5, 999_999, "--json").out) == live
    report = json.loads(recsys(*write, "--topk", 6, "--json").out)
    assert report["resumed_at"] > 100
    assert len(json.loads(recsys("get", 5, "--json").out)["items"]) == 6


def many_users(bundle: Path, target: Path, times: int) -> Path:
    """The bundle with its users repeated many times under other ids, so that scoring takes a while."""
    shutil.copytree(bundle, target)
    users = pq.read_table(target / "user_features.parquet")
    copies = []
    for number in range(times):
        ids = pa.array(users["raw_id"].to_numpy() + 10_000 * number)
        copies.append(users.set_column(users.schema.get_field_index("raw_id"), "raw_id", ids))
    histories = pq.read_table(target / "history.parquet")
    pq.write_table(pa.concat_tables(copies), target / "user_features.parquet")
    pq.write_table(pa.concat_tables([histories] * times), target / "history.parquet")
    manifest = json.loads((target / "manifest.json").read_text())
    manifest["users"] *= times
    for name in ("user_features.parquet", "history.parquet"):
        manifest["files"][name] = describe(target / name)
    (target / "manifest.json").write_text(json.dumps(manifest))
    return target


def describe(path: Path) -> dict[str, object]:
    from redis_recsys.utils.files import sha256

    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def test_ctrl_c_while_waiting_for_redis(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(0.001)
        accepted: list[socket.socket] = []

        def waiting() -> bool:
            try:
                accepted.append(silent.accept()[0])
            except TimeoutError:
                return False
            return True

        port = silent.getsockname()[1]
        get_one = ("get", 1, "--host", "127.0.0.1", "--port", port)
        assert interrupted(tmp_path, waiting, *get_one, RECSYS_REDIS_TIMEOUT="60") == "error: interrupted"
        for connection in accepted:
            connection.close()
    assert not contents(tmp_path)
