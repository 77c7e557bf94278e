"""LLaVA-OneVision and LLaVA-NeXT-Video in vLLM, which has no pruning of its own for them: a video is one run of tokens.

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
from vidsieve.engines.vllm.settings import KWARG, ordered_key


class FlatProcessor(Processor):
    """Of LLaVA-OneVision."""

    newline: ClassVar[int] = 1  # tokens that follow a video's patches in its placeholder

    def _videos(self, out: BatchFeature) -> list[dict[str, Tensor]]:
        return [{"pixels": video} for video in out.get("pixel_values_videos", ())]

    def _total(self, video: Any, placeholder: list[int], pad: int) -> int:
        return len(placeholder) - self.newline

    def _resized(self, ids: list[int], pad: int, count: int) -> list[int]:
        return ids[: count + self.newline]


class PooledProcessor(FlatProcessor):
    """Of LLaVA-NeXT-Video."""

    newline: ClassVar[int] = 0


class SievedFlat(Sieved):
    """In the encoder of LLaVA-OneVision."""

    settled: ClassVar[tuple[str, ...]] = ("_process_video_pixels", "_video_pixels_to_features", "apply_pooling")
    newline: ClassVar[int] = FlatProcessor.newline

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
        videos = [embeds.view(-1, embeds.shape[-1]) for embeds in super(Sieved, self).embed_multimodal(**kwargs)]  # type: ignore[misc]
        return self._after_encoder(videos, orders)

    def _embed_held(self, kwargs: dict[str, Any], embeds: Tensor) -> Sequence[Tensor]:
        with gpu_sync_allowed():
            embeds = embeds.to(kwargs["pixel_values_videos"][0].device)
        return self._after_encoder([embeds], kwargs[KWARG])

    def _after_encoder(self, videos: Sequence[Tensor], orders: Sequence[Tensor]) -> list[Tensor]:
        frame = self._side() ** 2
        patches = [embeds[: len(embeds) - self.newline] for embeds in videos]
        sizes = [(len(embeds) // frame, self._side(), self._side()) for embeds in patches]
        with gpu_sync_allowed():
            for embeds, ordered in zip(videos, orders, strict=True):
                self._unpruned.put(ordered_key(ordered), embeds)
            reductions = self._reduce_each(patches, sizes, orders)
        return [
            torch.cat([reduction.apply(kept), embeds[len(kept) :]])
            for reduction, kept, embeds in zip(reductions, patches, videos, strict=True)
        ]


class SievedPooled(SievedFlat):
    """In the encoder of LLaVA-NeXT-Video."""

    newline: ClassVar[int] = PooledProcessor.newline

    pooled_grid_length: int

    def _side(self) -> int:
        return self.pooled_grid_length
