"""The attention that tokens receive."""

from torch import Tensor

from vidsieve.ops.attention import eager
from vidsieve.ops.definitions import AttentionProblem
from vidsieve.ops.dispatch import choose


def received_attention(problem: AttentionProblem) -> Tensor:
    """The attention each of L tokens receives, averaged over H heads and M queries: float32 (L,).

    method.md, eq. 16, which says what memory it takes.
    """
    return choose(eager.received_attention, problem.query)(problem)
