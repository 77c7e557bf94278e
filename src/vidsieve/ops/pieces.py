"""What the implementations in torch share: their precision, unit vectors, and pieces of bounded memory."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

PIECE_BYTES = 32 << 20  # float32 working set of one piece of a batch: bounds the peak memory
STREAM_BYTES = 2 << 20  # of a piece that is read once, element by element: stays in a core's cache


def working(x: Tensor) -> torch.dtype:
    """Arithmetic is float32, or float64 for float64 input."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def unit_rows(x: Tensor) -> Tensor:
    return normalize(x.to(working(x)), dim=-1, eps=1e-30)


def split_pieces(lengths: Sequence[int], width: int, limit: int = PIECE_BYTES) -> Iterator[slice]:
    """Consecutive runs of items whose rows of `width` float32 fit `limit` bytes (at least one item a run)."""
    begin, size = 0, 0
    for i, n in enumerate(lengths):
        if i > begin and (size + n) * width * 4 > limit:
            yield slice(begin, i)
            begin, size = i, 0
        size += n
    if begin < len(lengths):
        yield slice(begin, len(lengths))
