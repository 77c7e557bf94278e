"""The tokens that stay, moved next to one another, by kernels that do not ask how many there are."""

import torch
from torch import Tensor

from vidsieve.ops.compaction.kernels import _compact_kernel, _compact_rows_kernel
from vidsieve.ops.definitions import CompactProblem, CompactRowsProblem
from vidsieve.ops.launch import covering, launch


def compact(problem: CompactProblem) -> tuple[Tensor, Tensor]:
    order, offsets, budget, longest, total, videos = problem
    kept = torch.empty(total, dtype=torch.int64, device=order.device)
    source = torch.empty(len(order), dtype=torch.int64, device=order.device)
    block = min(4096, covering(longest))
    launch(
        _compact_kernel, (len(budget),), order, offsets, budget, kept, source, total,
        len(budget) // videos, len(order) // videos, total // videos, BLOCK=block, num_warps=8 if block > 1024 else 4,
    )  # fmt: skip
    return kept, source


def compact_rows(problem: CompactRowsProblem) -> tuple[Tensor, Tensor, Tensor]:
    kept_row, longest, begin, length = problem
    kept_row = kept_row.contiguous()
    rows = len(kept_row)
    # Not one tensor cut in two: the second half might not be aligned, and the kernel is compiled anew for that.
    index, valid = kept_row.new_empty(rows, longest), kept_row.new_empty(rows, longest)
    slot = kept_row.new_empty(rows, length)
    block = min(4096, covering(length))
    launch(
        _compact_rows_kernel, (rows,), kept_row, index, valid, slot, kept_row.shape[1], begin, length, longest,
        PADDED=rows > 1, BLOCK=block, num_warps=8 if block > 1024 else 4,
    )  # fmt: skip
    return index, valid, slot
