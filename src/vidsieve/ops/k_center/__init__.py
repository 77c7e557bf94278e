"""Groups of pixels that stand for those near them: the k-center problem, by farthest-first traversal."""

from torch import Tensor

from vidsieve.ops.definitions import KCenterProblem
from vidsieve.ops.dispatch import choose, plain
from vidsieve.ops.k_center import eager


def k_center(problem: KCenterProblem) -> tuple[Tensor, Tensor, Tensor]:
    """Keep the groups that are farthest from those kept before them in their block. method.md, eq. 24-26.

    kept: int64 (K,), sorted, group p of frame t as t * P + p.  source: int64 (T * P,), for each group the row of `kept`
    of the nearest one of its block: its own, if it is kept.  nonfinite: int32 (T * P,), above 0 where a group holds
    NaN, inf or a value beyond 1e18. Asks the device nothing. Holds the distances of as many blocks as fit into 128 MiB
    (4 n^2 bytes for n groups), for kernels 512 MiB (n a power of two: up to 16 MiB a block), and computes them twice if
    those are not all.
    """
    return choose(eager.k_center, problem.x)(plain(problem, "x"))
