"""Launchers of the Triton kernels, with the signatures of eager.py. None of them asks the device anything.

Segments of up to SHORT tokens: S in memory, one program a segment picks one token after another (triton_greedy.py).
Longer: in blocks of picks (triton_lazy.py), with S in memory up to HELD tokens and from the features beyond.
"""

import os
from contextlib import nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

from vidsieve.ops import eager
from vidsieve.ops.eager import top
from vidsieve.ops.reference import Measures
from vidsieve.ops.triton_gram import _gram_kernel, _nearest_kept_kernel, _segment_gram_kernel
from vidsieve.ops.triton_greedy import DPP, HYBRID, MAX_MIN, MMR, _greedy_kernel, _nearest_other_kernel
from vidsieve.ops.triton_layout import (
    _apportion_kernel,
    _compact_kernel,
    _compact_rows_kernel,
    _min_max_kernel,
    _passing_kernel,
    _scene_cuts_kernel,
    _segment_mean_kernel,
)
from vidsieve.ops.triton_lazy import _lazy_greedy_kernel
from vidsieve.ops.triton_measure import (
    _column_mean_kernel,
    _direction_kernel,
    _measure_kernel,
    _settle_kernel,
    _unit_kernel,
)
from vidsieve.ops.triton_merge import _heads_kernel, _mean_kernel, _temporal_kernel

ONCE = 256  # tokens of a segment of which one program holds all of S
SHORT = 512
HELD = 2048
PICKS, CANDIDATES = 32, 64  # most picks of a block of a long selection, and the tokens it is among
SLOTS = 2048  # segments that one program apportions among
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_compiled: dict[tuple[object, ...], tuple[Any, list[Any]]] = {}  # and the constants each takes after its arguments


def unavailable() -> str:
    """Why the kernels cannot run here; empty where they can."""
    if INTERPRETED or torch.cuda.is_available():
        return ""
    return "Triton needs a CUDA device (or TRITON_INTERPRET=1 for the interpreter)"


