"""Files from the web into a cache: whole, verified and fetched once."""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from pathlib import Path

from ..errors import DataError
from ..utils.files import written_aside_file
from ..utils.progress import progress

TIMEOUT = 10.0  # seconds without a byte, connecting included
BLOCK = 1 << 20


def download(url: str, target: Path, md5: str | None = None) -> Path:
    """Fetch ``url`` to ``target``, or keep ``target`` where a good copy is there already.

    The bytes go to a file of this call's own first, so that a cut download restarts cleanly and two at a time do not
    meet.

    Args:
        url: http or https address.
        target: file to write.
        md5: checksum that the publisher states; None where the file has none.

    Raises:
        DataError: the address cannot be reached, the transfer was cut, or the checksum is wrong.
    """
    if target.is_file() and (md5 is None or _md5(target) == md5):
        return target
    with written_aside_file(target) as part:
        try:
            _transfer(url, part)
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            raise DataError(f"cannot download {url}: {getattr(error, 'reason', None) or error}") from error
        if md5 is not None and _md5(part) != md5:
            raise DataError(f"{url} does not have the published checksum {md5}: the download was discarded, try again")
    return target


def _transfer(url: str, part: Path) -> None:
    with urllib.request.urlopen(url, timeout=TIMEOUT) as response, part.open("wb") as file:
        length = response.headers.get("Content-Length")
        with progress(f"downloading {url}", int(length) if length else None, in_bytes=True) as advance:
            while block := response.read(BLOCK):
                file.write(block)
                advance(len(block))
        if length and file.tell() != int(length):
            raise ConnectionError(f"cut after {file.tell()} of {length} bytes, try again")


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
