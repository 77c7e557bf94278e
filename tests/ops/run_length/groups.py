"""Pixels of groups (T, P, C) that the tests of run lengths share."""

import torch
from torch import Tensor

from vidsieve.ops import RunLengthProblem

SHAPES = [(1, 1, 1), (1, 5, 8), (2, 1, 3), (9, 1, 130), (8, 4, 16), (17, 1, 129)]
KINDS = ("moving", "drifting", "repeating", "equal", "large", "small", "bf16", "fp16")


def groups(frames: int, places: int, width: int, kind: str, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 100 * frames + 10 * places + width)
    noise = torch.randn(frames, places, width, generator=generator)
    if kind == "equal":
        return noise[:1].expand(frames, -1, -1).contiguous()
    if kind == "drifting":
        return (0.2 * noise).cumsum(0)
    if kind in ("repeating", "bf16", "fp16"):  # a third changes from frame to frame
        new = torch.rand(frames, places, generator=generator) < 0.3
        new[0] = True
        at = torch.where(new, torch.arange(frames)[:, None], 0).cummax(0).values
        noise = noise.gather(0, at[..., None].expand_as(noise))
    scale = {"large": 1e17, "small": 1e-17}.get(kind, 1.0)
    return (noise * scale).to({"bf16": torch.bfloat16, "fp16": torch.float16}.get(kind, torch.float32))


def totals(x: Tensor) -> list[RunLengthProblem]:
    """By threshold, and by the least, the most and counts in between."""
    frames, places, _ = x.shape
    n = frames * places
    counts = sorted({places, n, *(max(places, round(keep * n)) for keep in (0.25, 0.5, 0.9))})
    return [RunLengthProblem(x, None, 1.0), RunLengthProblem(x), *(RunLengthProblem(x, count) for count in counts)]
