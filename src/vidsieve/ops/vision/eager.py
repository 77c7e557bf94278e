"""What a vision tower spends its time on, in batched torch."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention, silu

from vidsieve.ops.definitions import GateProblem, RotaryProblem, SegmentAttentionProblem


def segment_attention(problem: SegmentAttentionProblem) -> Tensor:
    query, key, value, bounds, longest = problem[:5]
    attend = _packed_attention(query.dtype, query.shape[-1], query.device.index) if query.is_cuda else None
    if attend is not None:
        key_bounds = bounds if problem.key_bounds is None else problem.key_bounds
        return attend(query, key, value, bounds, key_bounds, longest, longest, scale=problem.scale)
    # Segments of one length are one batch, which gives each the bits that it has alone.
    groups = _of_equal_lengths(problem)
    out = torch.empty_like(query) if len(groups) > 1 else None
    for rows, columns in groups:
        q, k, v = (at.of(x).transpose(1, 2) for x, at in ((query, rows), (key, columns), (value, columns)))
        found = scaled_dot_product_attention(q, k, v, scale=problem.scale).transpose(1, 2)
        if out is None:  # all rows, in order
            return found.flatten(0, 1)
        rows.put(out, found)
    return query.new_empty(query.shape) if out is None else out


@cache  # asking costs the host as much as a launch
def _packed_attention(dtype: torch.dtype, width: int, device: int) -> Callable[..., Tensor] | None:
    """Get torch's one kernel for segments of all lengths of such queries (N, H, width); None if it has none."""
    if dtype not in (torch.float16, torch.bfloat16) or width % 8 or width > 256:
        return None
    return _varlen_attn() if torch.cuda.get_device_capability(device) >= (8, 0) else None


@cache  # imported when a CUDA device asks, for it imports Triton
def _varlen_attn() -> Callable[..., Tensor] | None:
    """Get torch's attention of packed segments, None where it takes no scale of the scores: before torch 2.11."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return cast(Callable[..., Tensor], varlen_attn) if "scale" in inspect.signature(varlen_attn).parameters else None


@dataclass(frozen=True)
class _Segments:
    """Segments of `length` rows that begin at the rows `begins`."""

    begins: list[int]
    length: int

    def of(self, x: Tensor) -> Tensor:
        """Get them of x (N, H, d) as (segments, length, H, d): without a copy where they are one after another."""
        span = self._span
        if span is not None:
            return x[span].view(len(self.begins), self.length, *x.shape[1:])
        return x[self._rows(x.device)]

    def put(self, x: Tensor, values: Tensor) -> None:
        """Write `values` to them."""
        span = self._span
        x[self._rows(x.device) if span is None else span] = values if span is None else values.flatten(0, 1)

    @property
    def _span(self) -> slice | None:
        begin, end = self.begins[0], self.begins[0] + len(self.begins) * self.length
        together = self.length > 0 and self.begins == list(range(begin, end, self.length))
        return slice(begin, end) if together else None

    def _rows(self, device: torch.device) -> Tensor:
        return torch.tensor(self.begins, device=device)[:, None] + torch.arange(self.length, device=device)


def _of_equal_lengths(problem: SegmentAttentionProblem) -> list[tuple[_Segments, _Segments]]:
    """List the segments of queries and of keys, by length."""
    bounds = problem.bounds.tolist()
    key_bounds = bounds if problem.key_bounds is None else problem.key_bounds.tolist()
    begins: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for s in range(len(bounds) - 1):
        lengths = bounds[s + 1] - bounds[s], key_bounds[s + 1] - key_bounds[s]
        if lengths[0]:
            begins.setdefault(lengths, []).append((bounds[s], key_bounds[s]))
    return [
        (_Segments([of_query for of_query, _ in pairs], length), _Segments([of_key for _, of_key in pairs], key_length))
        for (length, key_length), pairs in begins.items()
    ]


def rotate_(problem: RotaryProblem) -> None:
    qkv, cos, sin = problem.qkv, problem.cos[:, None, None], problem.sin[:, None, None]
    x, half = qkv[:, :2].float(), qkv.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], -1)
    x.mul_(cos).add_(turned.mul_(sin))
    if x.dtype != qkv.dtype:  # else it is a view
        qkv[:, :2] = x


def gate(problem: GateProblem) -> Tensor:
    a, b = problem.x.view(len(problem.x), 2, -1)[..., : problem.width].unbind(1)
    if problem.bias is not None:
        a, b = a + problem.bias[0], b + problem.bias[1]
    return pad(silu(a) * b, (0, problem.x.shape[1] // 2 - problem.width))
