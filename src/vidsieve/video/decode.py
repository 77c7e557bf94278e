"""Read `Frames` of a video file: sampled evenly, at a rate, or by frame number, and resized while it decodes.

    frames = read_video("clip.mp4", num_frames=64)

The file is read twice. The first pass reads packets without decoding them: their time stamps, sorted, say which
frame is the i-th one, whatever the container claims (variable frame rate, B-frames, a start other than zero, no frame
count). The second pass seeks from key frame to key frame and decodes only what leads to a sampled frame (`chosen`).
Where stamps cannot tell frames apart, or the decoder does not give what they promise, every frame is decoded and
counted instead.
One full-size picture is held at a time.
"""

import operator
import os
import struct
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from vidsieve.checks import check_number, require
from vidsieve.errors import VideoError
from vidsieve.types.frames import Frames
from vidsieve.video.chosen import Decoder, Miscounted
from vidsieve.video.demux import (
    PATIENCE,
    Index,
    by_decoding,
    by_packets,
    lacks_its_index,
    locate,
    opened,
    video_stream,
)

LONGEST_SIDE = 1024
STRETCH = 16  # the widest or highest that a pixel can be for its other side
LONG_CLIP = 30.0  # seconds; below it a progress bar would be gone before it is read
_LACKING = (
    "is damaged: cut off before the end of its index (moov), without which nothing of it can be read; fetch it again"
)

Size = int | tuple[int, int] | None
Sampling = Literal["even", "keyframes"]
SAMPLINGS: tuple[str, ...] = get_args(Sampling)


def read_video(
    path: str | os.PathLike[str],
    *,
    num_frames: int | None = None,
    fps: float | None = None,
    index: Sequence[int] | None = None,
    size: Size = LONGEST_SIDE,
    progress: bool = False,
    strict: bool = False,
    sampling: Sampling = "even",
) -> Frames:
    """Read frames of a video, RGB uint8 (T, H, W, 3), as a player shows them: upright, in square pixels, of one size.

    path: of a file; or a file:// or http(s):// address, which is read two or three times. Reads its first video stream.
    At most one of
      num_frames: that many, evenly from the first frame to the last; all of them if there are fewer (default 64).
      fps: the frame on screen at 0, 1/fps, 2/fps, ... seconds; no frame twice.
      index: exactly these frame numbers, in this order. Frames lost to damage have no number if decoding detects it.
    size: (height, width); or the longest side in pixels, in proportion and never enlarged; or None, as shown. Frames
      of another size than the file's first are scaled to it, as ffmpeg does.
    progress: a progress bar on standard error for long clips, if that is a terminal.
    strict: raise for a file that is cut short or damaged, instead of a warning.
    sampling: "even"; or "keyframes", which takes num_frames of the key frames, evenly among them, or all if they are
      fewer, and decodes no other. They lie where the encoder put them, at uneven distances: `seconds` says when.

    Raises `VideoError`, in one line, for a file that is missing, a directory, empty, not a video, without a picture or
    without the frame asked for; `MissingExtra` without PyAV; `ValueError` for invalid arguments.
    Warns if a file is cut short or frames are damaged: what they show is the decoder's guess.
    """
    return indexed(path, Wanted(num_frames, fps, index, size, progress, strict, sampling))()


def _warn(fault: str) -> None:
    warnings.warn(fault, stacklevel=4)


def indexed(
    path: str | os.PathLike[str], wanted: "Wanted", warn: Callable[[str], None] = _warn
) -> Callable[[], Frames]:
    """Read which frames a file has; returns the function that decodes those `wanted`, once.

    warn: is given each fault that is no error.
    Both raise as `read_video` does: this for what is no video, the function for what cannot be decoded.
    """
    av = require("av", "video")
    require("numpy", "video")
    name = os.fsdecode(path)
    place = locate(name)
    with _one_line(place, name):
        found = by_packets(place, name)

    def decode() -> Frames:
        with _one_line(place, name):
            if found.keys:
                try:
                    return _read(place, name, found, wanted, warn)
                except (Miscounted, av.error.InvalidDataError):
                    pass
            if wanted.sampling == "keyframes":
                raise VideoError(
                    f"{name}: lists no key frames that can be relied on, because of its time stamps or of damage; "
                    'sample it with sampling="even"'
                )
            return _read(place, name, by_decoding(place, name, found), wanted, warn)

    return decode


