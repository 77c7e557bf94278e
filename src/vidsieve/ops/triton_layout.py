"""Small steps between the large ones, each one program: as torch calls their launches would cost more than they do."""

import triton
import triton.language as tl


@triton.jit
def _apportion_kernel(
    weights_ptr,  # (S,) float64
    lengths_ptr,  # (S,) int64
    out_ptr,  # (S,) int64
    count,
    total,
    BLOCK: tl.constexpr,  # a power of two that covers S
    STEP: tl.constexpr,
):
    """Eq. 3: bisection for the level in float64, then largest remainders."""
    s = tl.arange(0, BLOCK)
    n = tl.load(lengths_ptr + s, mask=s < count, other=0).to(tl.float64)
    w = tl.load(weights_ptr + s, mask=s < count, other=0.0).to(tl.float64)
    largest = tl.max(w, 0)
    w = tl.maximum(w / tl.where(largest > 0, largest, 1.0), 1e-9)
    occupied = tl.sum((n > 0).to(tl.int32), 0)
    floor = tl.where((n > 0) & (occupied <= total), 1.0, 0.0).to(tl.float64)
    low = tl.sum(floor * 0.0, 0)
    high = tl.max(n / w, 0)
    for _ in range(70):
        middle = (low + high) * 0.5
        reached = tl.sum(tl.minimum(tl.maximum(middle * w, floor), n), 0)
        low = tl.where(reached < total, middle, low)
        high = tl.where(reached < total, high, middle)
    share = tl.minimum(tl.maximum(high * w, floor), n)
    whole = tl.floor(share + 1e-6)
    # Ranks by remainder, the earlier segment first among equals; counted against STEP segments at a time.
    remainder = tl.where((whole < n) & (s < count), tl.floor((share - whole) * 1e6 + 0.5), -1e12)
    tl.store(out_ptr + s, remainder.to(tl.int64), mask=s < count)
    tl.debug_barrier()
    rank = tl.zeros((BLOCK,), tl.int64)
    for at in range(0, count, STEP):
        t = at + tl.arange(0, STEP)
        other = tl.load(out_ptr + t, mask=t < count, other=-(10**13)).to(tl.float64)
        ahead = (other[None, :] > remainder[:, None]) | (
            (other[None, :] == remainder[:, None]) & (t[None, :] < s[:, None])
        )
        rank += tl.sum((ahead & (t < count)[None, :]).to(tl.int64), 1)
    tl.debug_barrier()
    missing = total - tl.sum(whole, 0)
    tl.store(out_ptr + s, whole.to(tl.int64) + (rank < missing).to(tl.int64), mask=s < count)


@triton.jit
def _min_max_kernel(
    score_ptr,  # (N,) float32
    out_ptr,  # (N,) float32: eq. 4
    n,
    epsilon,
    BLOCK: tl.constexpr,
):
    low = tl.full((BLOCK,), float("inf"), tl.float32)
    high = tl.full((BLOCK,), -float("inf"), tl.float32)
    for at in range(0, n, BLOCK):
        i = at + tl.arange(0, BLOCK)
        low = tl.minimum(low, tl.load(score_ptr + i, mask=i < n, other=float("inf")))
        high = tl.maximum(high, tl.load(score_ptr + i, mask=i < n, other=-float("inf")))
    least = tl.min(low, 0)
    span = tl.max(high, 0) - least + epsilon
    for at in range(0, n, BLOCK):
        i = at + tl.arange(0, BLOCK)
        score = tl.load(score_ptr + i, mask=i < n, other=0.0)
        tl.store(out_ptr + i, (score - least + epsilon) / span, mask=i < n)


@triton.jit
def _compact_kernel(
    order_ptr,  # (N,) int32, -1 where not picked
    kept_ptr,  # (K,) int64 out: the picked tokens, in their own order
    source_ptr,  # (N,) int64 out: row among the kept, -1 where not picked
    n,
    total,
    BLOCK: tl.constexpr,
):
    before = 0
    for at in range(0, n, BLOCK):
        i = at + tl.arange(0, BLOCK)
        picked = tl.load(order_ptr + i, mask=i < n, other=-1) >= 0
        row = before + tl.cumsum(picked.to(tl.int32), 0) - 1
        tl.store(kept_ptr + row, i.to(tl.int64), mask=picked & (row < total))
        tl.store(source_ptr + i, tl.where(picked, row, -1).to(tl.int64), mask=i < n)
        before += tl.sum(picked.to(tl.int32), 0)
