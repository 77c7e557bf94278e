"""Selection: the tokens that stay of a video, with their features and the order in which they were picked."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vidsieve.checks import show
from vidsieve.errors import WrongArgument


@dataclass(frozen=True, eq=False)
class Selection:
    """K tokens kept of the N of a video, in S segments.

    kept: int64 (K,), sorted and unique, indices among the N.  features: (K, D).
    others: per-token arguments of the decoder by name, (layers, K, D) each (Qwen3-VL's deepstack).
    step: int32 (K,), when each was picked within its segment, from 0.  segment: int32 (K,), the segment of each.
    lengths: int64 (S,), tokens of each segment, which sum to N.
    gains: float32 (S,), what the budget of each segment was weighed by; None where lengths alone did.
    floor: fewest tokens that a segment keeps.
    Raises `WrongArgument` for tensors of other types or shapes.
    """

    kept: Tensor
    features: Tensor
    others: Mapping[str, Tensor]
    step: Tensor
    segment: Tensor
    lengths: Tensor
    gains: Tensor | None = None
    floor: int = 0

    def __post_init__(self) -> None:
        types = {"kept": torch.int64, "step": torch.int32, "segment": torch.int32, "lengths": torch.int64}
        for name, dtype in types.items():
            value = getattr(self, name)
            rows: tuple[int, ...] = tuple(value.shape[:1]) if name == "lengths" else (len(self.features),)
            if value.dtype != dtype or value.shape != rows:
                raise WrongArgument(f"expected {name} {str(dtype).removeprefix('torch.')}{rows}, got {show(value)}")
        if self.features.ndim != 2 or not self.features.is_floating_point():
            raise WrongArgument(f"expected features (K, D), got {show(self.features)}")
        for name, stacked in self.others.items():
            if stacked.ndim != 3 or stacked.shape[1] != len(self.kept):
                raise WrongArgument(f"expected {name} (layers, {len(self.kept)}, D), got {show(stacked)}")
        if self.gains is not None and (self.gains.dtype != torch.float32 or self.gains.shape != self.lengths.shape):
            raise WrongArgument(f"expected gains float32{tuple(self.lengths.shape)}, got {show(self.gains)}")

    def __len__(self) -> int:
        return len(self.kept)
