"""Datasets and bundles to and from a real S3 server (moto) on loopback."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from redis_recsys.bundle import s3
from redis_recsys.errors import ConfigError, DataError

URL = "s3://assets/models/v1"
FILES = {
    "manifest.json": b'{"version": 1, "trainer": "torch", "files": {}}',
    "item_tower.onnx": bytes(range(256)) * 50_000,  # 12.8 MB, more than one part
    "vocab/user_id.parquet": b"users",
    "vocab/item_id.parquet": b"items",
    "vocab/empty.parquet": b"",
}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    for name, value in {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "tester",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    bucket = boto3.resource("s3").Bucket("assets")
    bucket.create()
    yield bucket
    bucket.objects.all().delete()
    bucket.delete()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write(tmp_path / "bundle", FILES)


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def key_of(bucket: Any, name: str) -> str:
    return next(o.key for o in bucket.objects.all() if o.key.endswith(name))


def test_what_is_pushed_is_pulled(bucket: Any, bundle: Path, tmp_path: Path) -> None:
    s3.push(bundle, URL)
    s3.pull(URL + "/", tmp_path / "new" / "bundle")
    assert content(tmp_path / "new" / "bundle") == FILES
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["bundle"]


def test_a_bucket_can_be_the_asset(bucket: Any, bundle: Path, tmp_path: Path) -> None:
    s3.push(bundle, "s3://assets")
    s3.pull("s3://assets", tmp_path / "pulled")
    assert content(tmp_path / "pulled") == FILES


def test_a_cut_pull_shows_nothing_and_fetches_only_the_rest(
    bucket: Any, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.push(bundle, URL)
    fetched: list[str] = []
    verify = s3.sha256

    def cut(path: Path) -> str:
        fetched.append(path.name)
        if len(fetched) == 3:
            raise KeyboardInterrupt
        return verify(path)

    monkeypatch.setattr(s3, "FILES_AT_ONCE", 1)
    monkeypatch.setattr(s3, "sha256", cut)
    with pytest.raises(KeyboardInterrupt):
        s3.pull(URL, tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()
    monkeypatch.setattr(s3, "sha256", verify)

    partial = tmp_path / ".pulled.partial"
    done = [name for name in FILES if (partial / name).is_file()]
    assert len(done) >= 3
    (partial / done[0]).write_bytes(FILES[done[0]][:-1] if FILES[done[0]] else b"longer")  # truncated
    (partial / "left over").write_bytes(b"from another version")
    for name in done[1:]:  # fetching these again would fail
        bucket.Object(key_of(bucket, name)).delete()
    s3.pull(URL, tmp_path / "pulled")
    assert content(tmp_path / "pulled") == FILES
    assert not partial.exists()


def test_a_corrupt_object_is_refused_and_nothing_is_visible(bucket: Any, bundle: Path, tmp_path: Path) -> None:
    s3.push(bundle, URL)
    bucket.put_object(Key=key_of(bucket, "item_id.parquet"), Body=b"itemz")
    with pytest.raises(DataError, match=r"vocab/item_id\.parquet below .* does not have the checksum"):
        s3.pull(URL, tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()
    assert not (tmp_path / ".pulled.partial" / "vocab" / "item_id.parquet").exists()


def test_a_failed_pull_leaves_the_old_asset(bucket: Any, bundle: Path, tmp_path: Path) -> None:
    old = {"manifest.json": FILES["manifest.json"], "ranker.onnx": b"old"}
    target = write(tmp_path / "pulled", old)
    s3.push(bundle, URL)
    key = key_of(bucket, "empty.parquet")
    bucket.Object(key).delete()
    with pytest.raises(DataError, match="a file of the asset is missing"):
        s3.pull(URL, target)
    assert content(target) == old
    bucket.put_object(Key=key, Body=b"")
    s3.pull(URL, target)
    assert content(target) == FILES


def test_a_second_push_is_visible_only_with_its_index(
    bucket: Any, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.push(bundle, URL)
    sent = {o.key: o.last_modified for o in bucket.objects.all()}
    (bundle / "vocab" / "item_id.parquet").write_bytes(b"new items")

    def fails(self: s3.Index, **options: object) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(s3.Index, "model_dump_json", fails)
        with pytest.raises(KeyboardInterrupt):
            s3.push(bundle, URL)
    s3.pull(URL, tmp_path / "pulled")
    assert content(tmp_path / "pulled") == FILES
    s3.push(bundle, URL)
    s3.pull(URL, tmp_path / "pulled")
    assert content(tmp_path / "pulled") == FILES | {"vocab/item_id.parquet": b"new items"}
    unchanged = key_of(bucket, "item_tower.onnx")
    assert bucket.Object(unchanged).last_modified == sent[unchanged]


def test_only_assets_are_pushed_and_replaced(bucket: Any, bundle: Path, tmp_path: Path) -> None:
    home = write(tmp_path / "home", {"letters.txt": b"dear"})
    with pytest.raises(DataError, match="home is not a dataset or bundle"):
        s3.push(home, URL)
    with pytest.raises(DataError, match="missing is not a dataset or bundle"):
        s3.push(tmp_path / "missing", URL)
    s3.push(bundle, URL)
    with pytest.raises(DataError, match=r"home exists and is not a bundle: it holds letters\.txt"):
        s3.pull(URL, home)
    assert content(home) == {"letters.txt": b"dear"}


def test_a_bundle_takes_the_place_of_a_dataset_only_by_force(bucket: Any, bundle: Path, tmp_path: Path) -> None:
    s3.push(bundle, URL)
    manifest = b'{"version": 1, "split": {}, "rows": {}}'
    target = write(tmp_path / "data", {"manifest.json": manifest, "train/part-00000.parquet": b"rows"})
    before = content(target)
    with pytest.raises(DataError, match=r"data is a dataset, not a bundle: .*--force"):
        s3.pull(URL, target)
    assert content(target) == before
    s3.pull(URL, target, force=True)
    assert content(target) == FILES


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (None, "holds no dataset or bundle"),
        (b"<html>", r"index\.json is damaged"),
        (b'{"pages": []}', r"index\.json is not an index of this project: files: "),
        (b'{"version": 2, "files": {}}', "has index version 2, this code reads 1"),
    ],
)
def test_what_is_not_an_asset_is_named(bucket: Any, tmp_path: Path, index: bytes | None, message: str) -> None:
    if index is not None:
        bucket.put_object(Key="models/v1/index.json", Body=index)
    with pytest.raises(DataError, match=message):
        s3.pull(URL, tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()


def test_an_index_cannot_write_outside_the_target(bucket: Any, tmp_path: Path) -> None:
    for path in ("../evil", "/tmp/evil", "a/../../evil"):
        index = {"version": 1, "files": {path: {"size": 1, "sha256": "0" * 64}}}
        bucket.put_object(Key="models/v1/index.json", Body=json.dumps(index).encode())
        with pytest.raises(DataError, match="leads out of the folder"):
            s3.pull(URL, tmp_path / "pulled")


def test_a_missing_bucket_is_named(bucket: Any, bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="s3://nothing/v1: there is no such bucket"):
        s3.pull("s3://nothing/v1", tmp_path / "pulled")
    with pytest.raises(DataError, match="s3://nothing/v1: there is no such bucket"):
        s3.push(bundle, "s3://nothing/v1")


def test_missing_credentials_are_named(
    bucket: Any, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.delenv("AWS_ACCESS_KEY_ID")
        patch.delenv("AWS_SECRET_ACCESS_KEY")
        boto3.setup_default_session()
        for act in (lambda: s3.pull(URL, tmp_path / "pulled"), lambda: s3.push(bundle, URL)):
            with pytest.raises(ConfigError, match="no credentials for s3://assets"):
                act()
    boto3.setup_default_session()


def test_denied_access_is_named(
    bucket: Any, bundle: Path, tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def authenticate_after(calls: int) -> None:
        address, kind = f"{server}/moto-api/reset-auth", {"Content-Type": "text/plain"}
        urllib.request.urlopen(urllib.request.Request(address, str(calls).encode(), kind, method="POST")).close()

    authenticate_after(0)
    try:
        for act in (lambda: s3.pull(URL, tmp_path / "pulled"), lambda: s3.push(bundle, URL)):
            with pytest.raises(DataError, match=r"access denied \(InvalidAccessKeyId\)"):
                act()
    finally:
        authenticate_after(10**9)


def test_an_unreachable_server_and_a_wrong_address_are_named(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        patch.setattr(s3, "CLIENT", s3.CLIENT.merge(s3.Config(retries={"max_attempts": 1})))
        with pytest.raises(DataError, match="Could not connect to the endpoint"):
            s3.pull(URL, tmp_path / "pulled")
    with pytest.raises(ConfigError, match="is not an S3 address"):
        s3.pull("assets/models", tmp_path / "pulled")
