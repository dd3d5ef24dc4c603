"""Copies of datasets and bundles in S3: every byte is checked, and either end shows a copy only once it is complete.

The address holds the files under ``files/<sha256>/<path>``, and ``index.json`` with the path, size and SHA-256 of
each. Pushing writes the index last. A push over an older one leaves the old files in place, so readers that use the
old index meanwhile get the whole old version. Pulling downloads into ``.<name>.partial`` beside the target, where an
interrupted pull is resumed, and renames it once every checksum is right.

boto3 finds credentials, region and address in its usual places: ``AWS_*`` environment variables (including
``AWS_ENDPOINT_URL`` for other S3 servers) or ``~/.aws``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from threading import Event
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ..errors import ConfigError, DataError, explain_validation
from ..utils.files import claimed, disk_error, sha256, written_aside
from ..utils.output_kinds import BUNDLE, CRITEO, DATASET, RAW, Kind
from ..utils.progress import progress
from .bundle import tower_file

try:
    import boto3
    from boto3.exceptions import Boto3Error
    from boto3.s3.transfer import TransferConfig
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError
except ModuleNotFoundError as missing:
    raise ConfigError("s3:// addresses need boto3: pip install 'redis-recsys[s3]'") from missing

INDEX = "index.json"
INDEX_VERSION = 1
FILES_AT_ONCE = 8
CLIENT = Config(
    retries={"max_attempts": 5, "mode": "standard"},
    connect_timeout=10,
    read_timeout=60,
    max_pool_connections=FILES_AT_ONCE * 2,
)
TRANSFER = TransferConfig(max_concurrency=2)  # parts of one file at once
REFUSED = ("AccessDenied", "403", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken")

Work = Callable[[str, "Entry", Callable[[int], None]], None]


class Entry(BaseModel):
    """One file of an asset."""

    model_config = ConfigDict(extra="forbid")

    size: int = Field(ge=0, description="bytes")
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Index(BaseModel):
    """``index.json``, the list of an asset's files."""

    model_config = ConfigDict(extra="forbid")

    version: int = INDEX_VERSION
    files: dict[str, Entry]

    @field_validator("files")
    @classmethod
    def _inside(cls, files: dict[str, Entry]) -> dict[str, Entry]:
        for path in files:
            if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts or "\\" in path:
                raise ValueError(f"path {path!r} leads out of the folder")
        return files

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(entry.size for entry in self.files.values())


def push(source: Path, url: str) -> None:
    """Upload a dataset or bundle; files that S3 has already are not sent again.

    Args:
        source: folder of the asset.
        url: ``s3://bucket/prefix``.

    Raises:
        ConfigError: the address or the credentials cannot be used.
        DataError: ``source`` is not an asset, or S3 refuses or cannot be reached.
    """
    bucket, prefix = _parse(url)
    source = Path(source)
    if not _is_asset(source):
        raise DataError(f"{source} is not a dataset or bundle: it has no manifest.json or schema.yaml")
    paths = sorted(p for p in source.rglob("*") if p.is_file())
    index = Index(
        files={p.relative_to(source).as_posix(): Entry(size=p.stat().st_size, sha256=sha256(p)) for p in paths}
    )
    with _explained(url), progress(f"uploading {url}", index.size, in_bytes=True) as advance:
        client = boto3.client("s3", config=CLIENT)

        def upload(path: str, entry: Entry, report: Callable[[int], None]) -> None:
            key = _key(prefix, path, entry)
            if _size(client, bucket, key) == entry.size:
                report(entry.size)
            else:
                client.upload_file(str(source / path), bucket, key, Callback=report, Config=TRANSFER)

        _all_at_once(upload, index, advance)
        client.put_object(Bucket=bucket, Key=f"{prefix}{INDEX}", Body=index.model_dump_json(indent=1).encode())


def pull(url: str, target: Path, force: bool = False) -> None:
    """Download a dataset or bundle to ``target``, whole or not at all; an interrupted pull continues.

    Args:
        url: ``s3://bucket/prefix``.
        target: folder to write; an older asset of the same kind there is replaced.
        force: whether an asset of another kind is replaced, too.

    Raises:
        ConfigError: the address or the credentials cannot be used.
        DataError: there is no asset at ``url``, a checksum is wrong, S3 refuses or cannot be reached, or ``target``
            holds something else.
    """
    bucket, prefix = _parse(url)
    target = Path(target)
    partial = target.absolute().parent / f".{target.absolute().name}.partial"
    with _explained(url):
        client = boto3.client("s3", config=CLIENT)
        index = _index(client, bucket, f"{prefix}{INDEX}", url)
        kind = _kind(index)
        with claimed(target, kind, force):
            try:
                partial.mkdir(parents=True, exist_ok=True)
                for stale in [p for p in partial.rglob("*") if p.is_file()]:
                    if stale.relative_to(partial).as_posix() not in index.files:
                        stale.unlink()
                _download(client, bucket, prefix, index, partial)
            except OSError as error:
                raise disk_error(error, target) from error
            with written_aside(target, kind) as aside:
                partial.replace(aside)


