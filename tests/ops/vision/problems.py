"""Problems of the operations of a vision tower, with odd shapes, by name."""

import torch
from torch import Tensor

from vidsieve.ops.definitions import GateProblem, RotaryProblem, SegmentAttentionProblem

LENGTHS = {
    "one": (5,),
    "equal": (6, 6, 6),
    "windows": (16, 16, 4, 16, 1),
    "empty": (0, 7, 0, 3, 0),
}


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def bounds(lengths: tuple[int, ...], device: str = "cpu") -> Tensor:
    return torch.tensor([0, *lengths], device=device).cumsum(0).int()


def attention(name: str, heads: int = 2, width: int = 8, more: int = 0, **where: object) -> SegmentAttentionProblem:
    """more: keys that each segment has more than queries."""
    lengths = LENGTHS[name]
    keys = tuple(n + more for n in lengths)
    device = str(where.get("device", "cpu"))
    query = noise(sum(lengths), heads, width, **where)  # type: ignore[arg-type]
    key, value = (noise(sum(keys), heads, width, seed=seed, **where) for seed in (1, 2))  # type: ignore[arg-type]
    longest = max(keys)
    return SegmentAttentionProblem(
        query, key, value, bounds(lengths, device), longest, width**-0.5, bounds(keys, device) if more else None
    )


def rotary(rows: int = 7, heads: int = 3, width: int = 20, **where: object) -> RotaryProblem:
    angle = noise(rows, width // 2, seed=3, device=str(where.get("device", "cpu"))).repeat(1, 2)
    return RotaryProblem(noise(rows, 3, heads, width, **where), angle.cos(), angle.sin())  # type: ignore[arg-type]


def gate(rows: int = 5, width: int = 27, columns: int = 32, biased: bool = True, **where: object) -> GateProblem:
    bias = (noise(width, seed=4, **where), noise(width, seed=5, **where)) if biased else None  # type: ignore[arg-type]
    return GateProblem(noise(rows, 2 * columns, **where), width, bias)  # type: ignore[arg-type]
