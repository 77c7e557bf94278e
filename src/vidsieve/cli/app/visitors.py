"""Remove the files of visitors: an upload or a picture goes when no page shows it any more."""

import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from threading import Lock

ARRIVING = 60.0  # seconds in which a page says that it shows what was written for it


class Visitors:
    """Knows which files each visitor's page shows, and since when. Two visitors with equal files may share one."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._shown: dict[str, dict[str, tuple[Path, float]]] = {}
        self._left: set[str] = set()

    def shows(self, visitor: str, **files: str | Path | None) -> None:
        """Note the files that take the place of earlier ones of the same kind; None: nothing does."""
        with self._lock:
            shown, now = self._shown.setdefault(visitor, {}), time.time()
            before = [shown.pop(kind) for kind in files if kind in shown]
            shown.update({kind: (Path(file), now) for kind, file in files.items() if file is not None})
            self._remove(before)

    def leaves(self, visitor: str) -> None:
        """Remove what nobody else shows. What is shown to the visitor after that is the first to be left out."""
        with self._lock:
            self._left.add(visitor)
            self._remove(list(self._shown.pop(visitor, {}).values()))

    def leave_out(self, sizes: Mapping[Path, int], count: int) -> list[Path]:
        """Remove files of `sizes` that are shown to nobody who is there, the oldest first: `count` bytes, if they have.

        Returns those that are removed.
        """
        with self._lock:
            needed = {
                file
                for visitor, shown in self._shown.items()
                if visitor not in self._left
                for file, _ in shown.values()
            }
            free = sorted(sizes.keys() - needed, key=_written)
            old = [file for file in free if _written(file) < time.time() - ARRIVING]
            out: list[Path] = []
            for file in old:
                if sum(sizes[one] for one in out) >= count:
                    break
                _unlink(file)
                out.append(file)
            return out

    def _remove(self, files: list[tuple[Path, float]]) -> None:
        needed = {file for shown in self._shown.values() for file, _ in shown.values()}
        for file, since in files:
            if file not in needed and _written(file) <= since:  # else it is another visitor's, who is to show it
                _unlink(file)


def _written(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _unlink(file: Path) -> None:
    file.unlink(missing_ok=True)
    with suppress(OSError):  # another file lies there
        file.parent.rmdir()
