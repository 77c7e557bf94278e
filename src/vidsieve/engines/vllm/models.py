"""vLLM's models with our selection: what derive.py puts before Qwen2.5-VL, Qwen3-VL and all that derive from them.

One video passes through here three times. The front end (processor.py) counts its tokens and orders that many of the
encoder, for the prompt has to have its placeholders before anybody has seen the video. The encoder
(`_postprocess_video_embeds_evs`, vLLM's name) selects, and sends each embedding with its position. The runner, before
each step that brings embeddings, has them taken apart again (`recompute_mrope_positions`). A model that counts its
positions in one dimension has nothing to send: what stays closes ranks.

Without `--video-pruning-rate`, or with `--video-pruning-method vidcom2`, all of it is vLLM's own.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor
from vllm.logger import init_logger
from vllm.platforms import current_platform
from vllm.tokenizers.registry import cached_tokenizer_from_config
from vllm.utils.gpu_sync_debug import gpu_sync_allowed

from vidsieve.engines.vllm import positions
from vidsieve.engines.vllm.mrope import WithMRoPE, with_channels
from vidsieve.engines.vllm.processor import served
from vidsieve.engines.vllm.runner import patch_runner, patch_worker
from vidsieve.engines.vllm.settings import KWARG, ordered_count, ordered_key, ordered_question
from vidsieve.engines.vllm.unpruned import Unpruned
from vidsieve.errors import NonFiniteFeatures
from vidsieve.methods.presets import uniform
from vidsieve.types.reduction import Reduction
from vidsieve.types.tokens import Prompt, VideoTokens

# Unpruned tokens that a CPU encodes at once, or one video: more leave its caches, and memory that malloc has to hand.
ON_CPU = 512
_PACKED = ("video_grid_thw", "video_num_patches")  # beside one of them, the rows of all videos are in one tensor

logger = init_logger("vllm.vidsieve")  # vLLM shows what is logged below its own name


class Sieved(ABC):
    """In the encoder: what all models have in common."""

    settled: ClassVar[tuple[str, ...]] = ()  # methods of the root that a subclass of it must not change
    added: ClassVar[frozenset[str]] = frozenset()  # methods that vLLM calls though the root has none

    config: Any

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        serving = served(vllm_config.model_config)  # which refuses before anything is loaded
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        self._serving = serving
        self._batch = vllm_config.scheduler_config.max_num_encoder_input_tokens
        if current_platform.is_cpu():
            self._batch = min(self._batch, ON_CPU)
        self._unpruned = Unpruned()
        self._uses_mrope = bool(vllm_config.model_config.uses_mrope)  # positions have three dimensions
        name = type(self).__name__
        if self._serving is None:
            logger.info("vidsieve: not active in %s, which runs as in vLLM without it", name)
            return
        method, rate = self._serving
        logger.info(
            "vidsieve: active in %s: %s keeps %.4g %% of the tokens of each video, in place of EVS",
            *(name, method.name, 100 * (1 - rate)),
        )
        patch_runner()
        patch_worker()

    @property
    def sieves(self) -> bool:
        """Whether our selection runs here, rather than vLLM as it is."""
        return self._serving is not None

    def forget(self) -> None:
        """Drop what is held of videos, for the weights it was made with may be others now."""
        self._unpruned = Unpruned()

    def load_weights(self, weights: Any) -> Any:
        self.forget()
        return super().load_weights(weights)  # type: ignore[misc]

    def embed_multimodal(self, **kwargs: Any) -> Any:
        if not self.sieves or KWARG not in kwargs:
            return super().embed_multimodal(**kwargs)  # type: ignore[misc]
        videos = range(len(kwargs[KWARG]))
        held = [self._unpruned.get(ordered_key(ordered)) for ordered in kwargs[KWARG]]
        new, patches = [video for video in videos if held[video] is None], self._patches(kwargs)
        out: dict[int, Tensor] = {}
        if new:
            fresh = _videos(kwargs, new, patches)
            out.update(zip(new, (e for part in self._batches(fresh) for e in self._embed_videos(part)), strict=True))
        for video in videos:
            if (embeds := held[video]) is not None:
                (out[video],) = self._embed_held(_videos(kwargs, [video], patches), embeds)
        return [out[video] for video in videos]

    @abstractmethod
    def _embed_held(self, kwargs: dict[str, Any], embeds: Tensor) -> Sequence[Tensor]:
        """The same for one video whose unpruned embeddings (N, D) are on the host."""

    @abstractmethod
    def _embed_videos(self, kwargs: dict[str, Any]) -> Sequence[Tensor]:
        """What goes into the encoder cache for some videos, from the arguments of `embed_multimodal`."""

    @abstractmethod
    def _patches(self, kwargs: Mapping[str, Any]) -> list[int]:
        """The rows that each video has in what the encoder reads."""

    @abstractmethod
    def _patches_per_token(self) -> int:
        """How many of those rows are one token."""

    def _batches(self, kwargs: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The videos in pieces of no more unpruned tokens than vLLM encodes at once without pruning, on a CPU of fewer.

        The scheduler counts what is left of a video, so what it brings together may be many times its budget.
        """
        patches = self._patches(kwargs)
        limit = self._batch * self._patches_per_token()
        begin = 0
        for end in range(1, len(patches) + 1):
            if end == len(patches) or sum(patches[begin : end + 1]) > limit:
                yield _videos(kwargs, range(begin, end), patches)
                begin = end

    def _reduce_each(
        self, features: Sequence[Tensor], sizes: Sequence[tuple[int, int, int]], orders: Sequence[Tensor]
    ) -> list[Reduction]:
        """What stays of each of several videos' features (N, D), of `sizes` frames, rows and columns."""
        method, rate = self._serving  # type: ignore[misc]
        videos = [VideoTokens.from_grid(x, *size) for x, size in zip(features, sizes, strict=True)]
        counts = [ordered_count(ordered, len(video), rate) for ordered, video in zip(orders, videos, strict=True)]
        prompts = [self._prompt(ordered_question(ordered), features[0].device) for ordered in orders]
        try:
            reductions = method.reduce_each(videos, counts, prompts)
            for reduction in reductions:
                reduction.check()
        except NonFiniteFeatures as error:  # one broken video must not end the server for all
            if len(videos) > 1:
                alone = zip(features, sizes, orders, strict=True)
                return [
                    reduction for x, size, ordered in alone for reduction in self._reduce_each([x], [size], [ordered])
                ]
            logger.error("vidsieve: %s; keeping evenly spaced tokens of this video", error)
            zeros = VideoTokens.from_grid(torch.zeros_like(features[0][:, :1]), *sizes[0])
            return [uniform(counts[0] / len(zeros)).reduce(zeros)]
        return reductions

    def _prompt(self, question: list[int], device: torch.device) -> Prompt | None:
        if not question:
            return None
        language_model = self.get_language_model()  # type: ignore[attr-defined]
        return Prompt(language_model.embed_input_ids(torch.tensor(question, device=device)))


