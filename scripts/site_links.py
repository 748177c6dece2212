"""A hook of MkDocs: links that leave docs/ are for readers of the repository, and become plain text on the site.

With ``repo_url`` in mkdocs.yml they point to the repository instead.
"""

from __future__ import annotations

import posixpath
import re
from typing import Any

_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s:#]+)(#[^)\s]*)?\)")
_FENCE = re.compile(r"^( *)(```+|~~~+).*?^\1\2 *$", re.M | re.S)


def rewrite(markdown: str, page: str, repo_url: str = "") -> str:
    """The page for the site.

    Args:
        markdown: its text.
        page: its path below docs/, as in ``decisions/chunks.md``.
        repo_url: of the repository's files, without a trailing slash; empty: links become their text.
    """

    def replaced(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link[2]))
        if target.startswith("docs/"):
            return link[0]
        return f"[{link[1]}]({repo_url}/{target}{link[3] or ''})" if repo_url else link[1]

    parts, end = [], 0
    for fence in _FENCE.finditer(markdown):
        parts += [_LINK.sub(replaced, markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, _LINK.sub(replaced, markdown[end:])])


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Called by MkDocs for every page."""
    return rewrite(markdown, page.file.src_uri, (config.repo_url or "").rstrip("/"))
