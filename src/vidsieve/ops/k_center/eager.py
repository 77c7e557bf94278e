"""Groups of pixels that stand for those near them, in batched torch: every block makes its next pick at once."""

from collections.abc import Callable

import torch
from torch import Tensor

from vidsieve.ops.definitions import KCenterProblem
from vidsieve.ops.k_center.blocks import BLOCK_FRAMES, SHRINK, Blocks
from vidsieve.ops.limits import MOST
from vidsieve.ops.pieces import working

PIECE_BYTES = 128 << 20  # of distances that are held at once


def k_center(problem: KCenterProblem) -> tuple[Tensor, Tensor, Tensor]:
    x, total = problem
    frames, places, _ = x.shape
    values, blocks = x.flatten(0, 1), Blocks(frames, places)
    low, high = (end.to(working(x)) for end in values.aminmax(dim=1))  # NaN if there is one; half precision has no MOST
    nonfinite = (~((low >= -MOST) & (high <= MOST))).int()
    at = _groups_of(blocks, x.device)  # (B, n), -1 behind the last group of a smaller block
    pieces = pieces_of(blocks, blocks.largest, PIECE_BYTES)
    distances = kept_if_one(lambda piece: _distances(values, at[piece]), pieces)
    radius = x.new_full((len(values) + 1,), -1.0, dtype=working(x))  # the last one for what is no group
    for piece in pieces:
        most = [blocks.most(blocks.size(block), total) for block in range(blocks.count)[piece]]
        radius[at[piece]] = _traverse(distances(piece), most)
    kept, row = highest(radius[:-1], total)
    source = torch.empty_like(radius, dtype=torch.int64)
    for piece in pieces:
        here = at[piece]
        beside = torch.where(here < 0, -1, row[here])  # of each group, its row among those that are kept
        apart = distances(piece).masked_fill((beside < 0)[:, None], torch.inf)
        nearest = beside.gather(1, apart.argmin(2))
        source[here] = torch.where(beside < 0, nearest, beside)
    return kept, source[:-1], nonfinite


def pieces_of(blocks: Blocks, length: int, held: int) -> list[slice]:
    """Runs of blocks whose distances, of `length` groups each, are in `held` bytes at once."""
    fit = max(1, held // (4 * length**2))
    return [slice(begin, min(begin + fit, blocks.count)) for begin in range(0, blocks.count, fit)]


def kept_if_one(make: Callable[[slice], Tensor], pieces: list[slice]) -> Callable[[slice], Tensor]:
    """Make the distances of a piece; if there is only one, once."""
    if len(pieces) > 1:
        return make
    held = make(pieces[0])
    return lambda piece: held


def highest(radius: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """Eq. 26: the `total` groups of the largest radius (N,), sorted, and the row of each group among these, or -1."""
    kept = radius.argsort(descending=True, stable=True)[:total].sort().values
    rows = torch.arange(total, device=kept.device)
    return kept, torch.full_like(radius, -1, dtype=torch.int64).scatter_(0, kept, rows)


def _groups_of(blocks: Blocks, device: torch.device) -> Tensor:
    frames, places, runs = blocks.frames, blocks.places, blocks.runs
    at = torch.full((blocks.count, blocks.largest), -1, dtype=torch.int64, device=device)
    every = torch.arange(frames * places, device=device).view(frames, places)
    for block in range(blocks.count):
        begin, run = block // runs * BLOCK_FRAMES, block % runs
        here = every[begin : begin + BLOCK_FRAMES, run * places // runs : (run + 1) * places // runs].flatten()
        at[block, : len(here)] = here
    return at


def _distances(values: Tensor, at: Tensor) -> Tensor:
    """Eq. 24: (B, n, n), of the groups `at` each place of B blocks; 0 where not finite, -1 of what is no group."""
    x = values[at.clamp(min=0)].to(working(values)) * SHRINK
    square = x.square().sum(2)
    found = torch.baddbmm(square[:, :, None] + square[:, None], x, x.mT, alpha=-2).clamp_(min=0)
    return found.nan_to_num_(0.0, posinf=0.0).masked_fill_((at < 0)[:, None], -1.0)


def _traverse(distance: Tensor, most: list[int]) -> Tensor:
    """Eq. 25: the radius of each group of B blocks (B, n), of which `most` are picked, -1 of the others."""
    radius = torch.full_like(distance[:, 0], -1.0)
    may, nearest = torch.tensor(most, device=distance.device)[:, None], distance[:, 0].clone()
    nearest[:, 0], radius[:, 0] = -1.0, torch.inf
    for step in range(1, max(most)):
        best, pick = nearest.max(1, keepdim=True)
        radius.scatter_(1, pick, best.where(step < may, radius.gather(1, pick)))
        nearest = nearest.minimum(distance.gather(1, pick[..., None].expand(-1, -1, distance.shape[2]))[:, 0])
        nearest.scatter_(1, pick, -1.0)
    return radius
