"""The greedy selections, and the products and cosines that they read.

Segments of up to SHORT tokens: S in memory, one program a segment picks one token after another (triton_greedy.py).
Longer: in blocks of picks (triton_lazy.py), with S in memory up to HELD tokens and from the features beyond.
"""

from typing import Any

import torch
from torch import Tensor

from vidsieve.ops.reference import Measures
from vidsieve.ops.triton_call import cdiv, covering, launch, multiprocessors, precision, rows_of
from vidsieve.ops.triton_gram import _gram_kernel, _segment_gram_kernel
from vidsieve.ops.triton_greedy import DPP, HYBRID, MAX_MIN, MMR, _greedy_kernel, _nearest_other_kernel
from vidsieve.ops.triton_lazy import _lazy_greedy_kernel

ONCE = 256  # tokens of a segment of which one program holds all of S
SHORT = 512
HELD = 2048
ALIGNED = 16  # tokens: rows of S of long segments begin at a multiple of this, so that they are read in wide pieces
CANDIDATES = 32  # tokens that a block of picks of a long segment is among: one a lane of a warp


def parts_of(x: Tensor, offsets: Tensor, longest: int) -> int:
    """How many programs share a segment of which each holds all products; 0 where tiles are the better way.

    With few segments, the work of one is too long a wait; and before Hopper, what a program holds is lost to registers.
    """
    programs, segments = multiprocessors(x), len(offsets) - 1
    if longest > min(ONCE, SHORT) or 3 * segments <= programs:
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


def _cosines(x: Tensor, norm: Tensor, offsets: Tensor, longest: int) -> Tensor:
    """S: (N, longest), one row a token, in the order of its segment."""
    s = torch.empty(len(x), longest, device=x.device, dtype=torch.float32)
    # Tiles of 128 read least, but every tile takes as long as a row is wide: it needs enough of them to pay.
    block = 128 if longest > 256 and len(x) >= 32 * multiprocessors(x) else 64 if longest > 32 else 16
    segments, reach = len(offsets) - 1, cdiv(longest, block)
    rows = len(x) // block + min(segments, len(x))  # of tiles; the last of a segment need not be full
    launch(
        _gram_kernel, (rows * reach,),
        x, norm, offsets, s, segments, longest, reach, x.stride(0), **_shape(x), BLOCK=block,
        BLOCK_S=min(1024, covering(segments)), num_warps=8 if block == 128 and x.dtype == torch.float32 else 4,
        num_stages=3 if block == 128 else 4,
    )  # fmt: skip
    return s


