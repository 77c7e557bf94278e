"""Frames into segments, and how many picks each segment may make."""

from torch import Tensor

from vidsieve.ops.dispatch import choose, several
from vidsieve.ops.partition import eager


def scene_cuts(
    persistence: Tensor, offsets: Tensor, threshold: float, max_frames: int | None, videos: int = 1
) -> Tensor:
    """Bounds of the scenes of T frames, the unused rest of the T slots empty at the end: int64 (T + 1,).

    A frame begins a scene where the mean persistence (N,) of its tokens is below `threshold`; scenes of more than
    `max_frames` frames are split evenly. offsets (T + 1,) are the bounds of the frames.
    """
    return choose(eager.scene_cuts, persistence)(persistence, offsets, threshold, max_frames, **several(videos))


def novelty(persistence: Tensor, offsets: Tensor, at: Tensor | None = None) -> Tensor:
    """The sum of 1 - persistence over each segment, at least 0: float32 (S,). method.md eq. 2.

    at: int64 (N,), which of `persistence` each of the N tokens has, where those are not all.
    """
    return choose(eager.novelty, persistence)(persistence, offsets, at)


def apportion(weights: Tensor | None, offsets: Tensor, total: int, floor: float = 0.0, videos: int = 1) -> Tensor:
    """Share `total` picks among segments by weight: int64 (S,), sums to `total`, method.md eq. 3.

    weights (S,) non-negative, or None for a share by length.  floor: in [0, 1], the part of its share by length that a
    segment gets whatever its weight is. No segment gets more picks than it has tokens, and every
    non-empty one gets at least one where `total`, of at most offsets[-1], allows.
    """
    return choose(eager.apportion, offsets)(weights, offsets, total, floor, **several(videos))
