"""The tokens that stay, moved next to one another, one at a time."""

import torch
from torch import Tensor


def compact(order: Tensor, *segments: object) -> tuple[Tensor, Tensor]:
    kept = [i for i, step in enumerate(order.tolist()) if step >= 0]
    source = torch.full((len(order),), -1, dtype=torch.int64, device=order.device)
    for row, i in enumerate(kept):
        source[i] = row
    return torch.tensor(kept, dtype=torch.int64, device=order.device), source


def compact_rows(left: Tensor, longest: int, begin: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    index = torch.zeros(len(left), longest, dtype=torch.int64, device=left.device)
    valid = torch.zeros_like(index)
    slot = torch.zeros(len(left), length, dtype=torch.int64, device=left.device)
    for row, columns in enumerate(left):
        stays = torch.ones(length, dtype=torch.bool, device=left.device)
        stays[begin : begin + len(columns)] = columns >= 0
        at = stays.nonzero()[:, 0]
        new = torch.arange(longest - len(at), longest, device=at.device)
        index[row, new] = at
        valid[row, new] = 1
        slot[row, at] = new
    return index, valid, slot
