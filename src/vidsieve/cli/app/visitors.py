"""Remove the files of visitors: an upload or a picture goes when no page shows it any more."""

from contextlib import suppress
from pathlib import Path
from threading import Lock


class Visitors:
    """Knows which files each visitor's page shows. Two visitors with equal files may share one."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._shown: dict[str, dict[str, Path]] = {}

    def shows(self, visitor: str, **files: str | Path | None) -> None:
        """Note the files that take the place of earlier ones of the same kind; None: nothing does."""
        with self._lock:
            shown = self._shown.setdefault(visitor, {})
            before = [shown.pop(kind) for kind in files if kind in shown]
            shown.update({kind: Path(file) for kind, file in files.items() if file is not None})
            self._remove(before)

    def leaves(self, visitor: str) -> None:
        with self._lock:
            self._remove(list(self._shown.pop(visitor, {}).values()))

    def _remove(self, files: list[Path]) -> None:
        needed = {file for shown in self._shown.values() for file in shown.values()}
        for file in set(files) - needed:
            file.unlink(missing_ok=True)
            with suppress(OSError):  # another file lies there
                file.parent.rmdir()
