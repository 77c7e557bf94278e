"""Which groups of pixels the vision tower computes, and which group each of the others repeats."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vidsieve import ops
from vidsieve.checks import show


@dataclass(frozen=True, eq=False)
class PixelSelection:
    """Which of the T * P groups of pixels of a video are computed; group p of frame t is t * P + p.

    kept: int64 (K,), sorted and unique.
    source: int64 (T * P,), for each group the row of `kept` of the one it repeats: its own where it is kept.
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
        # On an accelerator a look at the values would wait for the device.
        if self.kept.device.type == "cpu" and len(self.kept):
            total = len(self.source)
            if (self.kept.diff() <= 0).any() or self.kept[0] < 0 or self.kept[-1] >= total:
                raise ValueError(f"expected kept sorted, unique and within [0, {total}), got {self.kept}")
            if not torch.equal(self.source[self.kept], torch.arange(len(self.kept))):
                raise ValueError("expected every kept group to be its own source")

    def __len__(self) -> int:
        return self.kept.shape[0]

    def __repr__(self) -> str:
        return f"PixelSelection({len(self.source)} groups -> {len(self)} computed)"

    def check(self) -> None:
        """Raise `NonFiniteFeatures` if a group was not finite. Waits for the device."""
        if self.nonfinite is not None:
            ops.raise_if_nonfinite_pixels(self.nonfinite)
