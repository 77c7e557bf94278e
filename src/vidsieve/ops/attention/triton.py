"""The attention that tokens receive, by kernels."""

from typing import Any

import torch
from torch import Tensor

from vidsieve.ops.attention.kernels import _level_kernel, _received_kernel, _softmax_kernel
from vidsieve.ops.definitions import AttentionProblem
from vidsieve.ops.launch import cdiv, covering, launch, multiprocessors, precision, rows_of


def received_attention(problem: AttentionProblem) -> Tensor:
    query, key, columns, visible, _, softcap = problem
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
    scalars = *strides, problem.scale, softcap or 1.0
    shape: dict[str, Any] = {
        "WIDTH": width, "PADDED": visible is not None, "SOFTCAP": softcap is not None, "PRECISION": precision(query),
        "BLOCK_M": rows, "BLOCK_N": block, "BLOCK_D": max(16, covering(width)), "num_stages": 2 if block == 64 else 1,
    }  # fmt: skip
    given = query, key, columns, columns if visible is None else visible
    launch(
        _softmax_kernel, (cdiv(share * len(columns), rows), groups, splits),
        *given, part, len(columns), queries, keys, past, share, *scalars, **shape, SPLIT=split,
    )  # fmt: skip
    launch(_level_kernel, (cdiv(queries, 64),), part, level, queries, splits, SPLITS=32, BLOCK=64)
    launch(
        _received_kernel, (cdiv(length, block), groups, portions),
        *given, level, mass, len(columns), queries, keys, past, share, *scalars, **shape,
    )  # fmt: skip
    return mass.sum(0)