@dataclass(frozen=True)
class Wanted:
    """The arguments of `read_video`, checked."""

    num_frames: int | None = None
    fps: float | None = None
    index: Sequence[int] | None = None
    size: Size = LONGEST_SIDE
    progress: bool = False
    strict: bool = False
    sampling: Sampling = "even"

    def __post_init__(self) -> None:
        if sum(choice is not None for choice in (self.num_frames, self.fps, self.index)) > 1:
            raise ValueError("give one of num_frames, fps and index, not several")
        if self.sampling not in SAMPLINGS:
            raise ValueError(f'expected sampling "even" or "keyframes", got {self.sampling!r}')
        if self.sampling == "keyframes" and (self.fps is not None or self.index is not None):
            raise ValueError('sampling="keyframes" takes num_frames, not fps or index: they may fall on other frames')
        if self.num_frames is not None:
            check_number("num_frames is a whole number, at least 1", self.num_frames, 1, integer=True)
        if self.fps is not None:
            check_number("fps is frames a second, above 0", self.fps, 0, sys.float_info.max, exclusive_low=True)
        if self.index is not None and not len(self.index):
            raise ValueError("expected at least one frame number in index")
        sides = self.size if isinstance(self.size, tuple) else (self.size, self.size)
        if self.size is not None and len(sides) != 2:
            raise ValueError(f"expected a size of (height, width) or the longest side, got {self.size}")
        for side in sides if self.size is not None else ():
            check_number("expected a size of whole pixels, at least 1", side, 1, integer=True)

    def numbers(self, found: Index, name: str) -> list[int]:
        """Choose the frame numbers to decode. Raises `VideoError` for one that the file lacks."""
        total = len(found)
        if self.index is not None:
            numbers = [_whole(number) for number in self.index]
            for number in numbers:
                if not 0 <= number < total:
                    raise VideoError(f"{name}: has no frame {number}, only 0 to {total - 1}")
            return numbers
        if self.fps is not None:
            # Of each frame, the last step it is still shown at: steps may be very many, frames are not.
            rate = min(self.fps, 1e7)  # no frame is shown for less than a microsecond
            steps = max(1, ceil(found.duration * rate - 1e-6))
            last = [min(steps, ceil((after - 1e-6) * rate)) - 1 for after in found.seconds[1:]]
            return [i for i, (before, at) in enumerate(pairwise((-1, *last, steps - 1))) if at > before]
        among: Sequence[int] = range(total)
        if self.sampling == "keyframes":
            among = [number for number, _ in found.keys]
        count = min(len(among), 64 if self.num_frames is None else self.num_frames)
        return [among[round(i * (len(among) - 1) / max(count - 1, 1))] for i in range(count)]


def _whole(number: Any) -> int:
    try:
        return operator.index(number)
    except TypeError as error:
        raise ValueError(f"expected whole frame numbers in index, got {number!r}") from error


@contextmanager
def _one_line(place: str, name: str) -> Iterator[None]:
    """Raise what the decoder raises as a `VideoError` of one line."""
    import av

    try:
        yield
    except av.error.InvalidDataError as error:
        unknown = f"is not a video that can be decoded, or is damaged ({error.strerror})"
        raise VideoError(f"{name}: {_LACKING if lacks_its_index(place) else unknown}") from error
    except av.error.EOFError as error:
        raise _without_frames(place, name) from error
    except av.error.ExitError as error:
        raise VideoError(f"{name}: no answer in {PATIENCE:g} s; download it first") from error
    except av.error.FFmpegError as error:
        raise VideoError(f"{name}: cannot be read as a video ({error.strerror})") from error


def _without_frames(place: str, name: str) -> VideoError:
    return VideoError(f"{name}: {_LACKING if lacks_its_index(place) else 'has not a single frame in it'}")


