"""Links of the documents, which point to files of the repository, as the site needs them.

Documents link to files, relative to where they lie, so that the links work in a checkout and where the repository is
shown. On the site, a link to a document becomes one to its page, a link to a picture one to its copy, and a link to
any other file one to the repository, or plain text where the site does not know its address.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from pathlib import Path

LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
PICTURES = "assets/"


class Links:
    """The way from files of the repository to pages of the site.

    Args:
        root: of the repository.
        pages: path in the repository -> path of the page below ``docs/``.
        repository: address of the repository, or nothing.
    """

    def __init__(self, root: Path, pages: Mapping[str, str], repository: str | None) -> None:
        self._root, self._pages, self._repository = root, pages, (repository or "").rstrip("/")

    def on_site(self, markdown: str, source: str, page: str) -> str:
        """Replace the links of one document.

        Args:
            markdown: text of the document.
            source: its path in the repository.
            page: path of its page below ``docs/``.

        Raises:
            FileNotFoundError: a link leads nowhere.
        """
        blocks = re.split(r"(^```.*?^```|`[^`\n]+`)", markdown, flags=re.DOTALL | re.MULTILINE)
        blocks[::2] = [LINK.sub(lambda found: self._link(found, source, page), text) for text in blocks[::2]]
        return "".join(blocks)

    def _link(self, found: re.Match[str], source: str, page: str) -> str:
        bang, label, target = found.groups()
        if not bang:  # a picture that is a link
            label = LINK.sub(lambda inner: self._link(inner, source, page), label)
        path, hash_, anchor = target.partition("#")
        if "://" in target or target.startswith("mailto:") or not path:
            return f"{bang}[{label}]({target})"
        file = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if file not in self._pages and not (self._root / file).exists():
            raise FileNotFoundError(f"{source} links to {target}, which is not there")
        if file in self._pages or file.startswith(PICTURES):
            relative = posixpath.relpath(self._pages.get(file, file), posixpath.dirname(page) or ".")
            return f"{bang}[{label}]({relative}{hash_}{anchor})"
        if self._repository:
            return f"{bang}[{label}]({self._repository}/blob/main/{file}{hash_}{anchor})"
        return label
