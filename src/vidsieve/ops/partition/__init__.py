"""Frames into segments, and how many picks each segment may make."""

from torch import Tensor

from vidsieve.ops.definitions import ApportionProblem, NoveltyProblem, SceneCutsProblem
from vidsieve.ops.dispatch import choose
from vidsieve.ops.partition import eager


def scene_cuts(problem: SceneCutsProblem) -> Tensor:
    """Bounds of the scenes of T frames, the unused rest of the T slots empty at the end: int64 (T + 1,).

    A frame begins a scene where the mean persistence of its tokens is below `threshold`; scenes of more than
    `max_frames` frames are split, evenly or into runs of so many.
    """
    return choose(eager.scene_cuts, problem.persistence, videos=problem.videos)(problem)


def novelty(problem: NoveltyProblem) -> Tensor:
    """The sum of 1 - persistence over each segment, at least 0: float32 (S,). method.md eq. 2."""
    return choose(eager.novelty, problem.persistence)(problem)


def apportion(problem: ApportionProblem) -> Tensor:
    """Share `total` picks among segments by weight: int64 (S,), sums to `total`, method.md eq. 3.

    No segment gets more picks than it has tokens, and every non-empty one gets at least one where `total` allows.
    """
    return choose(eager.apportion, problem.offsets, videos=problem.videos)(problem)