class _SievedQwen(WithMRoPE, Sieved):
    """Patches of all videos in one tensor, and positions of three dimensions."""

    settled: ClassVar[tuple[str, ...]] = (
        *WithMRoPE.settled,
        "_parse_and_validate_video_input",
        "_postprocess_image_embeds_evs",
        "_postprocess_video_embeds_evs",
    )

    def _embed_videos(self, kwargs: dict[str, Any]) -> Sequence[Tensor]:
        return super(Sieved, self).embed_multimodal(**kwargs)  # type: ignore[misc,no-any-return]

    def _embed_held(self, kwargs: dict[str, Any], embeds: Tensor) -> Sequence[Tensor]:
        device = kwargs.pop("pixel_values_videos").device
        with gpu_sync_allowed():
            embeds = embeds.to(device)
        return self._embed_videos({**kwargs, "video_embeds": embeds})

    def _patches(self, kwargs: Mapping[str, Any]) -> list[int]:
        return kwargs["video_grid_thw"].prod(-1).tolist()  # type: ignore[no-any-return]

    def _patches_per_token(self) -> int:
        return int(self.visual.spatial_merge_size) ** 2

    def _parse_and_validate_video_input(self, **kwargs: Any) -> Any:
        orders = kwargs.pop(KWARG, None)
        video_input = super()._parse_and_validate_video_input(**kwargs)  # type: ignore[misc]
        if video_input is not None:
            video_input.orders = orders
        return video_input

    def _postprocess_image_embeds_evs(self, splits: Sequence[Tensor], image_input: Any) -> tuple[Tensor, ...]:
        if not self.sieves:
            return super()._postprocess_image_embeds_evs(splits, image_input)  # type: ignore[misc,no-any-return]
        if not self._uses_mrope:
            return tuple(splits)
        sizes = [self._size(grid) for grid in image_input["image_grid_thw"].tolist()]
        with gpu_sync_allowed():
            return tuple(
                with_channels(embeds, positions.pack(positions.grid(*size)))
                for embeds, size in zip(splits, sizes, strict=True)
            )

    def _postprocess_video_embeds_evs(self, splits: Sequence[Tensor], video_input: Any) -> tuple[Tensor, ...]:
        if not self.sieves:
            return super()._postprocess_video_embeds_evs(splits, video_input)  # type: ignore[misc,no-any-return]
        grids = video_input["video_grid_thw"].tolist()
        with gpu_sync_allowed():
            for embeds, ordered in zip(splits, video_input.orders, strict=True):
                self._unpruned.put(ordered_key(ordered), embeds)
            features, sizes = [self._features(embeds) for embeds in splits], [self._size(grid) for grid in grids]
            reductions = self._reduce_each(features, sizes, video_input.orders)
            together = torch.cat([reduction.kept for reduction in reductions]).cpu()  # one wait for all of them
            kept = torch.split(together, [len(reduction) for reduction in reductions])
            return tuple(
                self._described(reduction.apply(embeds), kept[video], grids[video], video_input, video)
                for video, (reduction, embeds) in enumerate(zip(reductions, splits, strict=True))
            )

    def _features(self, embeds: Tensor) -> Tensor:
        """What tokens are compared by: what follows in a row is for deeper layers (Qwen3-VL)."""
        return embeds[:, : self.config.vision_config.out_hidden_size]

    @abstractmethod
    def _described(self, embeds: Tensor, kept: Tensor, grid: list[int], video_input: Any, video: int) -> Tensor:
        """What goes into the encoder cache: kept embeddings (K, D) with channels, and the text between, if any."""


