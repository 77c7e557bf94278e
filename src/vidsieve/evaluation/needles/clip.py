"""A generated video as `Frames`, and as a file."""

import os
from pathlib import Path

from torch import Tensor

from vidsieve.checks import require
from vidsieve.types.frames import Frames

RATE = 2  # frames a second: a step of two frames is then one second, and one position of the model


def as_frames(frames: Tensor) -> Frames:
    """Frames uint8 (F, 3, H, W) of one video, as if read from its file."""
    count = len(frames)
    seconds = tuple(number / RATE for number in range(count))
    return Frames(frames.permute(0, 2, 3, 1).cpu(), tuple(range(count)), seconds, float(RATE), count, count / RATE)


def write_clip(frames: Tensor, path: str | os.PathLike[str]) -> Path:
    """Write frames uint8 (F, 3, H, W) as H.264 in an mp4, nearly lossless, without colour subsampling."""
    if frames.ndim != 4 or frames.shape[1] != 3:
        raise ValueError(f"expected frames (F, 3, H, W) of one video, got {tuple(frames.shape)}")
    av = require("av", "video")
    height, width = frames.shape[2:]
    with av.open(os.fspath(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"qp": "4"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv444p"
        stream.thread_count = 1  # with threads the bytes differ from run to run
        for picture in frames.permute(0, 2, 3, 1).cpu().contiguous().numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return Path(path)
