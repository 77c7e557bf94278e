"""The tokens that stay, moved next to one another."""

from torch import Tensor

from vidsieve.ops.compaction import eager
from vidsieve.ops.dispatch import choose, several


def compact(
    order: Tensor, offsets: Tensor, budget: Tensor, longest: int, total: int, videos: int = 1
) -> tuple[Tensor, Tensor]:
    """The `total` tokens that order (N,) says were picked, sorted (total,), and each one's row among them or -1 (N,).

    Every segment has made exactly its budget (S,) of picks. Does not ask the device how many there are. Of several
    videos, both count from each one's first.
    """
    return choose(eager.compact, order)(order, offsets, budget, longest, total, **several(videos))


def compact_rows(left: Tensor, longest: int, begin: int = 0, length: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """What stays of every row of L, on the right of rows of `longest`, which the most that a row has is known to be.

    left: int64 (B, N), below 0 where it goes, of the columns from `begin` on; all other columns stay.  length: L,
    N unless given.
    index: the column each new place takes, 0 on padding, int64 (B, M).  valid: 0 on padding, else 1, int64 (B, M).
    slot: the new place of each column that stays, int64 (B, L); of others it is undefined.
    """
    return choose(eager.compact_rows, left)(left, longest, begin, length or left.shape[1])
