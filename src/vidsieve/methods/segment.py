"""Where a video falls into segments: contiguous runs of whole frames, found without asking the device.

A segmenter maps `VideoTokens` to `Segments`. The number of segments is a host-side bound; a segment may be empty, so
that cuts found on the device need no look from the host.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch

from vidsieve import ops
from vidsieve.checks import check_number
from vidsieve.types.segments import Segments
from vidsieve.types.tokens import VideoTokens


class Segmenter(Protocol):
    """Cuts a video into segments."""

    def __call__(self, tokens: VideoTokens) -> Segments: ...


def cut(tokens: VideoTokens, segmenter: Segmenter) -> Segments:
    """The segments of `tokens`; those of a reduced video are found on the video as it came.

    What a merge leaves of a still scene is what changed in it, which by itself would look like a cut in every frame.
    """
    video = tokens.whole
    segments = next((found for other, found in video.segments if other is segmenter or other == segmenter), None)
    if segments is None:  # one stage after another asks for the same
        segments = segmenter(video)
        video.segments.append((segmenter, segments))
    if tokens.at is None:
        return segments
    return Segments(torch.searchsorted(tokens.at, segments.offsets), min(len(tokens), segments.longest))


def _longest(tokens: VideoTokens, frames: int | None) -> int:
    """A bound on the tokens of segments of at most so many frames."""
    return tokens.each if frames is None else min(tokens.each, max(tokens.frames) * frames)


@dataclass(frozen=True)
class Whole:
    """The whole video is one segment."""

    def __call__(self, tokens: VideoTokens) -> Segments:
        device = tokens.features.device
        return Segments(torch.arange(0, len(tokens) + 1, tokens.each, device=device), tokens.each)


@dataclass(frozen=True)
class Uniform:
    """A segment every `frames` frames; the last may be shorter."""

    frames: int

    def __post_init__(self) -> None:
        check_number("frames is a whole number, at least 1 a segment", self.frames, 1, whole=True)

    def __call__(self, tokens: VideoTokens) -> Segments:
        if tokens.regular and len(tokens.frames) % self.frames == 0:
            size = self.frames * tokens.frames[0]
            return Segments(torch.arange(0, len(tokens) + 1, size, device=tokens.features.device), size)
        # A slice, not an index: every `frames`-th bound of a video and the last one, without a look at the device.
        begins = tokens.offsets[:-1].view(tokens.videos, -1)[:, :: self.frames]
        return Segments(torch.cat([begins.flatten(), tokens.offsets[-1:]]), _longest(tokens, self.frames))


@dataclass(frozen=True)
class Within:
    """Runs of whole frames of at most `tokens` tokens, the fewest that are enough: segments for the sake of cost alone.

    A selection by diversity needs no cuts, it sees for itself what is alike; but what it costs grows with the square of
    a segment. A frame of more tokens is a segment.
    """

    tokens: int = 8 * 196

    def __post_init__(self) -> None:
        check_number("tokens is a whole number, at least 1 a segment", self.tokens, 1, whole=True)

    def __call__(self, tokens: VideoTokens) -> Segments:
        frames = len(tokens.frames)
        most = max(1, self.tokens // max(tokens.frames))
        return Uniform(-(-frames // -(-frames // most)))(tokens)


@dataclass(frozen=True)
class PerFrame:
    """Every frame is a segment."""

    def __call__(self, tokens: VideoTokens) -> Segments:
        return Segments(tokens.offsets, max(tokens.frames))


@dataclass(frozen=True)
class SceneCuts:
    """Cut where a frame stops resembling the one before it, and split long scenes evenly.

    threshold: a frame begins a scene when the mean persistence of its tokens (their centred cosine to the same place in
    the previous frame, method.md eq. 1) falls below this. After centring, unrelated frames score about 0 in any
    feature space, so one threshold serves all models.
    max_frames: longer scenes are split evenly into segments of at most this many frames, which bounds the cost of the
    selection; None leaves them whole.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"persistence"})

    threshold: float = 0.5
    max_frames: int | None = 8

    def __post_init__(self) -> None:
        check_number("threshold is a mean of cosines, in [-1, 1]", self.threshold, -1, 1)
        if self.max_frames is not None:
            check_number("max_frames is a whole number, at least 1, or None", self.max_frames, 1, whole=True)

    def __call__(self, tokens: VideoTokens) -> Segments:
        persistence = tokens.persistence
        offsets = ops.scene_cuts(persistence, tokens.offsets, self.threshold, self.max_frames, tokens.videos)
        return Segments(offsets, _longest(tokens, self.max_frames))
