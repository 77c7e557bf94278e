"""Features to test selections on: independent tokens, and video-like ones (still scenes with hard cuts)."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def independent(tokens: int, dim: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Independent Gaussian tokens (N, D)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, dim, generator=generator, dtype=torch.float64).to(dtype)


def video_like(
    frames: int,
    tokens: int,
    dim: int,
    seed: int,
    dtype: torch.dtype = torch.float64,
    cuts: tuple[int, ...] = (),
    motion: float = 0.1,
) -> Tensor:
    """Highly redundant tokens (T * P, D): each scene repeats its first frame up to `motion`, around a common offset.

    The offset stands for what real features share whatever they show; it makes raw cosines high everywhere.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    offset = 2 * noise(dim)
    out = torch.empty(frames, tokens, dim, dtype=torch.float64)
    for t in range(frames):
        if t == 0 or t in cuts:
            scene = noise(tokens, dim)
        out[t] = offset + scene + motion * noise(tokens, dim)
    return out.reshape(-1, dim).to(dtype)


@contextmanager
def never_waiting() -> Iterator[None]:
    """Let torch raise at what waits for the device."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that this mode is a prototype, once a process
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
