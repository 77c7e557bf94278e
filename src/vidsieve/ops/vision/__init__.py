"""What a vision tower spends its time on: attention within segments, rotary positions, a gated activation."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from vidsieve.ops.definitions import GateProblem, RotaryProblem, SegmentAttentionProblem
from vidsieve.ops.dispatch import choose, choose_once
from vidsieve.ops.vision import eager


def segment_attention(problem: SegmentAttentionProblem) -> Tensor:
    """Compute the attention of each query to the keys of its segment: (N, H, d). method.md, eq. 21."""
    return choose(eager.segment_attention, problem.query)(problem)


def rotate_(problem: RotaryProblem) -> None:
    """Rotate queries and keys by their positions, in place. method.md, eq. 22."""
    choose(eager.rotate_, problem.qkv)(problem)


def gate(problem: GateProblem) -> Tensor:
    """Compute silu(a) * b of the halves a and b of each row: (N, columns), 0 from `width` on. method.md, eq. 23."""
    return choose(eager.gate, problem.x)(problem)


class VisionOperations(NamedTuple):
    """These operations; by default each call chooses its implementation."""

    segment_attention: Callable[[SegmentAttentionProblem], Tensor] = segment_attention
    rotate_: Callable[[RotaryProblem], None] = rotate_
    gate: Callable[[GateProblem], Tensor] = gate

    @classmethod
    def chosen_for(cls, x: Tensor) -> "VisionOperations":
        """Choose the implementations that run on tensors like `x`, for all layers of a call."""
        return cls(choose_once(eager.segment_attention, x), choose_once(eager.rotate_, x), choose_once(eager.gate, x))
