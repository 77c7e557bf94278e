"""The tokens that stay, moved next to one another, in batched torch."""

import torch
from torch import Tensor

from vidsieve.ops.definitions import CompactProblem, CompactRowsProblem


def compact(problem: CompactProblem) -> tuple[Tensor, Tensor]:
    order, total = problem.order, problem.total
    picked = order >= 0
    source = torch.where(picked, picked.cumsum(0) - 1, -1)
    kept = source.new_zeros(total + 1)  # and one for what is not picked
    kept.scatter_(0, source.where(picked, total), torch.arange(len(order), device=order.device))
    return kept[:total], source


def compact_rows(problem: CompactRowsProblem) -> tuple[Tensor, Tensor, Tensor]:
    kept_row, longest, begin, length = problem
    stays = kept_row >= 0
    if stays.shape[1] < length:
        stays = torch.nn.functional.pad(stays, (begin, length - begin - stays.shape[1]), value=True)
    seen = stays.cumsum(1)  # (B, L)
    shift = longest - seen[:, -1:]  # (B, 1) padding of each row
    rank = torch.arange(1, longest + 1, device=kept_row.device) - shift  # (B, M) from 1 on, what is below is padding
    return torch.searchsorted(seen, rank), (rank > 0).long(), seen + (shift - 1)
