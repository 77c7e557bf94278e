"""Cut a video into segments: contiguous runs of complete frames, without a wait for the device.

A segmenter maps `VideoTokens`, and the statistics that it requires, to `Segments`. The number of segments is a bound
known on the host; segments may be empty, so that the host need not read cuts that were found on the device.
"""

from dataclasses import dataclass
from itertools import pairwise
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
    chunks: ClassVar[bool] = True

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
    chunks: ClassVar[bool] = True

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


@dataclass(frozen=True)
class SceneRuns:
    """Cuts where `SceneCuts` does, and a long scene into full runs, one after another, of which the last is shorter.

    So where a segment ends does not depend on how long its scene goes on, which nobody knows of a video that is still
    to come (chunked.py).

    threshold: as in `SceneCuts`.  max_frames, max_tokens: what a run holds at most, of whole frames; a frame of more
    tokens is a segment. One of the two may be None. Raises `ValueError` if both are.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"persistence"})
    batches: ClassVar[bool] = True
    captures: ClassVar[bool] = False  # frames of unequal sizes are counted on the host
    chunks: ClassVar[bool] = True

    threshold: float = 0.5
    max_frames: int | None = None
    max_tokens: int | None = 8 * 196

    def __post_init__(self) -> None:
        SceneCuts(self.threshold, self.max_frames, self.max_tokens)  # raises what is wrong with them
        if self.max_frames is None and self.max_tokens is None:
            raise ValueError("a run needs a bound; got None for both max_frames and max_tokens")

    def __call__(self, tokens: VideoTokens, stats: TokenStatistics = UNMEASURED) -> Segments:
        persistence, most = stats.required("persistence"), self.max_frames
        if tokens.regular:
            if self.max_tokens is not None:
                within = max(1, self.max_tokens // tokens.frames[0])
                most = within if most is None else min(most, within)
            problem = ops.SceneCutsProblem(persistence, tokens.offsets, self.threshold, most, tokens.videos, even=False)
            return Segments(ops.scene_cuts(problem), _longest(tokens, most))
        problem = ops.SceneCutsProblem(persistence, tokens.offsets, self.threshold, None)
        scenes = {*ops.scene_cuts(problem).tolist()}
        bounds, begin, count = [0], 0, 0
        for size in tokens.frames:
            full = count == most or (self.max_tokens is not None and begin + size - bounds[-1] > self.max_tokens)
            if begin and (begin in scenes or full):
                bounds.append(begin)
                count = 0
            begin, count = begin + size, count + 1
        bounds.append(begin)
        longest = max(b - a for a, b in pairwise(bounds))
        return Segments(torch.tensor(bounds, device=tokens.features.device), longest)
