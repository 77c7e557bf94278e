"""Spare a tower that takes the frames as one batch what it copies because of how its tensors lie in memory.

The embeddings of SigLIP are a transposed view, which every sum in the tower then reads across, and every norm copies.
LLaVA-OneVision copies its features to pool them.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vidsieve.engines.hf.intercept import Interceptions
from vidsieve.engines.hf.vision.fused import agree


class ContiguousEmbeddings:
    """Lays out the embeddings of `tower` row by row, where it has a module of that name."""

    def __init__(self, tower: nn.Module, hooks: Interceptions) -> None:
        for name, module in tower.named_modules():
            if name.split(".")[-1] == "embeddings":
                hooks.after(module, _contiguous)


def _contiguous(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
    return output.contiguous() if isinstance(output, Tensor) else output


class ChannelsLastPooling:
    """Bilinear pooling of `body`, where it has one that is known.  replaced: whether it has."""

    def __init__(self, body: Any, hooks: Interceptions) -> None:
        self._config: Any = getattr(body.config, "vision_config", None)
        own = getattr(body, "apply_pooling", None)
        self.replaced = own is not None and self._agrees(own)
        if self.replaced:
            hooks.wrap(body, "apply_pooling", self._pool)

    def _agrees(self, own: Callable[[Tensor], Tensor]) -> bool:
        """Whether this gives what the model's own pooling gives."""
        side = self._config.image_size // self._config.patch_size
        x = torch.randn(1, side * side, 8, generator=torch.Generator().manual_seed(0))
        return agree(own(x), self._pool(own, x))

    def _pool(self, inner: Callable[[Tensor], Tensor], image_features: Tensor) -> Tensor:
        """(frames, side * side, D) to (frames, half * half, D), half rounded up."""
        frames, _, width = image_features.shape
        side = self._config.image_size // self._config.patch_size
        planes = image_features.view(frames, side, side, width).permute(0, 3, 1, 2)
        half = math.ceil(side / 2)
        pooled = functional.interpolate(planes, size=[half, half], mode="bilinear")
        return pooled.permute(0, 2, 3, 1).reshape(frames, -1, width)
