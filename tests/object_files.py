"""An object store in this process, read as Beam reads any: by listing and by streams."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, BinaryIO

from apache_beam.io.filesystem import CompressionTypes, FileMetadata, FileSystem


class ObjectFiles(FileSystem):
    """A subclass names its ``scheme`` and holds its ``content``; what it does not define is not asked for."""

    content: dict[str, bytes]

    @classmethod
    def scheme(cls) -> str:
        return "none"

    def has_dirs(self) -> bool:
        return False

    def _list(self, dir_or_prefix: str) -> Iterator[FileMetadata]:
        for path, data in sorted(self.content.items()):
            if path.startswith(dir_or_prefix):
                yield FileMetadata(path, len(data))

    def open(self, path: str, mime_type: str = "", compression_type: str = CompressionTypes.AUTO) -> BinaryIO:
        return io.BytesIO(self.content[path])

    def join(self, basepath: str, *paths: str) -> str:
        return "/".join([basepath.rstrip("/"), *paths])

    def split(self, path: str) -> tuple[str, str]:
        head, _, tail = path.rpartition("/")
        return head, tail

    def exists(self, path: str) -> bool:
        return path in self.content

    def _unused(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("not asked for")

    mkdirs = create = copy = rename = size = last_updated = checksum = metadata = delete = _unused