__all__ = [
    "apportion",
    "compact",
    "compact_rows",
    "conditional_dpp",
    "heads",
    "hybrid",
    "max_min",
    "measure",
    "merge_mean",
    "min_max",
    "mmr",
    "nearest_kept",
    "novelty",
    "passing",
    "scene_cuts",
    "segment_mean",
    "temporal",
    "top",
    "unavailable",
]


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _launch(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    """Run `kernel` on the device of its first argument.

    Asking Triton anew which of its compiled versions fits costs the host more than the launch. So that is remembered by
    what it depends on: types, alignment, whether a number is 1, a multiple of 16 or wide.
    """
    if INTERPRETED:
        kernel[grid](*args, **options)
        return
    device = args[0].device.index
    with nullcontext() if device == torch.cuda.current_device() else torch.cuda.device(device):
        key = id(kernel), device, *map(_kind, args), *options.items()
        if key not in _compiled:
            compiled = kernel[grid](*args, **options)
            _compiled[key] = compiled, [options[name] for name in kernel.arg_names[len(args) :]]
        else:
            compiled, constants = _compiled[key]
            compiled[*grid, 1, 1](*args, *constants)


def _kind(x: Any) -> object:
    if isinstance(x, Tensor):
        return x.dtype, x.data_ptr() % 16 == 0
    if isinstance(x, int):
        return x == 1, x % 16 == 0, x.bit_length() > 31
    return type(x)


def _rows(x: Tensor) -> Tensor:
    if INTERPRETED and x.dtype == torch.bfloat16:
        x = x.float()  # the interpreter multiplies the bit patterns of bf16; products of bf16 are exact in float32
    return x if x.stride(-1) == 1 else x.contiguous()


def _precision(x: Tensor) -> str:
    return "tf32x3" if x.dtype == torch.float32 else "ieee"


def measure(
    x: Tensor, frames: tuple[int, ...], y: Tensor | None, persistence: bool, segments: tuple[Tensor, int] | None = None
) -> Measures:
    x = _rows(x)
    n, d = x.shape
    norm = torch.empty(n, device=x.device, dtype=torch.float32)
    bad = torch.empty(n, device=x.device, dtype=torch.int32)
    cosine = norm if y is None else torch.empty_like(norm)
    parts = 0 if persistence or segments is None else _parts(x, *segments)
    direction = norm if y is None else _direction(y, x if parts else None)
    if segments is not None and parts:
        products, square, along = _products(x, None if y is None else direction, *segments, parts)
        _launch(
            _settle_kernel, (triton.cdiv(n, 256),), square, along, norm, bad, cosine, n,
            PARTS=parts, COSINE=y is not None, BLOCK=256,
        )  # fmt: skip
        return Measures(norm, bad, None, None if y is None else cosine, products)
    persist = torch.empty_like(norm) if persistence else norm
    mean = norm
    if persistence:
        rows, columns = 128, 512
        blocks = triton.cdiv(n, rows)
        partial = torch.empty(blocks, d, device=x.device, dtype=torch.float32)
        grid = blocks, triton.cdiv(d, columns)
        _launch(_column_mean_kernel, grid, x, partial, n, x.stride(0), D=d, ROWS=rows, BLOCK_D=columns)
        mean = partial.sum(0)
    _launch(
        _measure_kernel, (n,), x, mean, direction, norm, bad, persist, cosine, n, frames[0], x.stride(0),
        D=d, PERSISTENCE=persistence, COSINE=y is not None, BLOCK_N=1, BLOCK_D=min(512, triton.next_power_of_2(d)),
    )  # fmt: skip
    return Measures(norm, bad, persist if persistence else None, None if y is None else cosine)


def _direction(y: Tensor, like: Tensor | None) -> Tensor:
    """The mean of y (M, D) at length one: float32 (D,), or in columns (D, 16) of the type of `like`."""
    y = _rows(y)
    m, d = y.shape
    unit = torch.empty(m, d, device=y.device, dtype=torch.float32)
    _launch(_unit_kernel, (m,), y, unit, y.stride(0), D=d, BLOCK_D=triton.next_power_of_2(d), num_warps=8)
    out = unit.new_empty(d) if like is None else like.new_empty(d, 16)
    _launch(_direction_kernel, (triton.cdiv(d, 128),), unit, out, out, m, D=d, SPLIT=like is not None, BLOCK_D=128)
    return out


def segment_mean(values: Tensor, offsets: Tensor) -> Tensor:
    return _segment_mean(values, offsets, novelty=False)


def novelty(persistence: Tensor, offsets: Tensor) -> Tensor:
    return _segment_mean(persistence, offsets, novelty=True)


def _segment_mean(values: Tensor, offsets: Tensor, novelty: bool) -> Tensor:
    out = torch.empty(len(offsets) - 1, dtype=torch.float32, device=values.device)
    _launch(_segment_mean_kernel, (len(out),), values, offsets, out, NOVELTY=novelty, BLOCK=512)
    return out


def scene_cuts(similarity: Tensor, offsets: Tensor, threshold: float, max_frames: int | None) -> Tensor:
    if len(similarity) >= SLOTS:  # beyond one program; the torch version asks the device nothing either
        return eager.scene_cuts(similarity, offsets, threshold, max_frames)
    out = torch.empty_like(offsets)
    _launch(
        _scene_cuts_kernel, (1,),
        similarity, offsets, out, len(similarity), threshold, max_frames or len(similarity),
        BLOCK=triton.next_power_of_2(len(offsets)), num_warps=4 if len(offsets) > 128 else 1,
    )  # fmt: skip
    return out


def apportion(weights: Tensor | None, offsets: Tensor, total: int) -> Tensor:
    count = len(offsets) - 1
    if count > SLOTS:
        return eager.apportion(weights, offsets, total)
    out = torch.empty(count, dtype=torch.int64, device=offsets.device)
    block = triton.next_power_of_2(count)
    _launch(
        _apportion_kernel, (1,),
        offsets if weights is None else weights, offsets, out, count, total,
        WEIGHED=weights is not None, BLOCK=block, STEP=min(block, 16), num_warps=4 if block > 128 else 1,
    )  # fmt: skip
    return out


def min_max(scores: Tensor, epsilon: float) -> Tensor:
    scores = scores.float().contiguous()
    out = torch.empty_like(scores)
    block = min(16384, triton.next_power_of_2(len(scores)))
    _launch(
        _min_max_kernel, (1,), scores, out, len(scores), epsilon, BLOCK=block, num_warps=max(1, min(32, block // 512))
    )
    return out


def compact(order: Tensor, offsets: Tensor, budget: Tensor, longest: int, total: int) -> tuple[Tensor, Tensor]:
    kept = torch.empty(total, dtype=torch.int64, device=order.device)
    source = torch.empty(len(order), dtype=torch.int64, device=order.device)
    block = min(4096, triton.next_power_of_2(longest))
    _launch(
        _compact_kernel,
        (len(budget),),
        order,
        offsets,
        budget,
        kept,
        source,
        total,
        BLOCK=block,
        num_warps=8 if block > 1024 else 4,
    )
    return kept, source


def compact_rows(stays: Tensor, longest: int) -> tuple[Tensor, Tensor, Tensor]:
    stays = stays.contiguous()
    index = torch.empty(len(stays), longest, dtype=torch.int64, device=stays.device)
    valid = torch.empty_like(index, dtype=torch.bool)
    slot = torch.empty_like(stays, dtype=torch.int64)
    block = min(4096, triton.next_power_of_2(stays.shape[1]))
    _launch(
        _compact_rows_kernel,
        (len(stays),),
        stays,
        index,
        valid,
        slot,
        stays.shape[1],
        longest,
        BLOCK=block,
        num_warps=8 if block > 1024 else 4,
    )
    return index, valid, slot


def passing(persistence: Tensor, frames: tuple[int, ...], floor: float) -> Tensor:
    out = torch.empty_like(persistence)
    _launch(_passing_kernel, (triton.cdiv(len(out), 1024),), persistence, out, len(out), frames[0], floor, BLOCK=1024)
    return out


def _parts(x: Tensor, offsets: Tensor, longest: int) -> int:
    """How many programs share a segment of which each holds all products; 0 where tiles are the better way.

    With few segments, the work of one is too long a wait; and before Hopper, what a program holds is lost to registers.
    """
    programs, segments = _programs(x), len(offsets) - 1
    if longest > min(ONCE, SHORT) or 3 * segments <= programs:
        return 0
    if x.is_cuda and torch.cuda.get_device_capability(x.device) < (9, 0):
        return 0
    return min(2, max(1, programs // segments))


def _shape(x: Tensor) -> dict[str, Any]:
    return {"D": x.shape[1], "BLOCK_D": 32 if x.dtype == torch.float32 else 64, "PRECISION": _precision(x)}


def _products(
    x: Tensor, split: Tensor | None, offsets: Tensor, longest: int, parts: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Products within segments in planes to be added (parts, N, longest), their diagonals and products with `split`."""
    n, d = x.shape
    products = torch.empty(parts, n, longest, device=x.device, dtype=torch.float32)
    square = torch.empty(parts, n, device=x.device, dtype=torch.float32)
    along = square if split is None else torch.empty_like(square)
    block, shape = max(16, min(128, triton.next_power_of_2(longest))), _shape(x)
    _launch(
        _segment_gram_kernel, (len(offsets) - 1, parts),
        x, x if split is None else split, offsets, products, square, along, longest, x.stride(0), n,
        **shape, COSINE=split is not None, SHARE=triton.cdiv(d, parts * shape["BLOCK_D"]) * shape["BLOCK_D"],
        TWICE=longest > block, BLOCK=block, num_warps=8 if block == 128 else 4, num_stages=4,
    )  # fmt: skip
    return products, square, along


def _cosines(x: Tensor, norm: Tensor, offsets: Tensor, longest: int) -> Tensor:
    """S: (N, longest), one row a token, in the order of its segment."""
    s = torch.empty(len(x), longest, device=x.device, dtype=torch.float32)
    block = 128 if longest > 256 else 64 if longest > 32 else 16
    tiles = triton.cdiv(longest, block)
    _launch(
        _gram_kernel, (tiles * tiles, len(offsets) - 1),
        x, norm, offsets, s, longest, x.stride(0), **_shape(x), TILES=tiles, BLOCK=block,
        num_warps=8 if block == 128 else 4, num_stages=3 if block == 128 else 4,
    )  # fmt: skip
    return s


def _programs(x: Tensor) -> int:
    """How many programs can meet at a barrier: one a multiprocessor; the interpreter runs one after another."""
    return torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 1


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
    x = _rows(x)
    if rule == HYBRID.value and longest <= threshold:
        rule = DPP.value
    n, segments, norm = len(x), len(budget), known.norm
    order = torch.empty(n, dtype=torch.int32, device=x.device)
    r = torch.ones_like(norm) if relevance is None else relevance.float()
    held = longest <= HELD
    products = known.products
    if products is None and (parts := _parts(x, offsets, longest)):
        products, *_ = _products(x, None, offsets, longest, parts)
    parts = 0 if products is None else len(products)
    s = products if products is not None else _cosines(x, norm, offsets, longest) if held else norm
    nearest = _nearest_other(x, s, parts, norm, offsets, longest) if rule == MAX_MIN.value else norm
    if longest <= SHORT:
        block = triton.next_power_of_2(longest)
        c = torch.empty(
            total if rule in (DPP.value, HYBRID.value) else 1, longest, device=x.device, dtype=torch.float32
        )
        _launch(
            _greedy_kernel, (segments,),
            s, norm, nearest, r, offsets, budget, c, order, longest, n * longest, trade, threshold,
            RULE=rule, PARTS=parts, ROWS=32 if total > 32 * segments else 16, BLOCK_N=block,
            BLOCK_K=max(4, min(16, 4096 // block)), num_warps=4 if block <= 256 else 8,
        )  # fmt: skip
        return order
    c_rows = {DPP.value: longest, HYBRID.value: threshold}.get(rule, 0)
    c = torch.empty((total + 7 * segments) * c_rows, device=x.device, dtype=torch.float32)
    order.fill_(-1)  # of segments with no budget, which no program visits
    barrier = torch.zeros(segments, dtype=torch.int32, device=x.device)
    scratch = torch.empty(segments * (CANDIDATES + 2) + total + PICKS, dtype=torch.int32, device=x.device)
    count, candidate, pick = torch.split(scratch, [2 * segments, segments * CANDIDATES, total + PICKS])
    common = torch.empty(segments, CANDIDATES, CANDIDATES, device=x.device, dtype=torch.float32)
    solve = torch.empty(segments, PICKS, PICKS, device=x.device, dtype=torch.float32)
    state = nearest if rule == MAX_MIN.value else torch.empty_like(norm)
    programs = _programs(x)
    shared = segments <= programs
    # Members of a team wait for one another, so all must run at once, whatever else is on the device.
    together = {"launch_cooperative_grid": True} if shared and x.is_cuda else {}
    block_all = triton.next_power_of_2(longest)
    _launch(
        _lazy_greedy_kernel, (max(programs, segments),),
        x, s, norm, state, r, offsets, budget, c, order, candidate, common, pick, solve, count, barrier,
        segments, longest, c_rows, x.stride(0), trade, threshold, SHARED=shared,
        RULE=rule, HELD=held, D=x.shape[1], PRECISION=_precision(x),
        BLOCK_S=triton.next_power_of_2(segments), BLOCK_ALL=block_all,
        CANDIDATES=CANDIDATES, PICKS=PICKS,
        EXACT="ieee" if INTERPRETED else "bf16x6",  # float32 products from six of bf16, on tensor cores
        BLOCK_N=128, BLOCK_D=128 if x.dtype != torch.float32 else 64, BLOCK_K=32,
        num_warps=8 if block_all <= 4096 else 16, **together,
    )  # fmt: skip
    return order


def _nearest_other(x: Tensor, s: Tensor, parts: int, norm: Tensor, offsets: Tensor, longest: int) -> Tensor:
    segment = torch.searchsorted(offsets[1:], torch.arange(len(x), device=x.device), right=True)
    out = torch.full((len(x),), -2.0, device=x.device)
    if longest <= HELD:
        _launch(
            _nearest_other_kernel, (len(x),), s, norm, offsets, segment, out, longest, len(x) * longest,
            PARTS=parts, BLOCK_N=triton.next_power_of_2(longest),
        )  # fmt: skip
        return out
    # A block of columns at a time: never N x N, and it runs once, before the first pick.
    unit = x * torch.where(norm > 0, norm.reciprocal(), 0)[:, None].to(x.dtype)
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


def nearest_kept(x: Tensor, offsets: Tensor, kept: Tensor) -> Tensor:
    x = _rows(x)
    norm = measure(x, (1,), None, False).norm
    segment = torch.searchsorted(offsets[1:], torch.arange(len(x), device=x.device), right=True)
    rows = torch.searchsorted(kept, offsets)  # (S + 1,) rows of `kept` before each segment
    source = torch.empty(len(x), dtype=torch.int64, device=x.device)
    _launch(
        _nearest_kept_kernel, (triton.cdiv(len(x), 64),),
        x, norm, segment, rows, kept, source, len(x), x.stride(0),
        D=x.shape[1], PRECISION=_precision(x), BLOCK_N=64, BLOCK_K=64, BLOCK_D=32,
    )  # fmt: skip
    return source.scatter_(0, kept, torch.arange(len(kept), device=x.device))


def temporal(
    x: Tensor, norm: Tensor, offsets: Tensor, frames: tuple[int, ...], at: Tensor | None
) -> tuple[Tensor, Tensor]:
    x = _rows(x)
    n, d = x.shape
    before = torch.empty(n, dtype=torch.int64, device=x.device)
    cosine = torch.empty(n, dtype=torch.float32, device=x.device)
    slot = before
    if at is not None:
        slot = torch.full((sum(frames),), -1, dtype=torch.int32, device=x.device)
        slot.index_copy_(0, at, torch.arange(n, dtype=torch.int32, device=x.device))
    segments = len(offsets) - 1
    _launch(
        _temporal_kernel, (n,),
        x, norm, offsets, before if at is None else at, slot, before, cosine, segments, frames[0], x.stride(0),
        WHOLE=at is None, D=d, BLOCK_S=min(1024, triton.next_power_of_2(segments)),
        BLOCK_T=min(64, triton.next_power_of_2(len(frames))), BLOCK_D=min(1024, triton.next_power_of_2(d)),
    )  # fmt: skip
    return before, cosine


def heads(begins: Tensor, before: Tensor, longest: int) -> Tensor:
    head = torch.empty_like(before)
    _launch(_heads_kernel, (triton.cdiv(len(before), 128),), begins, before, head, len(before), BLOCK=128)
    return head


def merge_mean(x: Tensor, source: Tensor, kept: int, weight: Tensor | None = None) -> Tensor:
    # A radix sort passes over the keys once a byte, so short ones are sorted sooner.
    ordered, by = source.to(torch.int16 if kept < 1 << 15 else torch.int32).sort(stable=True)
    bounds = torch.searchsorted(ordered, torch.arange(kept + 1, dtype=ordered.dtype, device=x.device))
    rows = x.reshape(len(x), -1)
    rows = rows if rows.stride(-1) == 1 else rows.contiguous()
    d = rows.shape[1]
    out = torch.empty(kept, d, dtype=x.dtype, device=x.device)
    block = min(1024, triton.next_power_of_2(d))
    _launch(
        _mean_kernel, (kept, triton.cdiv(d, block)),
        rows, by, bounds, by if weight is None else weight, out, rows.stride(0),
        D=d, WEIGHTED=weight is not None, BLOCK_D=block,
    )  # fmt: skip
    return out.view(kept, *x.shape[1:])
