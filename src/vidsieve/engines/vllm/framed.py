"""Models whose frames are runs of tokens with text between them, for which vLLM has no pruning of its own.

How many tokens of each frame stay is not known when the prompt is made. So all places of a video are one medium, text
included: the encoder embeds the text too, and puts the kept tokens between.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import BatchFeature
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.utils.gpu_sync_debug import gpu_sync_allowed

from vidsieve.engines.vllm import positions
from vidsieve.engines.vllm.models import Sieved
from vidsieve.engines.vllm.mrope import WithMRoPE, with_channels
from vidsieve.engines.vllm.processor import Processor, served, without
from vidsieve.engines.vllm.settings import KWARG, ordered_key
from vidsieve.errors import UnsupportedCall

TEXT = "vidsieve_text"  # beside the order of a video: its placeholder, with one FRAME for all patches of a frame
FRAME = -1


class FramedProcessor(Processor):
    """Of InternVL and GLM-4V: what vLLM would put into the prompt says where the frames are."""

    settled = ("_get_prompt_updates", "_apply_hf_processor_main")

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, Any]) -> BatchFeature:
        out = super()._apply_hf_processor_main(mm_items, hf_kwargs)
        if KWARG in out:
            kwargs = without(hf_kwargs)
            fields = super(Processor, self)._get_mm_fields_config(out, kwargs)  # type: ignore[misc]
            items = MultiModalKwargsItems.from_hf_inputs(out, fields)
            updates = super(Processor, self)._get_prompt_updates(mm_items, kwargs, items)  # type: ignore[misc]
            (stock,) = (update.replacement for update in updates if update.modality == "video")
            out[TEXT] = [self._text(stock(video)) for video in range(len(out[KWARG]))]
        return out

    def _text(self, content: Any) -> Tensor:
        """The placeholder of a video, int64 (n,), with one FRAME for each of its runs of pads."""
        ids = torch.tensor(list(content.full))
        is_pad = ids == self._pad(content)
        return ids.masked_fill(is_pad, FRAME)[~is_pad | ~is_pad.roll(1)]

    def _pad(self, content: Any) -> int:
        ids = list(content.full)
        return int(ids[int(content.is_embed(ids).int().argmax())])

    def _videos(self, out: BatchFeature) -> list[dict[str, Tensor]]:
        if "pixel_values_videos" not in out:
            return []
        grids = out.get("video_grid_thw")
        counts = out["video_num_patches"] if grids is None else grids.prod(-1)
        videos = out["pixel_values_videos"].split(counts.tolist())
        if grids is None:
            return [{"pixels": video} for video in videos]
        return [{"pixels": video, "grid": grid} for video, grid in zip(videos, grids, strict=True)]

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, Any]
    ) -> Mapping[str, MultiModalFieldConfig]:
        fields = super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs)
        return {**fields, TEXT: MultiModalFieldConfig.batched("video", keep_on_cpu=True)}


class SievedFramed(Sieved):
    """In the encoder of InternVL, whose positions are the indices of the prompt: what stays closes ranks."""

    settled: ClassVar[tuple[str, ...]] = ("_process_vision_input", "_parse_and_validate_video_input")

    num_image_token: int

    def _sizes(self, kwargs: Mapping[str, Any]) -> list[tuple[int, int, int]]:
        """Frames, rows and columns of the tokens of each video."""
        side = math.isqrt(self.num_image_token)
        return [(frames, side, side) for frames in kwargs["video_num_patches"].tolist()]

    def _patches(self, kwargs: Mapping[str, Any]) -> list[int]:
        return [math.prod(size) for size in self._sizes(kwargs)]

    def _patches_per_token(self) -> int:
        return 1

    def _embed_videos(self, kwargs: dict[str, Any]) -> Sequence[Tensor]:
        theirs = {name: value for name, value in kwargs.items() if name not in (KWARG, TEXT)}
        return self._after_encoder(super(Sieved, self).embed_multimodal(**theirs), kwargs)  # type: ignore[misc]

    def _embed_held(self, kwargs: dict[str, Any], embeds: Tensor) -> Sequence[Tensor]:
        with gpu_sync_allowed():
            embeds = embeds.to(kwargs["pixel_values_videos"].device)
        return self._after_encoder([embeds], kwargs)

    def _after_encoder(self, videos: Sequence[Tensor], kwargs: Mapping[str, Any]) -> list[Tensor]:
        orders, sizes = kwargs[KWARG], self._sizes(kwargs)
        with gpu_sync_allowed():
            for embeds, ordered in zip(videos, orders, strict=True):
                self._unpruned.put(ordered_key(ordered), embeds)
            reductions = self._reduce_each(videos, sizes, orders)
            together = torch.cat([reduction.kept for reduction in reductions]).cpu()  # one wait for all of them
            kept = torch.split(together, [len(reduction) for reduction in reductions])
            return [
                self._framed(reduction.apply(embeds), at, size, text)
                for reduction, embeds, at, size, text in zip(reductions, videos, kept, sizes, kwargs[TEXT], strict=True)
            ]

    def _framed(self, embeds: Tensor, kept: Tensor, size: tuple[int, int, int], text: Tensor) -> Tensor:
        """What goes into the encoder cache: kept embeddings (K, D), with the embedded text between frames."""
        frames, rows, columns = size
        is_frame = text == FRAME
        per_frame = torch.bincount(kept // (rows * columns), minlength=frames)
        text_rows, kept_rows = positions.framed(is_frame, per_frame)
        language_model = self.get_language_model()  # type: ignore[attr-defined]
        words = language_model.embed_input_ids(text[~is_frame].to(embeds.device)).to(embeds.dtype)
        order = torch.cat([text_rows, kept_rows]).argsort().to(embeds.device)
        return torch.cat([words, embeds])[order]


class SievedFramedGrid(WithMRoPE, SievedFramed):
    """In the encoder of GLM-4V, whose frames are grids of positions of three dimensions."""

    settled: ClassVar[tuple[str, ...]] = (
        *WithMRoPE.settled,
        *("_process_video_input", "_process_image_input", "_parse_and_validate_multimodal_inputs", "iter_mm_grid_thw"),
    )
    added: ClassVar[frozenset[str]] = frozenset({"recompute_mrope_positions"})
    supports_multimodal_pruning = True  # or vLLM would not ask for positions

    def __init__(self, *, vllm_config: Any, prefix: str = "model") -> None:
        if served(vllm_config.model_config) is not None:
            self.check_graphs(vllm_config)
        super().__init__(vllm_config=vllm_config, prefix=prefix)

    @classmethod
    def check_graphs(cls, vllm_config: Any) -> None:
        """Raise `UnsupportedCall` where vLLM would replay the encoder as a CUDA graph, past what selects here."""
        if vllm_config.compilation_config.cudagraph_mm_encoder:
            raise UnsupportedCall(
                f"{cls.__name__} cannot select in an encoder that is a CUDA graph: got cudagraph_mm_encoder=True, "
                "expected False. Start the server without it, or without --video-pruning-rate"
            )

    def _sizes(self, kwargs: Mapping[str, Any]) -> list[tuple[int, int, int]]:
        return [self._size(grid) for grid in kwargs["video_grid_thw"].tolist()]

    def embed_multimodal(self, **kwargs: Any) -> Any:
        out = super().embed_multimodal(**kwargs)
        grids = kwargs.get("image_grid_thw")
        if grids is None or not self.sieves or not self._uses_mrope:
            return out
        with gpu_sync_allowed():
            return [
                with_channels(embeds, positions.pack(positions.grid(*self._size(grid))))
                for embeds, grid in zip(out, grids.tolist(), strict=True)
            ]

    def _framed(self, embeds: Tensor, kept: Tensor, size: tuple[int, int, int], text: Tensor) -> Tensor:
        out = super()._framed(embeds, kept, size, text)
        if not self._uses_mrope:
            return out
        is_frame = text == FRAME
        lead = int(is_frame.int().argmax())
        return with_channels(out, positions.pack(positions.framed_positions(is_frame, kept, *size[1:]), lead))

    def _span(self, data: Any, placeholder: list[int]) -> int:
        frames, rows, columns = self._size(data["video_grid_thw"].data.tolist())
        text = sum(token not in (self.config.image_token_id, self.config.video_token_id) for token in placeholder)
        return text + frames * max(rows, columns)
