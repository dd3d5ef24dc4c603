"""Hand models to Triton's machines, by S3: each fetches what is new within half a minute.

    recsys deploy data/demo/bundle                        # example 2, into the Redis in the cloud
    python cloud-deployment/publish.py BUCKET multi-stage

An archive goes up only if the bucket does not have it yet. The index that names them all, with their checksums, goes up
last: machines see all of it or nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import boto3
from archive import pack
from botocore.exceptions import BotoCoreError, ClientError

EXAMPLES = {"multi-stage": "deployed", "large-scale": "dlrm"}


def folders(example: str, data: Path, owner: str | None = None) -> list[Path]:
    """What is to be published: every deployed bundle of one Redis, or the one exported model.

    Folders that bear no Redis' name, made by earlier versions of the library, are published too.

    Args:
        example: which one.
        data: the library's data folder.
        owner: ``deploy:id`` of the Redis; None if there is one alone.

    Raises:
        SystemExit: there is none, with what makes one; or there are several owners and none is chosen.
    """
    place = data / EXAMPLES[example]
    if example == "large-scale":
        if not (place / "ps.json").is_file():
            sys.exit(f"{place} has no ps.json: run recsys dlrm train and recsys dlrm configure first")
        return [place]
    found = sorted(path.parent for path in place.glob("*/manifest.json"))
    owners = {path.name.rpartition("-")[0] for path in found} - {""}
    if owner is None and len(owners) > 1:
        sys.exit(
            f"{place} holds bundles of several Redis ({', '.join(sorted(owners))}): name one with --owner, as "
            "GET deploy:id says it there"
        )
    found = [path for path in found if path.name.rpartition("-")[0] in ("", owner or next(iter(owners), ""))]
    if not found:
        sys.exit(f"{place} holds no deployed bundle{f' of {owner}' if owner else ''}: run recsys deploy first")
    return found


def published(s3: Any, bucket: str, key: str) -> dict[str, str]:
    """Name -> checksum of the archives that the index in the bucket lists."""
    try:
        index = json.loads(s3.get_object(Bucket=bucket, Key=key)["Body"].read())
    except ClientError as error:
        if error.response["Error"]["Code"] == "NoSuchKey":
            return {}
        raise
    return {archive["name"]: archive["sha256"] for archive in index["archives"]}


def publish(bucket: str, example: str, data: Path, owner: str | None = None) -> None:
    """Bring the bucket to what the data folder holds."""
    s3 = boto3.client("s3")
    prefix = f"models/{example}"
    before = published(s3, bucket, f"{prefix}/index.json")
    archives = []
    for folder in folders(example, data, owner):
        with tempfile.TemporaryDirectory() as aside:
            archive = Path(aside) / "archive"
            checksum = pack({".": folder}, archive)
            if before.get(folder.name) != checksum:
                megabytes = archive.stat().st_size / 1e6
                print(f"uploading {folder.name}, {megabytes:.1f} MB", flush=True)
                s3.upload_file(str(archive), bucket, f"{prefix}/{folder.name}.tar.gz")
        archives.append({"name": folder.name, "sha256": checksum})
    if {archive["name"]: archive["sha256"] for archive in archives} == before:
        print(f"s3://{bucket}/{prefix} has it all already")
        return
    s3.put_object(Bucket=bucket, Key=f"{prefix}/index.json", Body=json.dumps({"archives": archives}))
    print(f"published {', '.join(archive['name'] for archive in archives)} in s3://{bucket}/{prefix}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bucket", help="of the assets: terraform output -raw assets_bucket")
    parser.add_argument("example", choices=EXAMPLES)
    parser.add_argument("--data", type=Path, default=Path("data"), help="the library's data folder (default: data)")
    parser.add_argument("--owner", help="deploy:id of the Redis, where bundles of several lie in the data folder")
    args = parser.parse_args()
    try:
        publish(args.bucket, args.example, args.data, args.owner)
    except (BotoCoreError, ClientError, OSError) as error:
        sys.exit(f"cannot publish to s3://{args.bucket}: {error}")


if __name__ == "__main__":
    main()