def _kind(index: Index) -> Kind | None:
    """Kind of folder of an asset; None if it is none of this project's."""
    signs = {"criteo.json": CRITEO, tower_file("item"): BUNDLE, "train": DATASET, "interactions": RAW}
    tops = {path.partition("/")[0] for path in index.files}
    return next((kind for sign, kind in signs.items() if sign in tops), None)


def _download(client: Any, bucket: str, prefix: str, index: Index, folder: Path) -> None:
    with progress("downloading", index.size, in_bytes=True) as advance:

        def download(path: str, entry: Entry, report: Callable[[int], None]) -> None:
            file = folder / path
            if file.is_file() and file.stat().st_size == entry.size and sha256(file) == entry.sha256:
                report(entry.size)
                return
            file.parent.mkdir(parents=True, exist_ok=True)
            client.download_file(bucket, _key(prefix, path, entry), str(file), Callback=report, Config=TRANSFER)
            if sha256(file) != entry.sha256:
                file.unlink()
                raise DataError(f"{path} below s3://{bucket}/{prefix} does not have the checksum it was pushed with")

        _all_at_once(download, index, advance)


def _all_at_once(work: Work, index: Index, advance: Callable[[int], None]) -> None:
    """Run ``work`` on files concurrently; the first error, or Ctrl-C, stops all running work."""
    stopped = Event()

    def report(size: int) -> None:
        if stopped.is_set():
            raise InterruptedError("stopped by another error")
        advance(size)

    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        try:
            running = [pool.submit(work, path, entry, report) for path, entry in index.files.items()]
            for done in wait(running, return_when=FIRST_EXCEPTION).done:
                done.result()
        except BaseException:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _index(client: Any, bucket: str, key: str, url: str) -> Index:
    try:
        body = client.get_object(Bucket=bucket, Key=key)["Body"].read()
    except ClientError as error:
        if error.response["Error"]["Code"] == "NoSuchKey":
            raise DataError(f"{url} holds no dataset or bundle of this project: it has no {INDEX}") from error
        raise
    try:
        content = json.loads(body)
        index = Index.model_validate(content)
    except ValidationError as error:
        raise DataError(f"{url}/{INDEX} is not an index of this project: {explain_validation(error)}") from error
    except ValueError as error:
        raise DataError(f"{url}/{INDEX} is damaged: {error}; push the asset again") from error
    if index.version != INDEX_VERSION:
        raise DataError(f"{url} has index version {index.version}, this code reads {INDEX_VERSION}")
    return index


def _key(prefix: str, path: str, entry: Entry) -> str:
    return f"{prefix}files/{entry.sha256}/{path}"


def _size(client: Any, bucket: str, key: str) -> int | None:
    """Bytes of an object; None where there is none or access is not allowed."""
    try:
        return int(client.head_object(Bucket=bucket, Key=key)["ContentLength"])
    except ClientError:
        return None


def _is_asset(folder: Path) -> bool:
    return (folder / "manifest.json").is_file() or (folder / "schema.yaml").is_file()


def _parse(url: str) -> tuple[str, str]:
    """Bucket and prefix; the prefix ends with a slash or is empty."""
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    if not url.startswith("s3://") or not bucket:
        raise ConfigError(f"{url!r} is not an S3 address: write s3://bucket/folder")
    prefix = prefix.strip("/")
    return bucket, f"{prefix}/" if prefix else ""


@contextmanager
def _explained(url: str) -> Iterator[None]:
    """Turn the errors of boto3 into one clear line."""
    try:
        yield
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise ConfigError(f"no credentials for {url}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") from error
    except (ClientError, Boto3Error, BotoCoreError) as error:
        cause = error.__context__ if isinstance(error.__context__, ClientError) else error
        code = cause.response["Error"]["Code"] if isinstance(cause, ClientError) else ""
        if code == "NoSuchBucket":
            raise DataError(f"{url}: there is no such bucket") from error
        if code in REFUSED:
            raise DataError(f"{url}: access denied ({code}): check the credentials and their permissions") from error
        if code in ("NoSuchKey", "404"):
            raise DataError(f"{url}: a file of the asset is missing: push it again") from error
        raise DataError(f"{url}: {' '.join(str(error).split())}") from error
