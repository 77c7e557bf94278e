"""Cut a video into segments: contiguous runs of complete frames, without a wait for the device.

A segmenter maps `VideoTokens`, and the statistics that it requires, to `Segments`. The number of segments is a bound
known on the host; segments may be empty, so that the host need not read cuts that were found on the device.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch

from vidsieve import ops
from vidsieve.checks import check_number
from vidsieve.types.segments import Segments
from vidsieve.types.statistics import UNMEASURED, TokenStatistics
from vidsieve.types.tokens import VideoTokens


class Segmenter(Protocol):
    """Cuts an unreduced video into segments. It may declare `requires`, of "persistence" and "norm"."""

    def __call__(self, tokens: VideoTokens, stats: TokenStatistics) -> Segments: ...


def _longest(tokens: VideoTokens, frames: int | None) -> int:
    """Bound the tokens of a segment of at most `frames` frames; None for any number."""
    return tokens.tokens_per_video if frames is None else min(tokens.tokens_per_video, max(tokens.frames) * frames)


@dataclass(frozen=True)
class Whole:
    """Makes the complete video one segment."""

    batches: ClassVar[bool] = True
    captures: ClassVar[bool] = True

    def __call__(self, tokens: VideoTokens, stats: TokenStatistics = UNMEASURED) -> Segments:
        device = tokens.features.device
        return Segments(
            torch.arange(0, len(tokens) + 1, tokens.tokens_per_video, device=device), tokens.tokens_per_video
        )


@dataclass(frozen=True)
class Uniform:
    """Begins a segment every `frames` frames; the last may be shorter. Raises `ValueError` for less than 1."""

    batches: ClassVar[bool] = True
    captures: ClassVar[bool] = True

    frames: int

    def __post_init__(self) -> None:
        check_number("frames is a whole number, at least 1 a segment", self.frames, 1, integer=True)

    def __call__(self, tokens: VideoTokens, stats: TokenStatistics = UNMEASURED) -> Segments:
        if tokens.regular and len(tokens.frames) % self.frames == 0:
            size = self.frames * tokens.frames[0]
            return Segments(torch.arange(0, len(tokens) + 1, size, device=tokens.features.device), size)
        # A slice, not an index: every `frames`-th bound of a video and the last one, without a look at the device.
        begins = tokens.offsets[:-1].view(tokens.videos, -1)[:, :: self.frames]
        return Segments(torch.cat([begins.flatten(), tokens.offsets[-1:]]), _longest(tokens, self.frames))


@dataclass(frozen=True)
class Within:
    """Makes the fewest segments of at most `tokens` tokens, all runs of complete frames, to bound the cost.

    A selection by diversity needs no cuts, because it avoids similar tokens anyway, but its cost grows with the square
    of the length of a segment. A frame with more tokens is a segment.
    """

    batches: ClassVar[bool] = True
    captures: ClassVar[bool] = True

    tokens: int = 8 * 196

    def __post_init__(self) -> None:
        check_number("tokens is a whole number, at least 1 a segment", self.tokens, 1, integer=True)

    def __call__(self, tokens: VideoTokens, stats: TokenStatistics = UNMEASURED) -> Segments:
        frames = len(tokens.frames)
        most = max(1, self.tokens // max(tokens.frames))
        return Uniform(-(-frames // -(-frames // most)))(tokens, stats)


@dataclass(frozen=True)
class PerFrame:
    """Makes every frame a segment."""

    batches: ClassVar[bool] = True
    captures: ClassVar[bool] = True

    def __call__(self, tokens: VideoTokens, stats: TokenStatistics = UNMEASURED) -> Segments:
        return Segments(tokens.offsets, max(tokens.frames))


@dataclass(frozen=True)
class SceneCuts:
    """Cuts where a frame is unlike the one before it, and splits long scenes evenly.

    threshold: a frame begins a scene when the mean persistence of its tokens (their centred cosine to the same place in
    the previous frame, method.md eq. 1) falls below this. After centring, unrelated frames score about 0 in any
    feature space, so one threshold serves all models.
    max_frames, max_tokens: scenes of more are split evenly into segments of at most so many frames and, of whole
    frames, tokens. That bounds the cost of the selection, which grows with the square of a segment. None sets no bound.
    A frame of more tokens than that is a segment.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"persistence"})
    batches: ClassVar[bool] = True
    captures: ClassVar[bool] = True

    threshold: float = 0.5
    max_frames: int | None = None
    max_tokens: int | None = 8 * 196

    def __post_init__(self) -> None:
        check_number("threshold is a mean of cosines, in [-1, 1]", self.threshold, -1, 1)
        if self.max_frames is not None:
            check_number("max_frames is a whole number, at least 1, or None", self.max_frames, 1, integer=True)
        if self.max_tokens is not None:
            check_number("max_tokens is a whole number, at least 1, or None", self.max_tokens, 1, integer=True)

    def __call__(self, tokens: VideoTokens, stats: TokenStatistics = UNMEASURED) -> Segments:
        persistence = stats.required("persistence")
        frames = self.max_frames
        if self.max_tokens is not None:
            within = max(1, self.max_tokens // max(tokens.frames))
            frames = within if frames is None else min(frames, within)
        problem = ops.SceneCutsProblem(persistence, tokens.offsets, self.threshold, frames, tokens.videos)
        return Segments(ops.scene_cuts(problem), _longest(tokens, frames))
