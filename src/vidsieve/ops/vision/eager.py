"""What a vision tower spends its time on, in batched torch."""

import inspect
from collections.abc import Callable
from functools import cache
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention, silu

from vidsieve.ops.definitions import GateProblem, RotaryProblem, SegmentAttentionProblem


def segment_attention(problem: SegmentAttentionProblem) -> Tensor:
    query, key, value, bounds, longest = problem[:5]
    if takes_bounds(query):
        key_bounds = bounds if problem.key_bounds is None else problem.key_bounds
        attend = cast(Callable[..., Tensor], _varlen_attn())
        return attend(query, key, value, bounds, key_bounds, longest, longest, scale=problem.scale)
    # Segments of one length are one batch, which gives each the bits that it has alone.
    out = torch.empty_like(query)
    for rows, columns in _of_equal_lengths(problem):
        q, k, v = (x[at].transpose(1, 2) for x, at in ((query, rows), (key, columns), (value, columns)))
        out[rows] = scaled_dot_product_attention(q, k, v, scale=problem.scale).transpose(1, 2)
    return out


def takes_bounds(query: Tensor) -> bool:
    """Whether torch has one kernel for segments of all lengths of such queries (N, H, d)."""
    if not query.is_cuda or query.dtype not in (torch.float16, torch.bfloat16) or _varlen_attn() is None:
        return False
    width = query.shape[-1]
    return width % 8 == 0 and width <= 256 and torch.cuda.get_device_capability(query.device) >= (8, 0)


@cache  # imported when a CUDA device asks, for it imports Triton
def _varlen_attn() -> Callable[..., Tensor] | None:
    """Get torch's attention of packed segments, None where it takes no scale of the scores: before torch 2.11."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return cast(Callable[..., Tensor], varlen_attn) if "scale" in inspect.signature(varlen_attn).parameters else None


def _of_equal_lengths(problem: SegmentAttentionProblem) -> list[tuple[Tensor, Tensor]]:
    """List the rows (segments, length) of queries and of keys, by length of segment."""
    bounds = problem.bounds.tolist()
    key_bounds = bounds if problem.key_bounds is None else problem.key_bounds.tolist()
    begins: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for s in range(len(bounds) - 1):
        lengths = bounds[s + 1] - bounds[s], key_bounds[s + 1] - key_bounds[s]
        if lengths[0]:
            begins.setdefault(lengths, []).append((bounds[s], key_bounds[s]))
    device = problem.query.device

    def rows(begins: list[int], length: int) -> Tensor:
        return torch.tensor(begins, device=device)[:, None] + torch.arange(length, device=device)

    return [
        (rows([of_query for of_query, _ in pairs], length), rows([of_key for _, of_key in pairs], key_length))
        for (length, key_length), pairs in begins.items()
    ]


def rotate_(problem: RotaryProblem) -> None:
    qkv, cos, sin = problem.qkv, problem.cos[:, None, None], problem.sin[:, None, None]
    x, half = qkv[:, :2].float(), qkv.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], -1)
    qkv[:, :2] = (x * cos + turned * sin).to(qkv.dtype)


def gate(problem: GateProblem) -> Tensor:
    a, b = problem.x.view(len(problem.x), 2, -1)[..., : problem.width].unbind(1)
    if problem.bias is not None:
        a, b = a + problem.bias[0], b + problem.bias[1]
    return pad(silu(a) * b, (0, problem.x.shape[1] // 2 - problem.width))
