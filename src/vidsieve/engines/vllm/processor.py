"""The front end of vLLM's models: a video's tokens in the prompt, and what is ordered of the encoder for it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor
from transformers import BatchFeature
from vllm.multimodal.hasher import MultiModalHasher
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.processing import ProcessorInputs

from vidsieve.engines.vllm.runner import check_started_with, pruning_spec
from vidsieve.engines.vllm.settings import (
    KWARG,
    Method,
    RequestOptions,
    configured,
    order,
    ordered_count,
    pruning_rate,
)
from vidsieve.errors import UnsupportedCall, UnsupportedModel


def served(model_config: Any) -> tuple[Method, float] | None:
    """The method and the pruning rate a server was started with; None where vLLM's own code is to run.

    Raises `UnsupportedCall` if the user named a method and it would not run.
    """
    method = configured()
    rate = None if method is None else pruning_rate(pruning_spec(model_config))
    return None if method is None or rate is None else (method, rate)


def check_hooks(override: type, base: type, added: frozenset[str] = frozenset()) -> None:
    """Raise `UnsupportedModel` where a method of `override` is no longer one of vLLM's `base`: none would call it.

    added: those that vLLM calls where a model has them, which its own has not.
    """
    known = _OWN | added | set(dir(base))
    missing = [name for name, value in vars(override).items() if callable(value) and name not in known]
    if missing:
        raise UnsupportedModel(
            f"this vLLM has no {base.__name__}.{', '.join(missing)}; vidsieve knows vLLM 0.32 and 0.33. "
            "Install one of these, or set VIDSIEVE_VLLM=off to go on without vidsieve"
        )


_OWN = {
    *("_tokens", "_checked", "_videos", "_key", "_total", "_resized", "_pad", "_text"),
    *("_batches", "_embed_videos", "_embed_held", "_after_encoder", "forget", "_reduce_each", "_prompt", "_features"),
    *(
        "_patches",
        "_patches_per_token",
        "_size",
        "_sizes",
        "_side",
        "_step",
        "_span",
        "_described",
        "_framed",
        "check_graphs",
    ),
}


class Processor(ABC):
    """In the front end: how many tokens each video has in the prompt, and what is ordered of the encoder for it.

    The order rides along as one more field of the video (`settings.order`), so both ends agree by construction.
    """

    settled: ClassVar[tuple[str, ...]] = ()  # methods of the root's processor that a subclass of it must not change

    info: Any

    def apply(self, inputs: ProcessorInputs, timing_ctx: Any) -> Any:
        self._checked(inputs)
        return super().apply(inputs, timing_ctx)  # type: ignore[misc]

    def _checked(self, inputs: ProcessorInputs) -> None:
        """Refuse a request whose wishes cannot be honoured, whatever it brings and whatever is cached of it."""
        check_started_with(self.info.ctx.get_mm_config())
        serving, wishes = served(self.info.ctx.model_config), inputs.hf_processor_mm_kwargs
        if serving is None:
            if KWARG in wishes:
                raise UnsupportedCall(f'this server does not prune with vidsieve, so "{KWARG}" cannot be honoured')
            return
        asked = RequestOptions.of(wishes)
        has_video = inputs.mm_data_items.get_count("video", strict=False) > 0
        if has_video or asked.question is not None:
            asked.check(serving[0])

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, Any]) -> BatchFeature:
        out = super()._apply_hf_processor_main(mm_items, without(hf_kwargs))  # type: ignore[misc]
        videos = self._videos(out)
        if videos and served(self.info.ctx.model_config) is not None:
            asked = RequestOptions.of(hf_kwargs)
            if asked.question is None:
                out[KWARG] = [order(asked.keep, [])] * len(videos)
            else:
                question = self._tokens(asked.question)
                out[KWARG] = [order(asked.keep, question, self._key(video)) for video in videos]
        return out

    def _key(self, video: Mapping[str, Tensor]) -> bytes | None:
        """A name for a video, so that another question about it need not have it encoded again.

        vLLM's own name for it does not serve: the question is part of that, and a client may choose it.
        """
        if not video:
            return None
        algorithm = self.info.ctx.get_mm_config().mm_hasher_algorithm
        return bytes.fromhex(MultiModalHasher.hash_kwargs(algorithm, **video))[:16]

    @abstractmethod
    def _videos(self, out: BatchFeature) -> list[dict[str, Tensor]]:
        """What the encoder is to read of each video, from what Hugging Face's processor returned.

        Nothing where a client sent the embeddings themselves.
        """

    def _total(self, video: Any, placeholder: list[int], pad: int) -> int:
        """The tokens of a video before pruning. placeholder: vLLM's own for it."""
        return placeholder.count(pad)

    def _pad(self, content: Any) -> int:
        """The token that holds the place of a video's. content: vLLM's own placeholder for it."""
        config = self.info.get_hf_config()
        return int(config.video_token_id if hasattr(config, "video_token_id") else config.video_token_index)

    def _resized(self, ids: list[int], pad: int, count: int) -> list[int]:
        """A video's placeholder with `count` pads, all where its first one is."""
        first = ids.index(pad)
        return [*ids[:first], *[pad] * count, *(token for token in ids[first:] if token != pad)]

    def _tokens(self, question: str) -> list[int]:
        return list(self.info.get_tokenizer().encode(question, add_special_tokens=False))

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, Any]
    ) -> Mapping[str, MultiModalFieldConfig]:
        fields = super()._get_mm_fields_config(hf_inputs, without(hf_processor_mm_kwargs))  # type: ignore[misc]
        return {**fields, KWARG: MultiModalFieldConfig.batched("video", keep_on_cpu=True)}

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs: Any
    ) -> Sequence[Any]:
        updates = super()._get_prompt_updates(mm_items, without(hf_processor_mm_kwargs), out_mm_kwargs)  # type: ignore[misc]
        serving = served(self.info.ctx.model_config)
        if serving is None:
            return updates  # type: ignore[no-any-return]
        _, rate = serving

        def sized(stock: Any, item: int) -> list[int]:
            content, video = stock(item), out_mm_kwargs["video"][item]
            ids, pad = list(getattr(content, "full", content)), self._pad(content)
            return self._resized(ids, pad, ordered_count(video[KWARG].data, self._total(video, ids, pad), rate))

        return [
            replace(update, replacement=lambda item, stock=update.replacement: sized(stock, item))
            if update.modality == "video"
            else update
            for update in updates
        ]

    def _get_mm_hashes(self, inputs: ProcessorInputs) -> Any:
        # Among the options of videos, so that a question does not have the images of the prompt encoded anew.
        kwargs = inputs.hf_processor_mm_kwargs
        if KWARG in kwargs:
            videos = {**kwargs.get("videos_kwargs", {}), KWARG: kwargs[KWARG]}
            inputs = replace(inputs, hf_processor_mm_kwargs={**without(kwargs), "videos_kwargs": videos})
        return super()._get_mm_hashes(inputs)  # type: ignore[misc]

    def get_dummy_inputs(self, *args: Any, **kwargs: Any) -> ProcessorInputs:
        inputs = super().get_dummy_inputs(*args, **kwargs)  # type: ignore[misc]
        serving = served(self.info.ctx.model_config)
        if serving is not None and serving[0].asks:
            inputs.hf_processor_mm_kwargs = {KWARG: {"question": "?"}}
        return inputs


def without(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What is Hugging Face's of a request's options."""
    return {key: value for key, value in kwargs.items() if key != KWARG}


class GridProcessor(Processor):
    """Of Qwen2.5-VL and Qwen3-VL, which say of each video what grid it has."""

    settled = ("get_video_repl",)

    def _videos(self, out: BatchFeature) -> list[dict[str, Tensor]]:
        grids = out.get("video_grid_thw", ())
        if "pixel_values_videos" not in out:
            return [{} for _ in grids]
        pixels = out["pixel_values_videos"].split([int(grid.prod()) for grid in grids])
        return [{"pixels": video, "grid": grid} for video, grid in zip(pixels, grids, strict=True)]

    def _total(self, video: Any, placeholder: list[int], pad: int) -> int:
        merge = self.info.get_hf_config().vision_config.spatial_merge_size
        frames, rows, columns = video["video_grid_thw"].data.tolist()
        return int(frames * (rows // merge) * (columns // merge))
