"""The Triton implementation: launchers with the signatures of eager.py, none of which asks the device anything.

The selections among them: triton_select.py.
"""

from typing import Any

import torch
from torch import Tensor

from vidsieve.ops import eager
from vidsieve.ops.eager import top
from vidsieve.ops.reference import Measures
from vidsieve.ops.triton_attention import _level_kernel, _received_kernel, _softmax_kernel
from vidsieve.ops.triton_call import INTERPRETED, cdiv, covering, launch, multiprocessors, precision, rows_of
from vidsieve.ops.triton_gram import _nearest_kept_kernel
from vidsieve.ops.triton_layout import (
    _apportion_kernel,
    _compact_kernel,
    _compact_rows_kernel,
    _min_max_kernel,
    _novelty_kernel,
    _passing_kernel,
    _scene_cuts_kernel,
)
from vidsieve.ops.triton_measure import (
    _direction_kernel,
    _measure_kernel,
    _settle_kernel,
    _unit_kernel,
)
from vidsieve.ops.triton_merge import _absorbed_kernel, _begin_kernel, _mean_kernel, _temporal_kernel
from vidsieve.ops.triton_select import conditional_dpp, hybrid, max_min, mmr, parts_of, products_of

SLOTS = 2048  # segments that one program apportions among


def unavailable() -> str:
    """Why the kernels cannot run here; empty where they can."""
    if INTERPRETED or torch.cuda.is_available():
        return ""
    return "Triton needs a CUDA device (or TRITON_INTERPRET=1 for the interpreter)"


__all__ = [
    "absorbed",
    "apportion",
    "compact",
    "compact_rows",
    "conditional_dpp",
    "hybrid",
    "max_min",
    "measure",
    "merge_among",
    "merge_mean",
    "min_max",
    "mmr",
    "nearest_kept",
    "novelty",
    "passing",
    "received",
    "runs",
    "scene_cuts",
    "temporal",
    "top",
    "unavailable",
]


def measure(
    x: Tensor,
    frames: tuple[int, ...],
    y: Tensor | None,
    persistence: bool,
    segments: tuple[Tensor, int] | None = None,
    questions: tuple[int, ...] = (),
) -> Measures:
    x = rows_of(x)
    n, d = x.shape
    tokens = sum(frames)  # of each video
    norm = torch.empty(n, device=x.device, dtype=torch.float32)
    bad = torch.empty(n, device=x.device, dtype=torch.int32)
    cosine = norm if y is None else torch.empty_like(norm)
    parts = 0 if persistence or segments is None else parts_of(x, *segments)
    direction = norm if y is None else _directions(y, questions or (len(y),), x if parts else None)
    if segments is not None and parts:
        products, square, along = products_of(x, None if y is None else direction, *segments, parts)
        launch(
            _settle_kernel, (cdiv(n, 256),), x, square, along, norm, bad, cosine, n, x.stride(0),
            D=d, PARTS=parts, COSINE=y is not None, BLOCK=256, BLOCK_D=4,
        )  # fmt: skip
        return Measures(norm, bad, None, None if y is None else cosine, products)
    persist = torch.empty_like(norm) if persistence else norm
    mean = x.view(-1, tokens, d).mean(1, dtype=torch.float32) if persistence else norm  # (V, D)
    launch(
        _measure_kernel, (n,), x, mean, direction, norm, bad, persist, cosine, n, tokens, frames[0], x.stride(0),
        D=d, PERSISTENCE=persistence, COSINE=y is not None, BLOCK_N=1, BLOCK_D=min(512, covering(d)),
    )  # fmt: skip
    return Measures(norm, bad, persist if persistence else None, None if y is None else cosine)


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


def novelty(persistence: Tensor, offsets: Tensor, at: Tensor | None = None) -> Tensor:
    out = torch.empty(len(offsets) - 1, dtype=torch.float32, device=persistence.device)
    places = offsets if at is None else at.contiguous()
    launch(_novelty_kernel, (len(out),), persistence, places, offsets, out, WHOLE=at is None, BLOCK=512)
    return out


