"""What a vision tower spends its time on, by kernels; the attention is torch's own."""

from torch import Tensor

from vidsieve.ops.definitions import GateProblem, RotaryProblem
from vidsieve.ops.launch import cdiv, covering, launch
from vidsieve.ops.vision.eager import segment_attention
from vidsieve.ops.vision.kernels import _gate_kernel, _rotate_kernel

__all__ = ["gate", "rotate_", "segment_attention"]


def rotate_(problem: RotaryProblem) -> None:
    qkv, cos, sin = problem
    n, _, heads, width = qkv.shape
    launch(
        _rotate_kernel, (n, 2), qkv, cos, sin,
        HEADS=heads, WIDTH=width, BLOCK_H=covering(heads), BLOCK_D=covering(max(1, width // 2)), num_warps=4,
    )  # fmt: skip


def gate(problem: GateProblem) -> Tensor:
    x, width, bias = problem
    columns = x.shape[1] // 2
    out = x.new_empty(len(x), columns)
    block = min(1024, covering(columns))
    launch(
        _gate_kernel, (len(x), cdiv(columns, block)), x, *(bias or (x, x)), out,
        BIASED=bias is not None, WIDTH=width, COLUMNS=columns, BLOCK=block, num_warps=4,
    )  # fmt: skip
    return out
