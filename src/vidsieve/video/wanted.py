"""Choose the frames of a file that are read: evenly, at a rate, by number, among the key frames, between two times."""

import operator
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from typing import Any, Literal, get_args

from vidsieve.checks import check_number
from vidsieve.errors import VideoError
from vidsieve.video.demux import Index

LONGEST_SIDE = 1024
Size = int | tuple[int, int] | None
Sampling = Literal["even", "keyframes"]
SAMPLINGS: tuple[str, ...] = get_args(Sampling)
Library = Literal["pyav", "torchcodec"]
LIBRARIES: tuple[str, ...] = get_args(Library)


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
    start: float = 0.0
    end: float | None = None
    max_frames: int | None = None
    decoder: Library = "pyav"
    device: str | None = None

    def __post_init__(self) -> None:
        if self.decoder not in LIBRARIES:
            raise ValueError(f'expected decoder "pyav" or "torchcodec", got {self.decoder!r}')
        if self.decoder == "torchcodec" and self.strict:
            raise ValueError('torchcodec does not say which frames are damaged; with strict, use decoder="pyav"')
        if self.decoder == "pyav" and self.device is not None:
            raise ValueError(f'PyAV decodes on the CPU; for device {self.device!r}, use decoder="torchcodec"')
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
        if self.max_frames is not None:
            check_number("max_frames is a whole number, at least 1", self.max_frames, 1, integer=True)
        check_number("start is in seconds, from 0", self.start, 0, sys.float_info.max)
        if self.end is not None:
            check_number("end is in seconds, above start", self.end, self.start, exclusive_low=True)
        if self.index is not None and (self.start, self.end, self.max_frames) != (0, None, None):
            raise ValueError("index already says which frames; give no start, end or max_frames with it")
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
        first, last = self._range(found, name)
        among: Sequence[int] = range(first, last + 1)
        if self.sampling == "keyframes":
            among = [number for number, _ in found.keys if first <= number <= last]
            if not among:
                raise VideoError(f"{name}: has no key frame from {self.start:g} s to {self.end or found.duration:g} s")
        if self.fps is not None:
            numbers = self._at_rate(self.fps, found, first, last)
            return _evenly(numbers, self.max_frames or len(numbers))
        count = 64 if self.num_frames is None else self.num_frames
        return _evenly(among, min(count, self.max_frames or count))

    def _range(self, found: Index, name: str) -> tuple[int, int]:
        """Find the numbers of the first and the last frame that are on screen from `start` on and before `end`."""
        if self.start and self.start >= found.duration:
            raise VideoError(f"{name}: ends after {found.duration:.1f} s, before the start at {self.start:g} s")
        shown = found.seconds[max(0, bisect_right(found.seconds, self.start + 1e-6) - 1)]
        first = bisect_left(found.seconds, shown)  # of several with one stamp, all are read
        after = len(found) if self.end is None else bisect_left(found.seconds, self.end - 1e-6)
        return first, max(first, after - 1)

    def _at_rate(self, fps: float, found: Index, first: int, last: int) -> list[int]:
        # Of each frame, the last step it is still shown at: steps may be very many, frames are not.
        rate = min(fps, 1e7)  # no frame is shown for less than a microsecond
        end = found.duration if self.end is None else min(self.end, found.duration)
        steps = max(1, ceil((end - self.start) * rate - 1e-6))
        afters = found.seconds[first + 1 : last + 1]
        shown = [min(steps, ceil((after - self.start - 1e-6) * rate)) - 1 for after in afters]
        return [first + i for i, (before, at) in enumerate(pairwise((-1, *shown, steps - 1))) if at > before]


def _evenly(among: Sequence[int], count: int) -> list[int]:
    count = min(len(among), count)
    return [among[round(i * (len(among) - 1) / max(count - 1, 1))] for i in range(count)]


def _whole(number: Any) -> int:
    try:
        return operator.index(number)
    except TypeError as error:
        raise ValueError(f"expected whole frame numbers in index, got {number!r}") from error