def _videos(kwargs: Mapping[str, Any], some: Sequence[int], patches: list[int]) -> dict[str, Any]:
    """The arguments of `embed_multimodal` for some of its videos, in their order."""
    if len(some) == len(patches):
        return dict(kwargs)
    one = any(name in kwargs for name in _PACKED)
    packed = [name for name in ("pixel_values_videos", "video_embeds") if name in kwargs and one]
    out = {}
    for name, value in kwargs.items():
        if name in packed:
            sizes = [len(value) * size // sum(patches) for size in patches]
            parts = value.split(sizes)
            out[name] = torch.cat([parts[video] for video in some]) if len(some) > 1 else parts[some[0]]
        elif isinstance(value, Tensor):
            out[name] = value[list(some)] if value.ndim else value  # or it is of all videos
        else:
            out[name] = [value[video] for video in some]
    return out


class SievedGrid(_SievedQwen):
    """A video is one unbroken grid: Qwen2.5-VL."""

    settled: ClassVar[tuple[str, ...]] = (*_SievedQwen.settled, "iter_mm_grid_thw")

    def _step(self, seconds: Tensor | None) -> float:
        """Positions from one frame to the next."""
        per_second: float = getattr(self.config.vision_config, "tokens_per_second", 1.0)
        return per_second * (1.0 if seconds is None else seconds.item())

    def _described(self, embeds: Tensor, kept: Tensor, grid: list[int], video_input: Any, video: int) -> Tensor:
        if not self._uses_mrope:
            return embeds
        seconds = video_input.get("second_per_grid_ts")
        step = self._step(None if seconds is None else seconds[video])
        return with_channels(embeds, positions.pack(positions.grid(*self._size(grid), step)[kept]))

    def _span(self, data: Any, placeholder: list[int]) -> int:
        seconds = data.get("second_per_grid_ts")
        step = self._step(None if seconds is None else seconds.data)
        return positions.grid_span(*self._size(data["video_grid_thw"].data.tolist()), step)


class SievedInterleaved(_SievedQwen):
    """A video is a time stamp and a grid for each frame: Qwen3-VL. The text between the frames is embedded with it."""

    settled: ClassVar[tuple[str, ...]] = (
        *_SievedQwen.settled,
        "_get_expanded_positions",
        "_get_mrope_input_positions",
        "_iter_mm_grid_hw",
    )

    def __init__(self, *, vllm_config: Any, prefix: str = "model") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self._tokenizer = _CachingTokenizer(cached_tokenizer_from_config(vllm_config.model_config))

    def _described(self, embeds: Tensor, kept: Tensor, grid: list[int], video_input: Any, video: int) -> Tensor:
        frames, rows, columns = self._size(grid)
        per_frame = torch.bincount(kept // (rows * columns), minlength=frames).tolist()
        return self._create_final_video_embeddings(  # type: ignore[attr-defined,no-any-return]
            video_embeddings=embeds,
            num_tokens_per_frame=per_frame,
            timestamps=video_input.timestamps[video],
            video_grid_thw=grid,
            retention_mask=kept,  # only passed on, to `_get_expanded_positions`
        )

    def _get_expanded_positions(
        self,
        *,
        device: torch.device,
        seq_len: int,
        video_grid_thw: list[int],
        timestamps: Any,
        retention_mask: Tensor,
        **_: Any,
    ) -> Tensor:
        if not self._uses_mrope:
            return torch.empty(seq_len, 0, device=device)
        frames, rows, columns = self._size(video_grid_thw)
        start, end = self.config.vision_start_token_id, self.config.vision_end_token_id
        between = type(self)._processor_factory.processor.get_video_repl(  # type: ignore[attr-defined]
            tokens_per_frame=[0] * frames,
            timestamps=timestamps,
            tokenizer=self._tokenizer,
            vision_start_token_id=start,
            vision_end_token_id=end,
            video_token_id=self.config.video_token_id,
        )
        leads = positions.leads(list(between.full), start, end)
        return positions.pack(positions.interleaved(leads, retention_mask, rows, columns), leads[0]).to(device)

    def _span(self, data: Any, placeholder: list[int]) -> int:
        _, rows, columns = self._size(data["video_grid_thw"].data.tolist())
        leads = positions.leads(placeholder, self.config.vision_start_token_id, self.config.vision_end_token_id)
        return positions.interleaved_span(leads, rows, columns)


class _CachingTokenizer:
    """A tokenizer that does not encode the same time stamp twice."""

    def __init__(self, tokenizer: Any) -> None:
        self.encode = lru_cache(maxsize=1 << 16)(tokenizer.encode)
