"""Whether files can be written where they are to be, found out before there is work to lose. Nothing is left there."""

import os
import tempfile
from pathlib import Path

from vidsieve.errors import VidsieveError


def folder(where: str | os.PathLike[str]) -> Path:
    """A folder to write into, there already or to be made. Raises `VidsieveError` where that cannot be."""
    path = Path(where)
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # a name that is too long, links in a circle; a NUL in it
        raise _refused(path, error) from error
    for one in (path, *path.parents):
        if os.path.isdir(one):
            try:
                tempfile.TemporaryFile(dir=one).close()
            except OSError as error:
                raise _refused(one, error) from error
            break
        if os.path.lexists(one):
            kind = "a link that leads nowhere" if not os.path.exists(one) else "a file"
            raise VidsieveError(f"expected a folder to write into, which {one} is not: it is {kind}")
    return path


def file(where: str | os.PathLike[str]) -> Path:
    """A file to write, or to write anew. Raises `VidsieveError` where that cannot be."""
    path = Path(where)
    if os.path.isdir(path):
        raise VidsieveError(f"expected the name of a file to write; {path} is a folder")
    if os.path.isfile(path):
        try:
            path.open("ab").close()
        except OSError as error:
            raise VidsieveError(f"cannot write {path} ({error.strerror}); choose another file") from error
    elif not os.path.exists(path):  # a device takes what it is given
        folder(path.parent)
    return path


def _refused(path: Path, error: OSError | ValueError) -> VidsieveError:
    return VidsieveError(f"cannot write into {path} ({getattr(error, 'strerror', error)}); choose another folder")
