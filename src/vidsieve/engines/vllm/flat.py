"""LLaVA-OneVision in vLLM, which has no pruning of its own for it: a video is one run of tokens and a newline.

Its positions are the indices of the prompt, so nothing but a shorter run and fewer embeddings is needed: what stays
closes ranks. That is not what `engines/hf` does with this model, where kept tokens stay where they were: a server of
vLLM has no way to give a model of one-dimensional positions any others.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import BatchFeature
from vllm.utils.gpu_sync_debug import gpu_sync_allowed

from vidsieve.engines.vllm.models import Sieved
from vidsieve.engines.vllm.processor import Processor
from vidsieve.engines.vllm.settings import KWARG

_NEWLINE = 1  # tokens that follow a video's patches in its placeholder


class FlatProcessor(Processor):
    """Of LLaVA-OneVision."""

    def _videos(self, out: BatchFeature) -> int:
        return len(out.get("pixel_values_videos", ()))

    def _total(self, video: Any, placeholder: list[int]) -> int:
        return len(placeholder) - _NEWLINE

    def _resized(self, ids: list[int], pad: int, count: int) -> list[int]:
        return ids[: count + _NEWLINE]


class SievedFlat(Sieved):
    """In the encoder of LLaVA-OneVision."""

    settled: ClassVar[tuple[str, ...]] = ("_process_video_pixels", "_video_pixels_to_features", "apply_pooling")

    def _side(self) -> int:
        """Rows, and columns, of a frame's tokens, as vLLM's `apply_pooling` leaves them."""
        vision = self.config.vision_config
        patches: int = vision.image_size // vision.patch_size
        return math.ceil(patches / 2)

    def _patches(self, kwargs: Mapping[str, Any]) -> list[int]:
        return [len(video) * self._side() ** 2 for video in kwargs["pixel_values_videos"]]

    def _patches_per_token(self) -> int:
        return 1

    def _embed_videos(self, kwargs: dict[str, Any]) -> Sequence[Tensor]:
        orders = kwargs.pop(KWARG)
        videos = super(Sieved, self).embed_multimodal(**kwargs)  # type: ignore[misc]
        out = []
        with gpu_sync_allowed():
            for embeds, ordered in zip(videos, orders, strict=True):
                patches, newline = embeds.view(-1, embeds.shape[-1]).tensor_split([-_NEWLINE])
                size = (len(patches) // self._side() ** 2, self._side(), self._side())
                out.append(torch.cat([self._reduce(patches, size, ordered).apply(patches), newline]))
        return out
