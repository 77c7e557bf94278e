"""How much of a segment is in others, too."""

from torch import Tensor

from vidsieve.ops.definitions import ElsewhereProblem
from vidsieve.ops.dispatch import choose, plain
from vidsieve.ops.elsewhere import eager


def alike_elsewhere(problem: ElsewhereProblem) -> Tensor:
    """The largest centred cosine of each token to a token of another segment, 0 where none is above: (N,).

    method.md eq. 7c.
    """
    return choose(eager.alike_elsewhere, problem.x)(plain(problem, "x"))
