"""Rotary positions and a gated activation: each one read and one write, where torch makes some ten of each."""

import triton
import triton.language as tl


@triton.jit
def _rotate_kernel(
    qkv_ptr,  # (N, 3, H, d), rotated in place but for the values
    cos_ptr,  # (N, d) fp32
    sin_ptr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row, which = tl.program_id(0).to(tl.int64), tl.program_id(1)
    half: tl.constexpr = WIDTH // 2
    h, d = tl.arange(0, BLOCK_H)[:, None], tl.arange(0, BLOCK_D)[None, :]
    inside = (h < HEADS) & (d < half)
    x_ptr = qkv_ptr + (row * 3 + which) * (HEADS * WIDTH) + h * WIDTH + d
    at = row * WIDTH + d
    low = tl.load(x_ptr, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(x_ptr + half, mask=inside, other=0.0).to(tl.float32)
    cos_low, sin_low = tl.load(cos_ptr + at, mask=d < half, other=0.0), tl.load(sin_ptr + at, mask=d < half, other=0.0)
    cos_high = tl.load(cos_ptr + at + half, mask=d < half, other=0.0)
    sin_high = tl.load(sin_ptr + at + half, mask=d < half, other=0.0)
    tl.store(x_ptr, low * cos_low - high * sin_low, mask=inside)
    tl.store(x_ptr + half, high * cos_high + low * sin_high, mask=inside)


@triton.jit
def _gate_kernel(
    x_ptr,  # (N, 2, COLUMNS)
    first_bias_ptr,  # (WIDTH,)
    second_bias_ptr,
    out_ptr,  # (N, COLUMNS)
    BIASED: tl.constexpr,
    WIDTH: tl.constexpr,  # columns that are used; zeros are written after them
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row, i = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    a = tl.load(x_ptr + row * 2 * COLUMNS + i, mask=i < WIDTH, other=0.0).to(tl.float32)
    b = tl.load(x_ptr + (row * 2 + 1) * COLUMNS + i, mask=i < WIDTH, other=0.0).to(tl.float32)
    if BIASED:
        a += tl.load(first_bias_ptr + i, mask=i < WIDTH, other=0.0).to(tl.float32)
        b += tl.load(second_bias_ptr + i, mask=i < WIDTH, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * COLUMNS + i, a / (1 + tl.exp(-a)) * b, mask=i < COLUMNS)
