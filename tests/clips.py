"""Clips of frames that say their own number, and what PyAV alone makes of a file."""

from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

BITS = 9
HEIGHT, WIDTH = 48, 16 * BITS


def picture(number: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A frame that says its own number: one black or white column a bit."""
    bits = [(number >> bit) & 1 for bit in range(BITS)]
    row = np.repeat(np.array(bits, np.uint8) * 255, width // BITS)
    return np.broadcast_to(row[None, :, None], (height, width, 3)).copy()


def numbers(pixels: torch.Tensor) -> list[int]:
    """What the frames (T, H, W, 3) say they are."""
    columns = pixels.float().mean((1, 3)).unflatten(1, (BITS, -1))[..., 2:-2].mean(2) > 127
    return [sum(int(bit) << place for place, bit in enumerate(row)) for row in columns]


def write(
    path: Path,
    count: int = 100,
    *,
    codec: str = "libx264",
    pts: list[int] | None = None,
    rate: int = 25,
    shape: tuple[int, int] = (HEIGHT, WIDTH),
    sar: Fraction | None = None,
    container: dict[str, str] | None = None,
    draw: Any = picture,
    **options: str,
) -> Path:
    """`count` self-numbered frames; pts in milliseconds, where given. `container`: options of the file format."""
    if codec == "libx264":  # whose thread that looks ahead makes other bytes of one clip in twenty
        options = {"g": "12", "bf": "2", "x264-params": "sync-lookahead=0:lookahead-threads=1"} | options
    with av.open(str(path), "w", options=container or {}) as file:
        stream = file.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = shape
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        if sar is not None:
            stream.codec_context.sample_aspect_ratio = sar
        if pts is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(draw(number, *shape), format="rgb24")
            if pts is not None:
                frame.pts, frame.time_base = pts[number], Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def decoded(path: Path) -> Iterator[Any]:
    """Every frame of the first video stream, one after the other. What cannot be decoded is passed over.

    What a damaged frame shows depends on which memory the decoder has free, so on when earlier ones are let go.
    """
    with av.open(f"file:{path}") as file:
        stream = file.streams.video[0]
        with suppress(av.error.InvalidDataError):  # of a file that is cut in a packet
            for packet in file.demux(stream):
                with suppress(av.error.InvalidDataError):
                    yield from packet.decode()
            return
        yield from stream.decode(None)


def rgb(frame: Any, height: int, width: int) -> torch.Tensor:
    """A decoded frame, scaled as stored."""
    return torch.from_numpy(frame.reformat(width, height, format="rgb24", interpolation="AREA").to_ndarray())


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def cut(whole: Path) -> Path:
    """The first seven tenths of a file, beside it as `cut`."""
    data = whole.read_bytes()
    return written(whole.with_stem("cut"), data[: len(data) * 7 // 10])
