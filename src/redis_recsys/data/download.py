"""Downloads into a cache: whole, verified and fetched once."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from requests import RequestException

from ..errors import DataError
from ..utils.files import written_aside_file
from ..utils.progress import progress

with warnings.catch_warnings():  # it imports tqdm, which is not used here and warns in notebooks without widgets
    warnings.simplefilter("ignore")
    import pooch

TIMEOUT = 10.0  # seconds without a byte, connecting included
BLOCK = 1 << 20


def download(url: str, target: Path, md5: str | None = None) -> Path:
    """Fetch ``url`` to ``target``, or keep ``target`` if it is a good copy already.

    The bytes go to a file of this call's own first, so that an interrupted download restarts cleanly and two at a time
    do not collide.

    Args:
        url: http or https address.
        target: file to write.
        md5: checksum that the publisher states; None where the file has none.

    Raises:
        DataError: the address cannot be reached, the transfer was cut, or the checksum is wrong.
    """
    checksum = f"md5:{md5}" if md5 is not None else None  # none matches every file
    if target.is_file() and pooch.hashes.hash_matches(target, checksum):
        return target
    # Not pooch.retrieve: it makes files that only their owner can read, and replaces symbolic links.
    with written_aside_file(target) as aside:
        try:
            with _Bar(url) as bar:
                pooch.HTTPDownloader(progressbar=bar, chunk_size=BLOCK, timeout=TIMEOUT)(url, aside, None)
        except RequestException as error:
            raise DataError(f"cannot download {url}: {_reason(error)}; check the network and try again") from error
        if not pooch.hashes.hash_matches(aside, checksum):
            raise DataError(f"{url} does not have the published checksum {md5}: the download was discarded, try again")
    return target


class _Bar(ExitStack):
    """This project's progress bar with the methods that pooch calls.

    Attributes:
        total: number of bytes to come, which pooch sets before the first of them; 0 where the server does not say.
    """

    total = 0

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url
        self._shown = 0
        self._advance: Callable[[int], None] | None = None

    def update(self, count: int) -> None:
        """Advance by ``count`` bytes, never beyond the total: pooch counts whole blocks, and all of them at the end."""
        if self._advance is None:
            bar = progress(f"downloading {self._url}", self.total or None, in_bytes=True)
            self._advance = self.enter_context(bar)
        count = min(count, self.total - self._shown) if self.total else count
        self._advance(count)
        self._shown += count

    def reset(self) -> None:
        """Keep the bar as it is: pooch counts all bytes again after this, and :meth:`update` shows the missing ones."""


def _reason(error: BaseException) -> str:
    """Message of the innermost error, such as ``Connection refused``: the outer ones repeat it and the address."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return " ".join(str(error).split()) or type(error).__name__