def scene_cuts(
    persistence: Tensor, offsets: Tensor, threshold: float, max_frames: int | None, videos: int = 1
) -> Tensor:
    frames = (len(offsets) - 1) // videos
    if frames >= SLOTS:  # beyond one program; the torch version asks the device nothing either
        return eager.scene_cuts(persistence, offsets, threshold, max_frames)
    out = torch.empty_like(offsets)
    similarity = persistence.new_empty(frames * videos)
    block = covering(frames + 1)
    launch(
        _scene_cuts_kernel, (videos,), persistence, offsets, similarity, out, frames, threshold, max_frames or frames,
        BLOCK=block, TOKENS=max(1, min(64, 8192 // block)), num_warps=8,
    )  # fmt: skip
    return out


def apportion(weights: Tensor | None, offsets: Tensor, total: int, videos: int = 1) -> Tensor:
    count = (len(offsets) - 1) // videos
    if count > SLOTS:
        return eager.apportion(weights, offsets, total)
    out = torch.empty(count * videos, dtype=torch.int64, device=offsets.device)
    block = covering(count)
    launch(
        _apportion_kernel, (videos,),
        offsets if weights is None else weights, offsets, out, count, total // videos,
        WEIGHED=weights is not None, BLOCK=block, STEP=min(block, 16), num_warps=4 if block > 128 else 1,
    )  # fmt: skip
    return out


def min_max(scores: Tensor, epsilon: float, videos: int = 1) -> Tensor:
    scores = scores.float().contiguous()
    out = torch.empty_like(scores)
    n = len(scores) // videos
    block = min(16384, covering(n))
    launch(_min_max_kernel, (videos,), scores, out, n, epsilon, BLOCK=block, num_warps=max(1, min(32, block // 512)))
    return out


def compact(
    order: Tensor, offsets: Tensor, budget: Tensor, longest: int, total: int, videos: int = 1
) -> tuple[Tensor, Tensor]:
    kept = torch.empty(total, dtype=torch.int64, device=order.device)
    source = torch.empty(len(order), dtype=torch.int64, device=order.device)
    block = min(4096, covering(longest))
    launch(
        _compact_kernel, (len(budget),), order, offsets, budget, kept, source, total,
        len(budget) // videos, len(order) // videos, total // videos, BLOCK=block, num_warps=8 if block > 1024 else 4,
    )  # fmt: skip
    return kept, source


def compact_rows(left: Tensor, longest: int, begin: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    left = left.contiguous()
    rows = len(left)
    # Not one tensor cut in two: the second half might not be aligned, and the kernel is compiled anew for that.
    index, valid = left.new_empty(rows, longest), left.new_empty(rows, longest)
    slot = left.new_empty(rows, length)
    block = min(4096, covering(length))
    launch(
        _compact_rows_kernel, (rows,), left, index, valid, slot, left.shape[1], begin, length, longest,
        PADDED=rows > 1, BLOCK=block, num_warps=8 if block > 1024 else 4,
    )  # fmt: skip
    return index, valid, slot


def passing(persistence: Tensor, frames: tuple[int, ...], floor: float) -> Tensor:
    out = torch.empty_like(persistence)
    grid = (cdiv(len(out), 1024),)
    launch(_passing_kernel, grid, persistence, out, len(out), sum(frames), frames[0], floor, BLOCK=1024)
    return out


def nearest_kept(x: Tensor, offsets: Tensor, kept: Tensor) -> Tensor:
    x = rows_of(x)
    norm = measure(x, (len(x),), None, False).norm
    segment = torch.searchsorted(offsets[1:], torch.arange(len(x), device=x.device), right=True)
    rows = torch.searchsorted(kept, offsets)  # (S + 1,) rows of `kept` before each segment
    source = torch.empty(len(x), dtype=torch.int64, device=x.device)
    launch(
        _nearest_kept_kernel, (cdiv(len(x), 64),),
        x, norm, segment, rows, kept, source, len(x), x.stride(0),
        D=x.shape[1], PRECISION=precision(x), BLOCK_N=64, BLOCK_K=64, BLOCK_D=32,
    )  # fmt: skip
    return source.scatter_(0, kept, torch.arange(len(kept), device=x.device))


def temporal(
    x: Tensor, norm: Tensor, offsets: Tensor, frames: tuple[int, ...], at: Tensor | None
) -> tuple[Tensor, Tensor]:
    x = rows_of(x)
    n, d = x.shape
    before = torch.empty(n, dtype=torch.int64, device=x.device)
    cosine = torch.empty(n, dtype=torch.float32, device=x.device)
    slot = before
    if at is not None:
        at = at.contiguous()
        slot = torch.full((sum(frames),), -1, dtype=torch.int32, device=x.device)
        slot.index_copy_(0, at, torch.arange(n, dtype=torch.int32, device=x.device))
    segments = len(offsets) - 1
    launch(
        _temporal_kernel, (n,),
        x, norm, offsets, before if at is None else at, slot, before, cosine, segments, frames[0], x.stride(0),
        WHOLE=at is None, D=d, BLOCK_S=min(1024, covering(segments)),
        BLOCK_T=min(64, covering(len(frames))), BLOCK_D=min(1024, covering(d)),
    )  # fmt: skip
    return before, cosine


def runs(cosine: Tensor, before: Tensor, threshold: float, longest: int) -> tuple[Tensor, ...]:
    n = len(cosine)
    index, row, source, link = (torch.empty_like(before) for _ in range(4))
    count = before.new_empty(1)
    block = min(4096, covering(n))
    launch(
        _begin_kernel, (1,), cosine, index, row, link, count, n, threshold,
        BLOCK=block, num_warps=8 if block > 512 else 1,
    )  # fmt: skip
    launch(_absorbed_kernel, (cdiv(n, 128),), row, before, source, link, n, BLOCK=128)
    return index, count, row, source, link


def absorbed(row: Tensor, before: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    source, link = torch.empty_like(before), torch.full_like(before, -1)
    launch(_absorbed_kernel, (cdiv(len(before), 128),), row, before, source, link, len(before), BLOCK=128)
    return source, link


def merge_mean(
    x: Tensor, source: Tensor, kept: Tensor, weight: Tensor | None = None, link: Tensor | None = None
) -> Tensor:
    rows = x.reshape(len(x), -1)
    return merge_among(rows, kept, 0, source, kept, weight, link).view(len(kept), *x.shape[1:])


def merge_among(
    x: Tensor,
    index: Tensor,
    begin: int,
    source: Tensor,
    kept: Tensor,
    weight: Tensor | None = None,
    link: Tensor | None = None,
) -> Tensor:
    x = x if x.stride(-1) == 1 else x.contiguous()
    m, d = len(index), x.shape[1]
    out = x.new_empty(m, d)
    block = min(1024, covering(d))
    launch(
        _mean_kernel, (m, cdiv(d, block)),
        x, index, _links(source, kept) if link is None else link, index if weight is None else weight, out,
        x.stride(0), begin, len(source), D=d, WEIGHTED=weight is not None, BLOCK_D=block,
    )  # fmt: skip
    return out


def _links(source: Tensor, kept: Tensor) -> Tensor:
    """The next row with the same source (N,), -1 for the last, where the first is the one that is kept."""
    # A radix sort passes over the keys once a byte, so short ones are sorted sooner.
    key = (2 * source + 1).to(torch.int16 if len(kept) < 1 << 14 else torch.int32)
    key[kept] -= 1
    ordered, by = key.sort(stable=True)
    following = torch.where(ordered[1:] >> 1 == ordered[:-1] >> 1, by[1:], -1)
    return torch.full_like(source, -1).scatter_(0, by[:-1], following)


def received(
    query: Tensor, key: Tensor, columns: Tensor, seen: Tensor | None, scaling: float, softcap: float | None
) -> Tensor:
    query, key = rows_of(query), rows_of(key)
    (heads, length, width), (groups, keys, _) = query.shape, key.shape
    queries, share, past = heads * len(columns), heads // groups, keys - length
    # float32 is multiplied in parts that are held next to it, and a consumer GPU has 99 KB a program for all.
    block = 64 if query.dtype != torch.float32 and width <= 256 else 32
    split, rows = 256, max(16, min(block, covering(share * len(columns))))
    splits, tiles = cdiv(keys, split), groups * cdiv(length, block)
    # A short sequence has fewer tiles than it needs programs, which then share the queries of a tile.
    portions = min(cdiv(share * len(columns), rows), cdiv(4 * multiprocessors(query), tiles))
    part = torch.empty(splits, queries, device=query.device, dtype=torch.float32)
    level = part.new_empty(queries)
    mass = part.new_empty(portions * groups, length)
    strides = query.stride(0), query.stride(1), key.stride(0), key.stride(1)
    told = *strides, scaling, softcap or 1.0
    shape: dict[str, Any] = {
        "WIDTH": width, "PADDED": seen is not None, "SOFTCAP": softcap is not None, "PRECISION": precision(query),
        "BLOCK_M": rows, "BLOCK_N": block, "BLOCK_D": max(16, covering(width)), "num_stages": 2 if block == 64 else 1,
    }  # fmt: skip
    given = query, key, columns, columns if seen is None else seen
    launch(
        _softmax_kernel, (cdiv(share * len(columns), rows), groups, splits),
        *given, part, len(columns), queries, keys, past, share, *told, **shape, SPLIT=split,
    )  # fmt: skip
    launch(_level_kernel, (cdiv(queries, 64),), part, level, queries, splits, SPLITS=32, BLOCK=64)
    launch(
        _received_kernel, (cdiv(length, block), groups, portions),
        *given, level, mass, len(columns), queries, keys, past, share, *told, **shape,
    )  # fmt: skip
    return mass.sum(0)
