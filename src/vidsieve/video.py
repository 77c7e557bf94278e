"""A video file becomes `Frames`: sampled evenly, at a rate, or by frame number, and resized while it decodes.

    frames = read_video("clip.mp4", num_frames=64)

The file is gone through twice. The first pass reads packets without decoding them: their time stamps, sorted, say which
frame is the i-th one, whatever the container claims (variable frame rate, B-frames, a start other than zero, no frame
count). The second pass seeks from key frame to key frame and decodes only what leads to a sampled frame. One full-size
picture is held at a time.
"""

import math
import os
import sys
import warnings
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidsieve.errors import VideoError, check_number, require
from vidsieve.tokens import Frames

LONGEST_SIDE = 1024
LONG_CLIP = 30.0  # seconds; below it a progress bar would be gone before it is read


@dataclass(frozen=True)
class _Index:
    """What the packets say.

    pts: sorted time stamps, one a frame.  seconds: the same, from the first frame.  duration: to the end of the last.
    keys: (frame number, time stamp to seek to) of each key frame; none where there are no time stamps to go by.
    """

    pts: Sequence[int]
    seconds: Sequence[float]
    duration: float
    keys: Sequence[tuple[int, int]]
    truncated: bool

    def key_before(self, number: int) -> int:
        """Position in `keys` of the last key frame at or before frame `number`, -1 if there is none."""
        return bisect_right(self.keys, number, key=lambda key: key[0]) - 1


def read_video(
    path: str | os.PathLike[str],
    *,
    num_frames: int | None = None,
    fps: float | None = None,
    index: Sequence[int] | None = None,
    size: int | tuple[int, int] | None = LONGEST_SIDE,
    progress: bool = False,
) -> Frames:
    """Frames of a video file, RGB uint8 (T, H, W, 3), turned upright where the file says how it was held.

    At most one of
      num_frames: that many, evenly from the first frame to the last; all of them where there are fewer (default 64).
      fps: the frame on screen at 0, 1/fps, 2/fps, ... seconds; no frame twice.
      index: exactly these frame numbers, in this order.
    size: (height, width); or the longest side in pixels, in proportion and never enlarged; or None, as filmed.
    progress: a progress bar on standard error for long clips, if that is a terminal.

    Raises `VideoError`, in one line, for a file that is missing, a directory, empty, cut short, not a video, without a
    picture or without the frame asked for; `MissingExtra` without PyAV; `ValueError` for arguments that make no sense.
    Warns of frames that are damaged: what they show is the decoder's guess.
    """
    _check_arguments(num_frames, fps, index, size)
    av = require("av", "video")
    name = os.fspath(path)
    _check_file(Path(name))
    try:
        with av.open(name) as container:
            stream = _video_stream(container, name)
            found = _scan(container, stream)
        if not found.pts:
            raise VideoError(f"{name}: has not a single frame in it")
        if found.truncated and index is None:
            raise VideoError(
                f"{name}: is cut short after {len(found.pts)} frames ({found.duration:.1f} s); "
                "repair it, or ask for frames that are there with index="
            )
        wanted = _sample(found, name, num_frames, fps, index)
        with av.open(name) as container:
            pixels = _decode(container, _video_stream(container, name), found, wanted, size, progress)
    except av.error.InvalidDataError as error:
        raise VideoError(f"{name}: is not a video that can be decoded, or is damaged ({error.strerror})") from error
    except av.error.EOFError as error:
        raise VideoError(f"{name}: has not a single frame in it") from error
    except av.error.FFmpegError as error:
        raise VideoError(f"{name}: cannot be read as a video ({error.strerror})") from error
    missing = [i for i in wanted if i not in pixels]
    if missing:
        raise VideoError(f"{name}: frame {missing[0]} of {len(found.pts)} cannot be decoded; the file is damaged there")
    return Frames(
        torch.stack([pixels[i] for i in wanted]),
        tuple(wanted),
        tuple(found.seconds[i] for i in wanted),
        len(found.pts) / found.duration if found.duration else 0.0,
        len(found.pts),
        found.duration,
        name,
    )


