"""The tokens that stay, moved next to one another, one at a time."""

import torch
from torch import Tensor

from vidsieve.ops.definitions import CompactProblem, CompactRowsProblem


def compact(problem: CompactProblem) -> tuple[Tensor, Tensor]:
    order = problem.order
    kept = [i for i, step in enumerate(order.tolist()) if step >= 0]
    source = torch.full((len(order),), -1, dtype=torch.int64, device=order.device)
    for row, i in enumerate(kept):
        source[i] = row
    return torch.tensor(kept, dtype=torch.int64, device=order.device), source


def compact_rows(problem: CompactRowsProblem) -> tuple[Tensor, Tensor, Tensor]:
    kept_row, longest, begin, length = problem
    index = torch.zeros(len(kept_row), longest, dtype=torch.int64, device=kept_row.device)
    valid = torch.zeros_like(index)
    slot = torch.zeros(len(kept_row), length, dtype=torch.int64, device=kept_row.device)
    for row, columns in enumerate(kept_row):
        stays = torch.ones(length, dtype=torch.bool, device=kept_row.device)
        stays[begin : begin + len(columns)] = columns >= 0
        at = stays.nonzero()[:, 0]
        new = torch.arange(longest - len(at), longest, device=at.device)
        index[row, new] = at
        valid[row, new] = 1
        slot[row, at] = new
    return index, valid, slot
