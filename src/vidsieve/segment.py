"""Where a video falls into segments: contiguous runs of whole frames, found without asking the device.

A segmenter maps `VideoTokens` to `Segments`. The number of segments is a host-side bound; a segment may be empty, so
that cuts found on the device need no look from the host.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vidsieve.tokens import VideoTokens


@dataclass(frozen=True, eq=False)
class Segments:
    """S contiguous runs of tokens.

    offsets: int64 (S + 1,), segment s is the tokens offsets[s] .. offsets[s + 1] - 1; equal neighbours, empty segment.
    longest: a bound on the tokens of one segment, known on the host.
    """

    offsets: Tensor
    longest: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Tensor:
        """Tokens in each segment: int64 (S,)."""
        return self.offsets.diff()


class Segmenter(Protocol):
    """Cuts a video into segments."""

    def __call__(self, tokens: VideoTokens) -> Segments: ...


def cut(tokens: VideoTokens, segmenter: Segmenter) -> Segments:
    """The segments of `tokens`; those of a reduced video are found on the video as it came.

    What a merge leaves of a still scene is what changed in it, which by itself would look like a cut in every frame.
    """
    if tokens.origin is None:
        return segmenter(tokens)
    whole = segmenter(tokens.origin.whole)
    return Segments(torch.searchsorted(tokens.origin.kept, whole.offsets), min(len(tokens), whole.longest))


def _from_frame_bounds(tokens: VideoTokens, bounds: Tensor, longest_frames: int) -> Segments:
    """Segments that begin at frames `bounds` (S + 1,), none longer than `longest_frames` frames."""
    longest = min(len(tokens), max(tokens.frames) * longest_frames)
    return Segments(tokens.offsets[bounds], longest)


@dataclass(frozen=True)
class Whole:
    """The whole video is one segment."""

    def __call__(self, tokens: VideoTokens) -> Segments:
        device = tokens.features.device
        return Segments(torch.arange(2, device=device) * len(tokens), len(tokens))


@dataclass(frozen=True)
class Uniform:
    """A segment every `frames` frames; the last may be shorter."""

    frames: int

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise ValueError(f"expected at least one frame a segment, got {self.frames}")

    def __call__(self, tokens: VideoTokens) -> Segments:
        total = len(tokens.frames)
        count = -(-total // self.frames)
        bounds = (torch.arange(count + 1, device=tokens.features.device) * self.frames).clamp(max=total)
        return _from_frame_bounds(tokens, bounds, min(self.frames, total))


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

    threshold: float = 0.5
    max_frames: int | None = 8

    def __post_init__(self) -> None:
        if self.max_frames is not None and self.max_frames < 1:
            raise ValueError(f"expected max_frames of at least 1, or None; got {self.max_frames}")

    def __call__(self, tokens: VideoTokens) -> Segments:
        total = len(tokens.frames)
        t = torch.arange(total, device=tokens.features.device)
        similarity = segment_mean(tokens.persistence, tokens.offsets)  # (T,)
        first = (similarity < self.threshold) | (t == 0)
        if self.max_frames is not None:
            scene = first.cumsum(0) - 1  # (T,)
            length = torch.zeros_like(t).scatter_add_(0, scene, torch.ones_like(t))[scene]
            within = t - torch.where(first, t, 0).cummax(0).values
            parts = -(-length // self.max_frames)
            first |= within * parts // length != (within - 1) * parts // length
        # The s-th segment begins at the s-th true entry of `first`; the unused rest of the T slots is empty.
        bounds = torch.full((total + 1,), total, device=t.device)
        bounds.scatter_reduce_(0, first.cumsum(0) - 1, t, "amin")
        return _from_frame_bounds(tokens, bounds, self.max_frames or total)


def segment_mean(values: Tensor, offsets: Tensor) -> Tensor:
    """Mean of values (N,) over each of the runs that offsets (S + 1,) bound: (S,), 0 for an empty one."""
    return torch.segment_reduce(values, "mean", offsets=offsets, unsafe=True).nan_to_num(0.0)
