"""Frames: what is read of a video file."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vidsieve.checks import show
from vidsieve.errors import redacted


@dataclass(frozen=True, eq=False)
class Frames:
    """Frames sampled from one video file.

    pixels: uint8 (T, H, W, 3), RGB.  index: the T frame numbers in the file.  seconds: their T time stamps.
    fps, total, duration: of the file (frames per second, number of frames, seconds).
    source: path or address, the latter without user, password and query.
    decoded: how many frames were decoded to get these.  key_frames: of the file.  0 where they are not known.
    """

    pixels: Tensor
    index: tuple[int, ...]
    seconds: tuple[float, ...]
    fps: float
    total: int
    duration: float
    source: str = ""
    decoded: int = 0
    key_frames: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "source", redacted(self.source))
        if self.pixels.ndim != 4 or self.pixels.shape[-1] != 3 or self.pixels.dtype != torch.uint8:
            raise ValueError(f"expected pixels uint8 (T, H, W, 3), got {show(self.pixels)}")
        if not len(self.pixels) == len(self.index) == len(self.seconds):
            raise ValueError(
                f"expected one index and one time stamp a frame, got {len(self.pixels)} frames, "
                f"{len(self.index)} indices, {len(self.seconds)} time stamps"
            )

    def __len__(self) -> int:
        return len(self.pixels)

    def part(self, begin: int, end: int) -> "Frames":
        """Take the frames from `begin` to before `end`."""
        here = slice(begin, end)
        return replace(self, pixels=self.pixels[here], index=self.index[here], seconds=self.seconds[here])

    def chosen(self, places: Sequence[int]) -> "Frames":
        """Take the frames at these places, which rise; no pixel is copied of some that follow one another."""
        if places[-1] - places[0] == len(places) - 1:
            return self.part(places[0], places[-1] + 1)
        return replace(
            self,
            pixels=self.pixels[list(places)],
            index=tuple(self.index[place] for place in places),
            seconds=tuple(self.seconds[place] for place in places),
        )

    def __repr__(self) -> str:
        return f"Frames({show(self.pixels)}, {self.fps:.2f} fps, {self.duration:.1f} s, source={self.source!r})"
