"""What is measured of tokens, by kernels; and the products and cosines within segments that selections read."""

from typing import Any

import torch
from torch import Tensor

from vidsieve.ops.definitions import ContrastProblem, MeasureProblem, Measures, MinMaxProblem, TransienceProblem
from vidsieve.ops.launch import cdiv, covering, launch, multiprocessors, precision, rows_of
from vidsieve.ops.measurement.gram import _gram_kernel, _segment_gram_kernel
from vidsieve.ops.measurement.kernels import (
    _contrast_kernel,
    _direction_kernel,
    _from_products_kernel,
    _measure_kernel,
    _min_max_kernel,
    _transience_kernel,
    _unit_kernel,
)

ONCE = 256  # tokens of a segment of which one program holds all of S


def measure(problem: MeasureProblem) -> Measures:
    x, frames, y, persistence, segments, questions, centre = problem
    x = rows_of(x)
    n, d = x.shape
    tokens = sum(frames)  # of each video
    norm = torch.empty(n, device=x.device, dtype=torch.float32)
    nonfinite = torch.empty(n, device=x.device, dtype=torch.int32)
    cosine = norm if y is None else torch.empty_like(norm)
    parts = 0 if persistence or segments is None else parts_of(x, *segments)
    direction = norm if y is None else _directions(y, questions or (len(y),), x if parts else None)
    if segments is not None and parts:
        products, square, along = products_of(x, None if y is None else direction, *segments, parts)
        launch(
            _from_products_kernel, (cdiv(n, 256),), x, square, along, norm, nonfinite, cosine, n, x.stride(0),
            D=d, PARTS=parts, COSINE=y is not None, BLOCK=256, BLOCK_D=4,
        )  # fmt: skip
        return Measures(norm, nonfinite, None, None if y is None else cosine, products)
    persist = torch.empty_like(norm) if persistence else norm
    mean, share = norm, tokens
    if persistence and centre is None:
        mean = x.view(-1, tokens, d).mean(1, dtype=torch.float32)  # (V, D)
    elif centre is not None:
        mean, share = centre.float().contiguous(), frames[0]  # (T, D)
    launch(
        _measure_kernel, (n,),
        x, mean, direction, norm, nonfinite, persist, cosine, n, tokens, frames[0], share, x.stride(0),
        D=d, PERSISTENCE=persistence, COSINE=y is not None, BLOCK_N=1, BLOCK_D=min(512, covering(d)),
    )  # fmt: skip
    return Measures(norm, nonfinite, persist if persistence else None, None if y is None else cosine)


def _directions(y: Tensor, rows: tuple[int, ...], like: Tensor | None) -> Tensor:
    """The means of so many rows each of y (M, D), at length one: float32 (V, D), or (V, D, 16) of the type of `like`,
    in columns."""
    y = rows_of(y)
    m, d = y.shape
    unit = torch.empty(m, d, device=y.device, dtype=torch.float32)
    launch(_unit_kernel, (m,), y, unit, y.stride(0), D=d, BLOCK_D=covering(d), num_warps=8)
    out = unit.new_empty(len(rows), d) if like is None else like.new_empty(len(rows), d, 16)
    alike = len(set(rows)) == 1
    for which, some in [(out, unit)] if alike else zip(torch.split(out, 1), torch.split(unit, list(rows)), strict=True):
        grid = cdiv(d, 128), len(which)
        launch(
            _direction_kernel, grid, some, which, which, len(some) // len(which),
            D=d, SPLIT=like is not None, BLOCK_D=128,
        )  # fmt: skip
    return out


def min_max(problem: MinMaxProblem) -> Tensor:
    scores, epsilon, videos = problem
    scores = scores.float().contiguous()
    out = torch.empty_like(scores)
    n = len(scores) // videos
    block = min(16384, covering(n))
    launch(_min_max_kernel, (videos,), scores, out, n, epsilon, BLOCK=block, num_warps=max(1, min(32, block // 512)))
    return out


def transience(problem: TransienceProblem) -> Tensor:
    persistence, frames, floor, first = problem
    out = torch.empty_like(persistence)
    grid = (cdiv(len(out), 1024),)
    launch(_transience_kernel, grid, persistence, out, len(out), sum(frames), frames[0], first, floor, BLOCK=1024)
    return out


def contrast(problem: ContrastProblem) -> Tensor:
    persistence, frames, floor, knee, spread, first = problem
    out = torch.empty_like(persistence)
    block = min(1024, covering(frames[0]))
    grid = (len(out) // frames[0],)
    launch(_contrast_kernel, grid, persistence, out, sum(frames), frames[0], first, floor, knee, spread, BLOCK=block)
    return out


def parts_of(x: Tensor, offsets: Tensor, longest: int) -> int:
    """How many programs share a segment of which each holds all products; 0 where tiles are the better way.

    With few segments, the work of one is too long a wait; and before Hopper, what a program holds is lost to registers.
    """
    programs, segments = multiprocessors(x), len(offsets) - 1
    if longest > ONCE or 3 * segments <= programs:
        return 0
    if x.is_cuda and torch.cuda.get_device_capability(x.device) < (9, 0):
        return 0
    return min(2, max(1, programs // segments))


def _shape(x: Tensor) -> dict[str, Any]:
    return {"D": x.shape[1], "BLOCK_D": 32 if x.dtype == torch.float32 else 64, "PRECISION": precision(x)}


def products_of(
    x: Tensor, split: Tensor | None, offsets: Tensor, longest: int, parts: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Products within segments in planes to be added (parts, N, longest), their diagonals and products with `split`.

    split: (V, D, 16), for the segments of V videos, each with as many.
    """
    n, d = x.shape
    products = torch.empty(parts, n, longest, device=x.device, dtype=torch.float32)
    square = torch.empty(parts, n, device=x.device, dtype=torch.float32)
    along = square if split is None else torch.empty_like(square)
    block, shape = max(16, min(128, covering(longest))), _shape(x)
    launch(
        _segment_gram_kernel, (len(offsets) - 1, parts),
        x, x if split is None else split, offsets, products, square, along, longest, x.stride(0), n,
        (len(offsets) - 1) // (1 if split is None else len(split)), **shape,
        COSINE=split is not None, SHARE=cdiv(d, parts * shape["BLOCK_D"]) * shape["BLOCK_D"],
        TWICE=longest > block, BLOCK=block, num_warps=8 if block == 128 else 4, num_stages=4,
    )  # fmt: skip
    return products, square, along


def cosines_of(x: Tensor, norm: Tensor, offsets: Tensor, longest: int, aligned: bool) -> Tensor:
    """S: (N, longest), one row a token, in the order of its segment. aligned: whether `longest` is a multiple of 16."""
    s = torch.empty(len(x), longest, device=x.device, dtype=torch.float32)
    # Tiles of 128 read least, but every tile takes as long as a row is wide: it needs enough of them to pay.
    block = 128 if longest > 256 and len(x) >= 32 * multiprocessors(x) else 64 if longest > 32 else 16
    segments, reach = len(offsets) - 1, cdiv(longest, block)
    rows = len(x) // block + min(segments, len(x))  # of tiles; the last of a segment need not be full
    launch(
        _gram_kernel, (rows * reach,),
        x, norm, offsets, s, segments, longest, reach, x.stride(0), **_shape(x), ALIGNED=aligned, BLOCK=block,
        BLOCK_S=min(1024, covering(segments)), num_warps=8 if block == 128 and x.dtype == torch.float32 else 4,
        num_stages=3 if block == 128 else 4,
    )  # fmt: skip
    return s
