"""Positions of three dimensions: what vLLM's runner asks a model that prunes, beside its encoder."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from vllm.sequence import IntermediateTensors
from vllm.utils.gpu_sync_debug import gpu_sync_allowed

from vidsieve.engines.vllm import positions

POSITIONS = "vidsieve_positions"  # int64 (n, 3), beside the hidden states that go from one pipeline stage to the next


class WithMRoPE(ABC):
    """Beside a `Sieved`: M-RoPE positions of a prompt, of which each embedding of a medium brings its own."""

    settled: ClassVar[tuple[str, ...]] = ("get_mrope_input_positions", "recompute_mrope_positions")

    config: Any
    visual: Any
    sieves: bool
    _uses_mrope: bool
    make_empty_intermediate_tensors: Any

    def __init__(self, *, vllm_config: Any, prefix: str = "model") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        if self.sieves:  # some of vLLM's models leave out what only pruning reads
            self.is_multimodal_pruning_enabled = True
        if self._carries_positions:
            theirs = self.make_empty_intermediate_tensors

            def with_positions(batch_size: int, dtype: torch.dtype, device: torch.device) -> IntermediateTensors:
                where = torch.zeros(batch_size, 3, dtype=torch.int64, device=device)
                return IntermediateTensors({**theirs(batch_size, dtype, device).tensors, POSITIONS: where})

            self.make_empty_intermediate_tensors = with_positions

    @property
    def _carries_positions(self) -> bool:
        return self.sieves and self._uses_mrope

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run a pipeline stage: the first alone is told by vLLM where the kept tokens stand, so it tells the others."""
        if intermediate_tensors is not None and self._carries_positions:
            theirs = dict(intermediate_tensors.tensors)
            positions.copy_(theirs.pop(POSITIONS).T)  # in place: a CUDA graph reads them where the runner has them
            intermediate_tensors = IntermediateTensors(theirs)
        out = super().forward(input_ids, positions, intermediate_tensors, inputs_embeds, **kwargs)  # type: ignore[misc]
        if isinstance(out, IntermediateTensors) and self._carries_positions:
            return IntermediateTensors({**out.tensors, POSITIONS: positions.T.contiguous()})
        return out

    def _size(self, grid: Sequence[int]) -> tuple[int, int, int]:
        """Frames, rows and columns of tokens in a grid of patches."""
        merge = self.visual.spatial_merge_size
        return grid[0], grid[1] // merge, grid[2] // merge

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        if not self.sieves:
            return super().get_mrope_input_positions(input_tokens, mm_features)  # type: ignore[misc,no-any-return]
        media = []
        for feature in sorted(mm_features, key=lambda feature: feature.mm_position.offset):
            offset, length = feature.mm_position.offset, feature.mm_position.length
            if feature.modality == "image":
                span = positions.grid_span(*self._size(feature.data["image_grid_thw"].data.tolist()))
            else:
                span = self._span(feature.data, input_tokens[offset : offset + length])
            media.append(positions.Medium(offset, length, span))
        return positions.initial(len(input_tokens), media)

    @abstractmethod
    def _span(self, data: Any, placeholder: list[int]) -> int:
        """The positions that a whole video takes."""

    def recompute_mrope_positions(
        self,
        input_ids: list[int] | Tensor,
        multimodal_embeddings: Sequence[Tensor],
        mrope_positions: Tensor,
        num_computed_tokens: int,
    ) -> tuple[Sequence[Tensor], Tensor, int]:
        if not self.sieves:
            return super().recompute_mrope_positions(  # type: ignore[misc,no-any-return]
                input_ids, multimodal_embeddings, mrope_positions, num_computed_tokens
            )
        clean = [embeds[:, : -positions.CHANNELS] for embeds in multimodal_embeddings]
        if clean:
            channels = torch.cat([embeds[:, -positions.CHANNELS :] for embeds in multimodal_embeddings])
            pads = (self.config.image_token_id, self.config.video_token_id)
            with gpu_sync_allowed():  # the one wait
                fields, on_host = positions.unpack(channels.cpu()), mrope_positions.cpu()
                ids = input_ids.tolist() if isinstance(input_ids, Tensor) else input_ids
                media = torch.split(fields, [len(embeds) for embeds in clean])
                positions.fill(on_host, ids, pads, num_computed_tokens, media)
                mrope_positions = on_host.to(mrope_positions.device)
            last = on_host[:, -1]
        else:
            with gpu_sync_allowed():
                last = mrope_positions[:, -1].cpu()
        # The last token of a prompt is text, and nothing stands behind it.
        delta = int(last.max()) + 1 - mrope_positions.shape[1]
        return clean, mrope_positions, delta


def with_channels(embeds: Tensor, channels: Tensor) -> Tensor:
    """Embeddings (n, D) with what `positions.pack` made of their positions."""
    return torch.cat([embeds, channels.to(embeds.device, embeds.dtype)], dim=1)