def _check_arguments(
    num_frames: int | None, fps: float | None, index: Sequence[int] | None, size: int | tuple[int, int] | None
) -> None:
    if sum(choice is not None for choice in (num_frames, fps, index)) > 1:
        raise ValueError("give one of num_frames, fps and index, not several")
    if num_frames is not None:
        check_number("num_frames is a whole number, at least 1", num_frames, 1, whole=True)
    if fps is not None:
        check_number("fps is frames a second, above 0", fps, 0, sys.float_info.max, beyond=True)
    if index is not None and not len(index):
        raise ValueError("expected at least one frame number in index")
    if size is not None and min(size if isinstance(size, tuple) else (size,)) < 1:
        raise ValueError(f"expected a size of at least 1 pixel, got {size}")


def _check_file(path: Path) -> None:
    """Raise `VideoError` for what the decoder would only report as a number."""
    if not path.exists():
        raise VideoError(f"{path}: no such file")
    if path.is_dir():
        raise VideoError(f"{path}: is a directory, expected a video file")
    if not os.access(path, os.R_OK):
        raise VideoError(f"{path}: no permission to read it")
    if not path.stat().st_size:
        raise VideoError(f"{path}: is empty (0 bytes)")


def _video_stream(container: Any, name: str) -> Any:
    """The first video stream that is not a cover picture."""
    from av.stream import Disposition

    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            stream.thread_type = "AUTO"
            return stream
    kinds = sorted({stream.type for stream in container.streams})
    raise VideoError(f"{name}: has no video stream ({'only ' + ', '.join(kinds) if kinds else 'no stream at all'})")


def _scan(container: Any, stream: Any) -> _Index:
    """The index from packets alone, or by decoding every frame where packets do not say when they are shown."""
    if container.format.name == "avi" and stream.codec_context.has_b_frames:
        return _scan_by_decoding(container, stream)
    stamps: set[int] = set()
    keys: dict[int, int] = {}
    stays = 0
    for packet in _packets(container, stream):
        if packet.is_discard:
            continue
        if packet.pts is None:
            return _scan_by_decoding(container, stream)
        stamps.add(packet.pts)
        stays = packet.duration or stays
        if packet.is_keyframe:
            # Demuxers seek by decoding time stamp, which may lie before the presentation one.
            keys[packet.pts] = packet.pts if packet.dts is None else min(packet.pts, packet.dts)
    pts = sorted(stamps)
    if not pts:
        return _Index((), (), 0.0, (), False)
    tick = float(stream.time_base)
    seconds = [(value - pts[0]) * tick for value in pts]
    duration = seconds[-1] + (stays * tick or seconds[-1] / max(len(pts) - 1, 1))
    truncated = any(entry.pos + entry.size > container.size for entry in stream.index_entries)
    return _Index(pts, seconds, duration, [(bisect_left(pts, key), keys[key]) for key in sorted(keys)], truncated)


def _scan_by_decoding(container: Any, stream: Any) -> _Index:
    """The index of a file without time stamps: every frame decoded and counted, evenly spaced in time."""
    container.seek(0)
    total = sum(1 for _ in _pictures(container, stream))
    rate = float(stream.average_rate or 25)
    return _Index(range(total), [i / rate for i in range(total)], total / rate, (), False)


def _sample(
    found: _Index, name: str, num_frames: int | None, fps: float | None, index: Sequence[int] | None
) -> list[int]:
    """The frame numbers wanted."""
    total = len(found.pts)
    if index is not None:
        for number in index:
            if not 0 <= number < total:
                raise VideoError(f"{name}: has no frame {number}, only 0 to {total - 1}")
        return [int(number) for number in index]
    if fps is not None:
        steps = max(1, math.ceil(found.duration * fps - 1e-6))
        return sorted({bisect_right(found.seconds, step / fps + 1e-6) - 1 for step in range(steps)})
    count = min(total, 64 if num_frames is None else num_frames)
    return [round(i * (total - 1) / max(count - 1, 1)) for i in range(count)]


