"""Write files completely or not at all, and delete what is left where that was cut short."""

import os
import secrets
import sys
from contextlib import suppress
from pathlib import Path

if sys.platform != "win32":
    import fcntl


def write_whole(path: Path, *parts: bytes | memoryview) -> None:
    """Write `parts`, one after another, to `path` completely or not at all, so that nobody reads half a file."""
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as file:
            if sys.platform != "win32":
                with suppress(OSError):  # a file system without locks, where `sweep_parts` leaves what there is
                    fcntl.flock(file, fcntl.LOCK_EX)  # which ends with the process, and tells `sweep_parts` of it
            for data in parts:
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:  # a full disk, Ctrl-C
        part.unlink(missing_ok=True)
        raise


def sweep_parts(folder: Path, suffix: str) -> None:
    """Delete what `write_whole` left in `folder` of files that end in `suffix`, where it was killed.

    Not what another process is writing, and no other `.part`: browsers call downloads so.
    """
    for part in folder.glob(f"*{suffix}.*.part"):
        with suppress(OSError), part.open("r+b") as file:  # NFS locks nothing that is open for reading alone
            if sys.platform != "win32":
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part.unlink()
