"""Find the clips in a folder or a list, and the other files in the folder."""

import os
from pathlib import Path

from vidsieve.errors import VidsieveError
from vidsieve.video.demux import is_path

SUFFIXES = (".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".ts", ".webm", ".wmv")


def find(source: str | os.PathLike[str]) -> list[str]:
    """Find the clips of a folder and its subfolders, or of a text file with one a line: absolute paths, addresses.

    In a text file, empty lines and lines that begin with # are skipped, and relative paths begin in the working
    directory; clips need not exist (one that does not becomes a row with its error). Raises `VidsieveError` without a
    clip.
    """
    path = Path(source)
    if path.is_dir():
        clips = sorted(one for one in path.rglob("*") if one.suffix.lower() in SUFFIXES and one.is_file())
        found = [os.fspath(one) for one in clips]
        expected = f"files that end in {', '.join(SUFFIXES)}"
    elif not path.exists():
        raise VidsieveError(f"{path}: no such file; expected a folder of clips, or a text file with one path a line")
    else:
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n")]
        except UnicodeDecodeError as error:
            raise VidsieveError(
                f"{path}: is no text; expected a folder of clips, or a text file with one path a line"
            ) from error
        found = [line for line in lines if line and not line.startswith("#")]
        expected = "one path or address a line"
    if not found:
        raise VidsieveError(f"{path}: has no clip in it; expected {expected}")
    return list(dict.fromkeys(os.path.abspath(one) if is_path(one) else one for one in found))


def ignored(source: str | os.PathLike[str], out: str | os.PathLike[str]) -> dict[str, str]:
    """List the files that `find` skips in a folder, by path, and why; without those in `out`."""
    path, output = Path(source), Path(out).resolve()
    if not path.is_dir():
        return {}
    passed = {}
    for one in sorted(path.rglob("*")):
        if output in (parent.resolve() for parent in one.parents) or one.is_dir():
            continue
        if one.suffix.lower() not in SUFFIXES:
            passed[str(one)] = "its name does not end as a video's does"
        elif not one.is_file():
            passed[str(one)] = "it is no file, or a link that leads nowhere"
    return passed
