"""What a vision tower spends its time on: attention within segments, rotary positions, a gated activation."""

from torch import Tensor

from vidsieve.ops.definitions import GateProblem, RotaryProblem, SegmentAttentionProblem
from vidsieve.ops.dispatch import choose
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
