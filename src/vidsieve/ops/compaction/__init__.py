"""The tokens that stay, moved next to one another."""

from torch import Tensor

from vidsieve.ops.compaction import eager
from vidsieve.ops.definitions import CompactProblem, CompactRowsProblem
from vidsieve.ops.dispatch import choose


def compact(problem: CompactProblem) -> tuple[Tensor, Tensor]:
    """The tokens that were picked, sorted, int64 (total,), and each token's row among them or -1, int64 (N,).

    Does not ask the device how many there are. Of several videos, both count from each one's first.
    """
    return choose(eager.compact, problem.order, videos=problem.videos)(problem)


def compact_rows(problem: CompactRowsProblem) -> tuple[Tensor, Tensor, Tensor]:
    """What stays of every row of L columns, on the right of rows of M = `longest`.

    index: the column each new place takes, 0 on padding, int64 (B, M).  valid: 0 on padding, else 1, int64 (B, M).
    slot: the new place of each column that stays, int64 (B, L); of others it is undefined.
    """
    return choose(eager.compact_rows, problem.kept_row)(problem)