def _read(place: str, name: str, found: Index, wanted: Wanted, warn: Callable[[str], None]) -> Frames:
    if not len(found):
        raise _without_frames(place, name)
    numbers = wanted.numbers(found, name)
    with opened(place) as container:
        decoder = Decoder(container, video_stream(container, name), found, name)
        with _progress_bar(wanted.progress and found.duration >= LONG_CLIP, len(numbers)) as advance:
            pixels, damaged = _decode(decoder, numbers, wanted.size, advance)
    faults = []
    if found.truncated and (wanted.strict or wanted.index is None):
        faults.append(f"is cut short: only {len(found)} frames ({found.duration:.1f} s) are there")
    if damaged:
        faults.append(f"{damaged} of {len(numbers)} frames are damaged; what they show is the decoder's guess")
    for fault in faults:
        if wanted.strict:
            raise VideoError(f"{name}: {fault}; without strict, that is a warning")
        warn(f"{name}: {fault}")
    return Frames(
        pixels,
        tuple(numbers),
        tuple(found.seconds[i] for i in numbers),
        len(found) / found.duration if found.duration else 0.0,
        len(found),
        found.duration,
        name,
        decoder.decoded,
        len(found.keys),
    )


def _decode(decoder: Decoder, numbers: Sequence[int], size: Size, advance: Callable[[], None]) -> tuple[Tensor, int]:
    """Decode the frames `numbers` into one array (T, H, W, 3), and count those that are damaged.

    The first frame of the file has the height and width of all.
    """
    import numpy as np

    places: dict[int, list[int]] = {}
    for place, number in enumerate(numbers):
        places.setdefault(number, []).append(place)
    pixels: Any = None
    damaged = 0
    for number, frame in decoder.frames(numbers):
        if pixels is None:
            shown = _shown(frame, float(decoder.stream.sample_aspect_ratio or 1), decoder.name)
            pixels = np.empty((len(numbers), *_scaled(*shown, size), 3), np.uint8)
        for place in places.get(number, ()):
            _fill(pixels[place], frame, decoder.name)
            damaged += frame.is_corrupt
            advance()
    return torch.from_numpy(pixels), damaged


def _shown(frame: Any, aspect: float, name: str) -> tuple[int, int]:
    """Compute height and width of a frame once upright and in square pixels; its are `aspect` times as wide as high."""
    if not 1 / STRETCH <= aspect <= STRETCH:
        raise VideoError(f"{name}: says its pixels are {aspect:.3g} times as wide as high, which is a damaged header")
    height, width = frame.height, max(1, round(frame.width * aspect))
    return (width, height) if _orientation(frame, name)[0] else (height, width)


def _scaled(height: int, width: int, size: Size) -> tuple[int, int]:
    if isinstance(size, tuple):
        return size
    scale = 1.0 if size is None else min(1.0, size / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _orientation(frame: Any, name: str) -> tuple[bool, bool, bool]:
    """Find whether to transpose a stored picture, then to mirror it left to right, then upside down.

    By the display matrix [a b; c d] of its row vectors, as players read it: what they are scaled by is ignored.
    """
    if abs((frame.rotation + 45) % 90 - 45) > 1:
        raise VideoError(
            f"{name}: is turned by {frame.rotation} degrees, expected a multiple of 90; re-encode it upright"
        )
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV 18 cannot list what is newer than it knows (EXIF); it still knows the rotation
        return {0: (False, False, False), 1: (True, False, True), 2: (False, True, True), 3: (True, True, False)}[
            round(frame.rotation / 90) % 4
        ]
    if matrix is None:
        return False, False, False
    a, b, _, c, d = struct.unpack("=5i", bytes(matrix)[:20])
    transposed = abs(b) > abs(a)
    return transposed, (c if transposed else a) < 0, (b if transposed else d) < 0


def _fill(place: Any, frame: Any, name: str) -> None:
    """Write one frame, upright and resized, to `place` (H, W, 3)."""
    transposed, mirrored, upturned = _orientation(frame, name)
    stored = place.swapaxes(0, 1) if transposed else place
    rgb = frame.reformat(stored.shape[1], stored.shape[0], format="rgb24", interpolation="AREA").to_ndarray()
    upright = rgb.swapaxes(0, 1) if transposed else rgb
    place[:] = upright[:: -1 if upturned else 1, :: -1 if mirrored else 1]


@contextmanager
def _progress_bar(show: bool, total: int) -> Iterator[Callable[[], None]]:
    """Show a progress bar; yields the function to call after each of `total` frames."""
    if not (show and sys.stderr.isatty()):
        yield lambda: None
        return
    require("rich", "video")
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("decoding", total=total)
        yield lambda: bar.advance(task)