def _decode(
    container: Any,
    stream: Any,
    found: _Index,
    wanted: Iterable[int],
    size: int | tuple[int, int] | None,
    progress: bool,
) -> dict[int, Tensor]:
    """The wanted frames by number, each (H, W, 3), as far as they can be decoded."""
    targets = sorted(set(wanted))
    decoder = _Decoder(container, stream, found)
    pixels, damaged = {}, 0
    with _progress_bar(progress and found.duration >= LONG_CLIP, len(targets)) as advance:
        for target in targets:
            frame = decoder.advance_to(target)
            if frame is None:
                break
            pixels[target] = _pixels(frame, size)
            damaged += frame.is_corrupt
            advance()
    if damaged:
        warnings.warn(
            f"{container.name}: {damaged} of {len(targets)} frames are damaged; what they show is the decoder's guess",
            stacklevel=3,
        )
    return pixels


class _Decoder:
    """Decodes forward, and jumps to a later key frame where one lies before the frame wanted."""

    def __init__(self, container: Any, stream: Any, found: _Index) -> None:
        self.container, self.stream, self.found = container, stream, found
        self.pictures = _pictures(container, stream)
        self.seekable = bool(found.keys)
        self.number = -1
        self.frame: Any = None

    def advance_to(self, target: int) -> Any:
        """Frame `target`, or the next that holds a picture (some codecs have packets without); None past the end."""
        found = self.found
        key = found.key_before(target)
        if self.seekable and key > 0 and found.keys[key][0] > self.number + 1:
            self._seek(key)
            if self.number > target:
                self._rewind()
        while self.number < target:
            if not self._step():
                return None
        return self.frame

    def _seek(self, key: int) -> None:
        self.container.seek(self.found.keys[key][1], stream=self.stream)
        self.pictures = _pictures(self.container, self.stream)
        self._step()

    def _step(self) -> bool:
        self.frame = next(self.pictures, None)
        if self.frame is None:
            return False
        pts, stamp = self.found.pts, self.frame.pts
        if not self.seekable or stamp is None:
            self.number += 1
            return True
        self.number = bisect_left(pts, stamp)
        if self.number == len(pts) or pts[self.number] != stamp:
            self._rewind()
        return True

    def _rewind(self) -> None:
        """Go by counting from the first frame: after a seek, this file's time stamps are not what they were."""
        self.seekable = False
        self.container.seek(self.found.keys[0][1] if self.found.keys else 0, stream=self.stream)
        self.pictures = _pictures(self.container, self.stream)
        self.number = -1
        self._step()


def _packets(container: Any, stream: Any) -> Iterator[Any]:
    """The packets of a stream as far as the file goes, less the one that its end cuts in two."""
    from av.error import InvalidDataError

    with suppress(InvalidDataError):
        yield from (packet for packet in container.demux(stream) if packet.size and not packet.is_corrupt)


def _pictures(container: Any, stream: Any) -> Iterator[Any]:
    """Decoded frames in display order. A damaged packet is passed over, as players do."""
    from av.error import InvalidDataError

    for packet in chain(_packets(container, stream), (None,)):  # None has the decoder hand out what it still holds
        with suppress(InvalidDataError):
            yield from stream.decode(packet)


def _pixels(frame: Any, size: int | tuple[int, int] | None) -> Tensor:
    """One frame upright and resized: uint8 (H, W, 3)."""
    turns = round(frame.rotation / 90) % 4  # counter-clockwise
    height, width = (frame.width, frame.height) if turns % 2 else (frame.height, frame.width)
    if isinstance(size, tuple):
        height, width = size
    elif size is not None and size < max(height, width):
        scale = size / max(height, width)
        height, width = max(1, round(height * scale)), max(1, round(width * scale))
    stored = (height, width) if turns % 2 else (width, height)
    rgb = frame.reformat(*stored, format="rgb24", interpolation="AREA").to_ndarray()
    return torch.from_numpy(rgb).rot90(turns, (0, 1)).contiguous()


@contextmanager
def _progress_bar(show: bool, total: int) -> Iterator[Callable[[], None]]:
    """Yields what to call after each of `total` frames."""
    if not (show and sys.stderr.isatty()):
        yield lambda: None
        return
    require("rich", "video")
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("decoding", total=total)
        yield lambda: bar.advance(task)
