"""What a vision tower spends its time on, by kernels; the attention is torch's own."""

from functools import cache

from torch import Tensor

from vidsieve.ops.definitions import GateProblem, RotaryProblem
from vidsieve.ops.launch import PreparedKernel, cdiv, covering
from vidsieve.ops.vision.eager import segment_attention
from vidsieve.ops.vision.kernels import _gate_kernel, _rotate_kernel

__all__ = ["gate", "rotate_", "segment_attention"]


def rotate_(problem: RotaryProblem) -> None:
    qkv, cos, sin = problem
    n, _, heads, width = qkv.shape
    _rotation(heads, width)((n, 2, 1), qkv, cos, sin)


@cache
def _rotation(heads: int, width: int) -> PreparedKernel:
    blocks = {"BLOCK_H": covering(heads), "BLOCK_D": covering(max(1, width // 2))}
    return PreparedKernel(_rotate_kernel, HEADS=heads, WIDTH=width, **blocks, num_warps=4)


def gate(problem: GateProblem) -> Tensor:
    x, width, bias = problem
    n, columns = x.shape[0], x.shape[1] // 2
    out = x.new_empty(n, columns)
    kernel, blocks = _gating(bias is not None, width, columns)
    kernel((n, blocks, 1), x, *(bias or (x, x)), out)
    return out


@cache
def _gating(biased: bool, width: int, columns: int) -> tuple[PreparedKernel, int]:
    """The kernel, and how many blocks cover a row."""
    block = min(1024, covering(columns))
    sizes = {"WIDTH": width, "COLUMNS": columns, "BLOCK": block}
    return PreparedKernel(_gate_kernel, BIASED=biased, **sizes, num_warps=4), cdiv(columns, block)
