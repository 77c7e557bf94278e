"""The tokens that stay, moved next to one another, in batched torch."""

import torch
from torch import Tensor


def compact(order: Tensor, offsets: Tensor, budget: Tensor, longest: int, total: int) -> tuple[Tensor, Tensor]:
    picked = order >= 0
    source = torch.where(picked, picked.cumsum(0) - 1, -1)
    kept = source.new_zeros(total + 1)  # and one for what is not picked
    kept.scatter_(0, source.where(picked, total), torch.arange(len(order), device=order.device))
    return kept[:total], source


def compact_rows(left: Tensor, longest: int, begin: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    stays = left >= 0
    if stays.shape[1] < length:
        stays = torch.nn.functional.pad(stays, (begin, length - begin - stays.shape[1]), value=True)
    seen = stays.cumsum(1)  # (B, L)
    shift = longest - seen[:, -1:]  # (B, 1) padding of each row
    rank = torch.arange(1, longest + 1, device=left.device) - shift  # (B, M) from 1 on, what is below is padding
    return torch.searchsorted(seen, rank), (rank > 0).long(), seen + (shift - 1)
