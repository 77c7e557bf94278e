"""The tokens that stay, moved next to one another, by kernels that do not ask how many there are."""

import torch
from torch import Tensor

from vidsieve.ops.compaction.kernels import _compact_kernel, _compact_rows_kernel
from vidsieve.ops.launch import covering, launch


def compact(
    order: Tensor, offsets: Tensor, budget: Tensor, longest: int, total: int, videos: int = 1
) -> tuple[Tensor, Tensor]:
    kept = torch.empty(total, dtype=torch.int64, device=order.device)
    source = torch.empty(len(order), dtype=torch.int64, device=order.device)
    block = min(4096, covering(longest))
    launch(
        _compact_kernel, (len(budget),), order, offsets, budget, kept, source, total,
        len(budget) // videos, len(order) // videos, total // videos, BLOCK=block, num_warps=8 if block > 1024 else 4,
    )  # fmt: skip
    return kept, source


def compact_rows(left: Tensor, longest: int, begin: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    left = left.contiguous()
    rows = len(left)
    # Not one tensor cut in two: the second half might not be aligned, and the kernel is compiled anew for that.
    index, valid = left.new_empty(rows, longest), left.new_empty(rows, longest)
    slot = left.new_empty(rows, length)
    block = min(4096, covering(length))
    launch(
        _compact_rows_kernel, (rows,), left, index, valid, slot, left.shape[1], begin, length, longest,
        PADDED=rows > 1, BLOCK=block, num_warps=8 if block > 1024 else 4,
    )  # fmt: skip
    return index, valid, slot