def _greedy(
    rule: int,
    x: Tensor,
    relevance: Tensor | None,
    offsets: Tensor,
    budget: Tensor,
    longest: int,
    total: int,
    known: Measures,
    trade: float = 0.0,
    threshold: int = 0,
) -> Tensor:
    x = rows_of(x)
    if rule == HYBRID.value and longest <= threshold:
        rule = DPP.value
    if longest > SHORT:
        longest = cdiv(longest, ALIGNED) * ALIGNED
    n, segments, norm = len(x), len(budget), known.norm
    r = torch.ones_like(norm) if relevance is None else relevance.float()
    held = longest <= HELD
    products = known.products
    if products is None and (parts := parts_of(x, offsets, longest)):
        products, *_ = products_of(x, None, offsets, longest, parts)
    parts = 0 if products is None else len(products)
    s = products if products is not None else _cosines(x, norm, offsets, longest) if held else norm
    nearest = _nearest_other(x, s, parts, norm, offsets, longest) if rule == MAX_MIN.value else norm
    if longest <= SHORT:
        block = covering(longest)
        order = torch.empty(n, dtype=torch.int32, device=x.device)
        c = torch.empty(
            total if rule in (DPP.value, HYBRID.value) else 1, longest, device=x.device, dtype=torch.float32
        )
        launch(
            _greedy_kernel, (segments,),
            s, norm, nearest, r, offsets, budget, c, order, longest, n * longest, trade, threshold,
            RULE=rule, PARTS=parts, ROWS=32 if total > 32 * segments else 16, BLOCK_N=block,
            BLOCK_K=max(4, min(16, 4096 // block)), num_warps=4 if block <= 256 else 8,
        )  # fmt: skip
        return order
    c_rows = {DPP.value: longest, HYBRID.value: threshold}.get(rule, 0)
    c = torch.empty((total + 7 * segments) * c_rows, device=x.device, dtype=torch.float32)
    # -1 in the order is for segments with no budget, which no program visits. It begins at a multiple of 16 bytes, or
    # the kernel would be compiled anew for it.
    room = cdiv(2 * segments, 4) * 4
    barrier, order = torch.split(torch.full((room + n,), -1, dtype=torch.int32, device=x.device), [room, n])
    shared = segments <= multiprocessors(x)
    programs = max(multiprocessors(x), segments)
    candidate = torch.empty(programs + segments, CANDIDATES, dtype=torch.int32, device=x.device)
    candidate, step = torch.split(candidate, [programs, segments])
    square = torch.empty(2, segments, CANDIDATES, CANDIDATES, device=x.device, dtype=torch.float32)
    common, solve = square.unbind()
    rest = torch.empty(CANDIDATES, n, device=x.device, dtype=torch.float32)
    score = torch.empty_like(norm)
    state = nearest if rule == MAX_MIN.value else torch.empty_like(norm)
    # Members of a team wait for one another, so all must run at once, whatever else is on the device.
    together = {"launch_cooperative_grid": True} if shared and x.is_cuda else {}
    launch(
        _lazy_greedy_kernel, (programs,),
        x, s, norm, state, r, offsets, budget, score, c, order, candidate, common, rest, step, solve, barrier,
        n, segments, longest, c_rows, x.stride(0), trade, threshold,
        SHARED=shared, RULE=rule, HELD=held, D=x.shape[1], PRECISION=precision(x), EXACT=precision(c),
        BLOCK_S=covering(segments), BLOCK_ALL=covering(longest), BLOCK_N=64 if held else 128,
        BLOCK_D=128 if x.dtype != torch.float32 else 64, BLOCK_K=32, CANDIDATES=CANDIDATES,
        num_warps=8 if longest <= 4096 else 16, **together,
    )  # fmt: skip
    return order


def _nearest_other(x: Tensor, s: Tensor, parts: int, norm: Tensor, offsets: Tensor, longest: int) -> Tensor:
    segment = torch.searchsorted(offsets[1:], torch.arange(len(x), device=x.device), right=True)
    out = torch.full((len(x),), -2.0, device=x.device)
    if longest <= HELD:
        launch(
            _nearest_other_kernel, (len(x),), s, norm, offsets, segment, out, longest, len(x) * longest,
            PARTS=parts, BLOCK_N=covering(longest),
        )  # fmt: skip
        return out
    # A block of columns at a time: never N x N, and it runs once, before the first pick.
    unit = (x * torch.where(norm > 0, norm.reciprocal(), 0)[:, None]).to(x.dtype)  # no half holds every reciprocal
    position = torch.arange(len(x), device=x.device)
    for begin in range(0, len(x), HELD):
        block = (unit @ unit[begin : begin + HELD].mT).float()  # (N, HELD)
        other = (segment[:, None] == segment[None, begin : begin + HELD]) & (
            position[:, None] != position[None, begin : begin + HELD]
        )
        out = torch.maximum(out, block.masked_fill_(~other, -2.0).amax(1))
    return out


def conditional_dpp(
    x: Tensor, relevance: Tensor, offsets: Tensor, budget: Tensor, longest: int, total: int, known: Measures
) -> Tensor:
    return _greedy(DPP.value, x, relevance, offsets, budget, longest, total, known)


def mmr(
    x: Tensor, relevance: Tensor, offsets: Tensor, budget: Tensor, longest: int, total: int, known: Measures,
    trade: float,
) -> Tensor:  # fmt: skip
    return _greedy(MMR.value, x, relevance, offsets, budget, longest, total, known, trade)


def max_min(x: Tensor, offsets: Tensor, budget: Tensor, longest: int, total: int, known: Measures) -> Tensor:
    return _greedy(MAX_MIN.value, x, None, offsets, budget, longest, total, known)


def hybrid(
    x: Tensor, relevance: Tensor, offsets: Tensor, budget: Tensor, longest: int, total: int, known: Measures,
    trade: float, threshold: int,
) -> Tensor:  # fmt: skip
    return _greedy(HYBRID.value, x, relevance, offsets, budget, longest, total, known, trade, threshold)
