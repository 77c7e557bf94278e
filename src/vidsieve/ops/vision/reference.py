"""What a vision tower spends its time on, in float64, one segment at a time; equation numbers: docs/method.md."""

import torch
from torch import Tensor

from vidsieve.ops.definitions import GateProblem, RotaryProblem, SegmentAttentionProblem


def segment_attention(problem: SegmentAttentionProblem) -> Tensor:
    """Eq. 21."""
    query, key, value = (x.double() for x in (problem.query, problem.key, problem.value))
    out = torch.zeros_like(query)
    key_bounds = problem.bounds if problem.key_bounds is None else problem.key_bounds
    begins, key_begins = problem.bounds.tolist(), key_bounds.tolist()
    for s in range(len(begins) - 1):
        rows, columns = slice(begins[s], begins[s + 1]), slice(key_begins[s], key_begins[s + 1])
        for head in range(query.shape[1]):
            score = query[rows, head] @ key[columns, head].T * problem.scale
            out[rows, head] = score.softmax(-1) @ value[columns, head]
    return out.to(problem.query.dtype)


def rotate_(problem: RotaryProblem) -> None:
    """Eq. 22."""
    half = problem.qkv.shape[-1] // 2
    for n in range(len(problem.qkv)):
        x, cos, sin = problem.qkv[n, :2].double(), problem.cos[n].double(), problem.sin[n].double()
        turned = torch.cat([-x[..., half:], x[..., :half]], -1)
        problem.qkv[n, :2] = (x * cos + turned * sin).to(problem.qkv.dtype)


def gate(problem: GateProblem) -> Tensor:
    """Eq. 23."""
    x, width = problem.x.double(), problem.width
    bias = [0.0, 0.0] if problem.bias is None else [one.double() for one in problem.bias]
    out = problem.x.new_zeros(len(x), x.shape[1] // 2)
    for n, row in enumerate(x):
        a, b = (half + one for half, one in zip(row.view(2, -1)[:, :width], bias, strict=True))
        out[n, :width] = (a / (1 + (-a).exp()) * b).to(out.dtype)
    return out
