"""Bound what the uploads of all visitors take of the disk."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Lock

from vidsieve.cli.app.visitors import Visitors

AT_ONCE = 4  # of the largest uploads
AROUND = 1 << 16  # bytes of a request around the file in it


class Uploads:
    """Counts the bytes of the files in a folder, and of the requests that are about to write some there.

    Files lie in folders in it. most: bytes of one file; of all, four times as many.
    """

    def __init__(self, folder: Path, visitors: Visitors, most: int) -> None:
        self._folder, self._visitors, self._most = folder, visitors, most
        self._coming = 0
        self._lock = Lock()

    def begin(self, length: int) -> str:
        """Make room for a request of `length` bytes, which files that nobody shows leave; say why there is none."""
        if length > self._most + AROUND:
            return f"expected one clip of at most {self._most} bytes, got {length}"
        with self._lock:
            sizes = dict(self._files())
            over = sum(sizes.values()) + self._coming + length - AT_ONCE * self._most
            if over > 0:
                over -= sum(sizes[file] for file in self._visitors.leave_out(sizes, over))
            if over > 0:
                return "there is no room for another clip until a visitor leaves; --max-upload makes more"
            self._coming += length
            return ""

    def end(self, length: int) -> None:
        """Count a request no more that `begin` made room for: what it wrote is among the files."""
        with self._lock:
            self._coming -= length

    def _files(self) -> Iterator[tuple[Path, int]]:
        for file in self._folder.glob("*/*"):
            with suppress(FileNotFoundError):  # its visitor has left
                yield file, file.stat().st_size
