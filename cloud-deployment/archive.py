"""Packs a folder so that the same content makes the same archive, wherever and whenever it is packed.

python cloud-deployment/archive.py ARCHIVE        # the playbooks, for machines that configure themselves
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path

PLAYBOOKS = Path(__file__).resolve().parent / "ansible"
COLLECTIONS = ("amazon/aws",)  # that the playbooks of such machines use
LEFT_OUT = {"__pycache__", "clients", "tests", "docs", "changelogs"}


def pack(folders: Mapping[str, Path], archive: Path) -> str:
    """Write the files of folders into a tar.gz, and return its SHA-256.

    Args:
        folders: place in the archive -> folder.
        archive: appears whole or not at all.
    """

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.mtime, member.uid, member.gid, member.uname, member.gname = 0, 0, 0, "", ""
        member.mode = 0o755 if member.isdir() else 0o644
        return member

    aside = archive.with_name(f"{archive.name}.part")
    with (
        aside.open("wb") as raw,
        gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed,
        tarfile.open(mode="w", fileobj=packed) as tar,
    ):
        for place, folder in folders.items():
            for path in sorted(folder.rglob("*")):
                within = path.relative_to(folder)
                if path.is_file() and not LEFT_OUT & set(within.parts):
                    tar.add(path, str(Path(place, within)), recursive=False, filter=plain)
    aside.rename(archive)
    with archive.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pack_playbooks(archive: Path) -> str:
    """Pack the playbooks with the collections that they need, in the versions that are installed here.

    Raises:
        SystemExit: Ansible's collections are missing.
    """
    found = importlib.util.find_spec("ansible_collections")
    if found is None or not found.submodule_search_locations:
        sys.exit("Ansible is not installed: run make cloud, or pip install -r cloud-deployment/requirements.txt")
    installed = Path(next(iter(found.submodule_search_locations)))
    place = "collections/ansible_collections"
    return pack({".": PLAYBOOKS, **{f"{place}/{name}": installed / name for name in COLLECTIONS}}, archive)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    pack_playbooks(Path(sys.argv[1]))
