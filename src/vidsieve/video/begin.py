"""Begin to read a video: a thread decodes it while a model is attached, its frames are processed and the tower runs.

coming = begin_video("clip.mp4", num_frames=64)
with vidsieve.attach(model, "vidsieve", keep=0.1):
    inputs = prepare(processor, coming, "What happens?", model=model)
frames = coming.result()
"""

import os
from collections.abc import Callable, Sequence

from vidsieve.checks import require
from vidsieve.types.coming import ComingFrames
from vidsieve.video.decode import indexed, to_warning
from vidsieve.video.demux import locate
from vidsieve.video.wanted import LONGEST_SIDE, Library, Sampling, Size, Wanted


def begin_video(
    path: str | os.PathLike[str],
    *,
    num_frames: int | None = None,
    fps: float | None = None,
    index: Sequence[int] | None = None,
    size: Size = LONGEST_SIDE,
    strict: bool = False,
    sampling: Sampling = "even",
    start: float = 0.0,
    end: float | None = None,
    max_frames: int | None = None,
    decoder: Library = "pyav",
    device: str | None = None,
) -> ComingFrames:
    """Begin to read what `read_video` reads with these arguments; a thread does so while other things are done.

    `prepare` takes what this returns, and processes the first frames while the last are decoded. `result()` waits for
    all of them, `wait_until_known()` until the packets of the file are read, which say which frames there are. Raises
    as `read_video` does for arguments and for a file that is not there; the rest is raised, and faults are warned of,
    where frames are waited for. As a context manager, it ends decoding when the block is left by an error.
    """
    return begin(
        path, Wanted(num_frames, fps, index, size, False, strict, sampling, start, end, max_frames, decoder, device)
    )


def begin(path: str | os.PathLike[str], wanted: Wanted, warn: Callable[[str], None] = to_warning) -> ComingFrames:
    """Begin to read as `begin_video` does. warn: is given each fault that is no error."""
    require("av", "video")
    locate(os.fsdecode(path))
    faults: list[str] = []
    return ComingFrames(lambda check: indexed(path, wanted, faults.append, check), faults, warn)
