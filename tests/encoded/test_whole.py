"""Files are written completely or not at all, and only what was left of that is deleted."""

import errno
import fcntl
from pathlib import Path
from typing import Any

import pytest

from vidsieve.encoded.whole import sweep_parts, write_whole


def test_only_what_was_left_of_our_files_is_swept(tmp_path: Path) -> None:
    others = ["lecture.mp4.part", "clips.part", "half.vidsieve", "half.vidsieve.mp4"]  # a download, a table, clips
    for name in (*others, "half.vidsieve.0f.part"):
        (tmp_path / name).write_bytes(b"half")
    sweep_parts(tmp_path, ".vidsieve")
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(others)


def test_what_is_locked_for_a_sweep_is_open_for_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As NFS wants it."""
    left, flock = tmp_path / "half.vidsieve.0f.part", fcntl.flock

    def locked(file: Any, how: int) -> None:
        if not file.writable():
            raise OSError(errno.EBADF, "Bad file descriptor")
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", locked)
    left.write_bytes(b"half")
    sweep_parts(tmp_path, ".vidsieve")
    assert not left.exists()


def test_a_file_system_without_locks_is_written_to_and_nothing_is_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unlocked(file: Any, how: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    left = tmp_path / "half.vidsieve.0f.part"
    left.write_bytes(b"half")
    monkeypatch.setattr(fcntl, "flock", unlocked)
    write_whole(tmp_path / "whole.vidsieve", b"who", b"le")
    sweep_parts(tmp_path, ".vidsieve")
    assert (tmp_path / "whole.vidsieve").read_bytes() == b"whole"
    assert left.exists()  # which another process may be writing
