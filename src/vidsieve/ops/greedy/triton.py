"""The greedy selections, by kernels.

Segments of up to SHORT tokens: S in memory, one program a segment picks one token after another (short_segments.py).
Longer: in blocks of picks (long_segments.py), with S in memory up to HELD tokens and from the features beyond.
"""

import torch
from torch import Tensor

from vidsieve.ops.definitions import GreedyProblem, HybridProblem, MMRProblem
from vidsieve.ops.greedy.eager import top as top
from vidsieve.ops.greedy.long_segments import _long_segments_kernel
from vidsieve.ops.greedy.short_segments import DPP, HYBRID, MAX_MIN, MMR, _greedy_kernel, _nearest_other_kernel
from vidsieve.ops.launch import cdiv, covering, launch, multiprocessors, precision, rows_of
from vidsieve.ops.measurement.triton import cosines_of, parts_of, products_of

SHORT = 512
HELD = 2048
ALIGNED = 16  # tokens: rows of S of long segments begin at a multiple of this, so that they are read in wide pieces
CANDIDATES = 32  # tokens that a block of picks of a long segment is among: one a lane of a warp


def _greedy(rule: int, problem: GreedyProblem, trade: float = 0.0, threshold: int = 0) -> Tensor:
    x, relevance, offsets, budget, longest, total, measures, head = problem
    head = head if rule == DPP.value else None
    x = rows_of(x)
    if rule == HYBRID.value and longest <= threshold:
        rule = DPP.value
    if aligned := longest > SHORT:
        longest = cdiv(longest, ALIGNED) * ALIGNED
    n, segments, norm = len(x), len(budget), measures.norm
    r = torch.ones_like(norm) if relevance is None else relevance.float()
    at_first, early = (r, budget) if head is None else (head.relevance.float(), head.picks)
    held = longest <= HELD
    products = measures.products
    if products is None and (parts := parts_of(x, offsets, longest)):
        products, *_ = products_of(x, None, offsets, longest, parts)
    parts = 0 if products is None else len(products)
    s = products if products is not None else cosines_of(x, norm, offsets, longest, aligned) if held else norm
    nearest = _nearest_other(x, s, parts, norm, offsets, longest) if rule == MAX_MIN.value else norm
    if longest <= SHORT:
        block = covering(longest)
        order = torch.empty(n, dtype=torch.int32, device=x.device)
        c = torch.empty(
            total if rule in (DPP.value, HYBRID.value) else 1, longest, device=x.device, dtype=torch.float32
        )
        launch(
            _greedy_kernel, (segments,),
            s, norm, nearest, r, at_first, early, offsets, budget, c, order, longest, n * longest, trade, threshold,
            RULE=rule, HEAD=head is not None, PARTS=parts, ROWS=32 if total > 32 * segments else 16, BLOCK_N=block,
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
        _long_segments_kernel, (programs,),
        x, s, norm, state, r, at_first, early, offsets, budget, score, c, order, candidate, common, rest, step, solve,
        barrier, n, segments, longest, c_rows, x.stride(0), trade, threshold,
        SHARED=shared, RULE=rule, HEAD=head is not None, HELD=held, D=x.shape[1],
        PRECISION=precision(x), EXACT=precision(c),
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


def conditional_dpp(problem: GreedyProblem) -> Tensor:
    return _greedy(DPP.value, problem)


def mmr(problem: MMRProblem) -> Tensor:
    return _greedy(MMR.value, *problem)


def max_min(problem: GreedyProblem) -> Tensor:
    return _greedy(MAX_MIN.value, problem)


def hybrid(problem: HybridProblem) -> Tensor:
    return _greedy(HYBRID.value, *problem)
