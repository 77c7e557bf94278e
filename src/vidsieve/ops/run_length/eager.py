"""Groups of pixels that repeat one before them, in batched torch.

All differences along time are taken first, T^2 / 2 numbers a place. What is kept follows from these alone, for many
thresholds at once, so the pixels are not read again for each.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from vidsieve.ops.definitions import HoldHighestProblem, RunLengthProblem
from vidsieve.ops.limits import MOST, SECTIONS, WIDTHS
from vidsieve.ops.pieces import split_pieces, working

BLOCK = 16  # frames that are compared with all before them at once


def run_length(problem: RunLengthProblem) -> tuple[Tensor, Tensor, Tensor]:
    x, total = problem.x, problem.total
    difference, nonfinite = _differences(x)
    threshold = difference.new_full((1,), problem.threshold) if total is None else _threshold(difference, total)
    score = difference.new_full(x.shape[:2], torch.inf)
    for t, (found, new) in enumerate(_walk(difference, threshold), 1):
        score[t] = torch.where(new, torch.inf, found.nan_to_num(0.0, posinf=torch.inf))[:, 0]
    return *hold_highest(HoldHighestProblem(score, total)), nonfinite


def hold_highest(problem: HoldHighestProblem) -> tuple[Tensor, Tensor]:
    score, total = problem
    flat = score.flatten()
    if total is None:
        kept = (flat == torch.inf).nonzero()[:, 0]
    else:
        kept = flat.argsort(descending=True, stable=True)[:total].sort().values
    rows = torch.arange(len(kept), device=kept.device)
    row = torch.full(flat.shape, -1, device=kept.device).scatter_(0, kept, rows)
    return kept, row.view(score.shape).cummax(0).values.flatten()  # rows of a place grow along time


def _differences(x: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 18: (P, T, T), of each frame to those before it, and whether groups are not finite: int32 (T * P,)."""
    frames, places, width = x.shape
    out = x.new_empty(places, frames, frames, dtype=working(x))
    nonfinite = torch.empty(frames, places, dtype=torch.int32, device=x.device)
    for piece in split_pieces([frames] * places, width):
        part = x[:, piece].transpose(0, 1).to(working(x), memory_format=torch.contiguous_format)
        nonfinite[:, piece] = (~(part.abs() <= MOST).all(-1)).int().mT
        for begin in range(0, frames, BLOCK):
            end = min(begin + BLOCK, frames)
            out[piece, begin:end, :end] = torch.cdist(part[:, begin:end], part[:, :end], p=1.0) / width
    return out, nonfinite.flatten()


def _walk(difference: Tensor, threshold: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Eq. 19: of each frame after the first, the differences to the last kept, and whether they are above: (P, M)."""
    places, frames, _ = difference.shape
    last = torch.zeros(places, len(threshold), dtype=torch.int64, device=difference.device)
    for t in range(1, frames):
        found = difference[:, t].gather(1, last)
        new = found > threshold
        last.masked_fill_(new, t)
        yield found, new


def _threshold(difference: Tensor, total: int) -> Tensor:
    """Eq. 20: (1,)."""
    section = torch.arange(SECTIONS - 1, -1, -1, dtype=torch.int32, device=difference.device)
    last = torch.full((1,), (SECTIONS - 1) * WIDTHS[0], dtype=torch.int32, device=difference.device)  # inf
    for width in WIDTHS:
        bits = (last - section * width).clamp(min=0)
        count = torch.full_like(bits, len(difference))
        for _, new in _walk(difference, bits.view(torch.float32)):
            count += new.sum(0, dtype=torch.int32)
        last = (last - width * section.where(count <= total, 0).amax()).clamp(min=0)
    return last.view(torch.float32)
