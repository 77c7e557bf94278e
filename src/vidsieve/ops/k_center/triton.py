"""Groups of pixels that stand for those near them, by kernels that do not ask how many of a block there are."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from vidsieve.ops.definitions import KCenterProblem
from vidsieve.ops.k_center.blocks import BLOCK_SHARE, Blocks
from vidsieve.ops.k_center.eager import highest, kept_if_one, pieces_of
from vidsieve.ops.k_center.kernels import _distances_kernel, _nearest_kernel, _traverse_kernel
from vidsieve.ops.launch import covering, launch, rows_of

BLOCK = 64  # groups of a tile
PIECE_BYTES = 512 << 20  # of distances that are held at once: of a block, picks follow one another, so all at a time
ALIGNED = 16  # values of a group, in multiples of which they are loaded many at a time


def aligned(x: Tensor) -> Tensor:
    """Give the groups of x (T, P, C) room for zeros, which change no distance, up to a multiple of ALIGNED values."""
    x = rows_of(x)
    over = -x.shape[-1] % ALIGNED
    return pad(x, (0, over)) if over else x


def k_center(problem: KCenterProblem) -> tuple[Tensor, Tensor, Tensor]:
    x, total = aligned(problem.x), problem.total
    frames, places, width = x.shape
    blocks, device = Blocks(frames, places), x.device
    length = max(BLOCK, covering(blocks.largest))
    nonfinite = torch.empty(frames * places, dtype=torch.int32, device=device)
    radius = torch.empty(frames * places, dtype=torch.float32, device=device)
    source = torch.empty(frames * places, dtype=torch.int64, device=device)
    shape = frames, places, blocks.runs
    half = x.dtype == torch.bfloat16
    tile = 128 if half and length > BLOCK else BLOCK

    def measured(piece: slice) -> Tensor:
        count = piece.stop - piece.start
        distance = torch.empty(count, length, length, dtype=torch.float32, device=device)
        launch(
            _distances_kernel, (count * (length // tile) ** 2,),
            x, distance, nonfinite, *shape, piece.start, x.stride(0), x.stride(1),
            C=width, LENGTH=length, BLOCK=tile, BLOCK_C=min(64, max(16, covering(width))),
            PRECISION="tf32x3" if x.dtype == torch.float32 else "tf32",  # which holds what half precision does
            HALF=half, num_warps=tile // 16,
        )  # fmt: skip
        return distance

    pieces = pieces_of(blocks, length, PIECE_BYTES)
    distances = kept_if_one(measured, pieces)
    for piece in pieces:
        launch(
            _traverse_kernel, (piece.stop - piece.start,),
            distances(piece), radius, *shape, piece.start, total,
            SHARE=BLOCK_SHARE, LENGTH=length, num_warps=8 if length > 512 else 4,
        )  # fmt: skip
    kept, row = highest(radius, total)
    for piece in pieces:
        launch(
            _nearest_kernel, ((piece.stop - piece.start) * (length // BLOCK),),
            distances(piece), row, source, *shape, piece.start,
            LENGTH=length, BLOCK=BLOCK, num_warps=4,
        )  # fmt: skip
    return kept, source, nonfinite
