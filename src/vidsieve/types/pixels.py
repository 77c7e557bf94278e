"""Which groups of pixels the vision tower computes, and which group each of the others repeats."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vidsieve import ops
from vidsieve.checks import show


@dataclass(frozen=True, eq=False)
class PixelSelection:
    """Which of the T * P groups of pixels of a video are computed; group p of frame t is t * P + p.

    kept: int64 (K,), sorted and unique, all P groups of the first frame among them.
    source: int64 (T * P,), for each group the row of `kept` of the one it repeats: its own where it is kept, else that
    of the last kept group before it at its place.
    nonfinite: int32 (T * P,), above 0 where a group holds NaN, inf or a value beyond 1e18, where nobody has looked yet:
    see `check`. None where somebody has, or where the choice did not depend on pixels.
    """

    kept: Tensor
    source: Tensor
    nonfinite: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("kept", "source"):
            value = getattr(self, name)
            if value.ndim != 1 or value.dtype != torch.int64:
                raise ValueError(f"expected {name} int64 (n,), got {show(value)}")

    def __len__(self) -> int:
        return self.kept.shape[0]

    def __repr__(self) -> str:
        return f"PixelSelection({len(self.source)} groups -> {len(self)} computed)"

    def check(self) -> None:
        """Raise `NonFiniteFeatures` if a group was not finite. Waits for the device."""
        if self.nonfinite is not None:
            ops.raise_if_nonfinite_pixels(self.nonfinite)
