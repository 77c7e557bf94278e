"""The front end of vLLM's Qwen2.5-VL and Qwen3-VL: a video's tokens in the prompt, and what is ordered for it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from transformers import BatchFeature
from vllm.model_executor.models import qwen2_5_vl, qwen3_vl
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.processing import ProcessorInputs

from vidsieve.engines.vllm.runner import pruning_spec
from vidsieve.engines.vllm.settings import KWARG, Method, RequestOptions, configured, order
from vidsieve.errors import UnsupportedCall, UnsupportedModel


def served(model_config: Any) -> tuple[Method, float] | None:
    """The method and the pruning rate a server was started with; None where vLLM's own code is to run."""
    spec, method = pruning_spec(model_config), configured()
    return (method, spec[1]) if spec is not None and spec[0] == "evs" and method is not None else None


def check_hooks(override: type, base: type) -> None:
    """Raise `UnsupportedModel` where a method of `override` is no longer one of vLLM's `base`: none would call it."""
    missing = [name for name, value in vars(override).items() if callable(value) and name not in _OWN | set(dir(base))]
    if missing:
        raise UnsupportedModel(
            f"this vLLM has no {base.__name__}.{', '.join(missing)}; vidsieve knows vLLM 0.32 and 0.33. "
            "Install one of these, or set VIDSIEVE_VLLM=off to go on without vidsieve"
        )


_OWN = {"_tokens", "_batches", "_reduce", "_size", "_described", "_span"}


class _Processor:
    """In the front end: how many tokens each video has in the prompt, and what is ordered of the encoder for it.

    The order rides along as one more field of the video (`settings.order`), so both ends agree by construction.
    """

    info: Any

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, Any]) -> BatchFeature:
        out = super()._apply_hf_processor_main(mm_items, _without(hf_kwargs))  # type: ignore[misc]
        serving = served(self.info.ctx.model_config)
        if KWARG in (self.info.ctx.get_mm_config().mm_processor_kwargs or {}):
            raise UnsupportedCall(
                f'"{KWARG}" belongs into the mm_processor_kwargs of a request; '
                "for all requests there are --video-pruning-rate and VIDSIEVE_VLLM"
            )
        if serving is None:
            if KWARG in hf_kwargs:
                raise UnsupportedCall(f'this server does not prune with vidsieve, so "{KWARG}" cannot be honoured')
            return out
        method, rate = serving
        if "video_grid_thw" in out:
            asked = RequestOptions.of(hf_kwargs)
            asked.check(method)
            question = [] if asked.question is None else self._tokens(asked.question)
            merge = self.info.get_hf_config().vision_config.spatial_merge_size
            out[KWARG] = [
                order(asked.count(t * (h // merge) * (w // merge), rate), question)
                for t, h, w in out["video_grid_thw"].tolist()
            ]
        return out

    def _tokens(self, question: str) -> list[int]:
        return list(self.info.get_tokenizer().encode(question, add_special_tokens=False))

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        fields = super()._get_mm_fields_config(hf_inputs, _without(hf_processor_mm_kwargs))  # type: ignore[misc]
        return {**fields, KWARG: MultiModalFieldConfig.batched("video", keep_on_cpu=True)}

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs: Any
    ) -> Sequence[Any]:
        updates = super()._get_prompt_updates(mm_items, _without(hf_processor_mm_kwargs), out_mm_kwargs)  # type: ignore[misc]
        if served(self.info.ctx.model_config) is None:
            return updates  # type: ignore[no-any-return]
        pad = self.info.get_hf_config().video_token_id

        def sized(stock: Any, item: int) -> list[int]:
            content, count = stock(item), int(out_mm_kwargs["video"][item][KWARG].data[0])
            return _resized(list(getattr(content, "full", content)), pad, count)

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
            inputs = replace(inputs, hf_processor_mm_kwargs={**_without(kwargs), "videos_kwargs": videos})
        return super()._get_mm_hashes(inputs)  # type: ignore[misc]

    def get_dummy_inputs(self, *args: Any, **kwargs: Any) -> ProcessorInputs:
        inputs = super().get_dummy_inputs(*args, **kwargs)  # type: ignore[misc]
        serving = served(self.info.ctx.model_config)
        if serving is not None and serving[0].asks:
            inputs.hf_processor_mm_kwargs = {KWARG: {"question": "?"}}
        return inputs


def _without(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What is Hugging Face's of a request's options."""
    return {key: value for key, value in kwargs.items() if key != KWARG}


def _resized(ids: list[int], pad: int, count: int) -> list[int]:
    """A video's placeholder with `count` pads, all where its first one is."""
    first = ids.index(pad)
    return [*ids[:first], *[pad] * count, *(token for token in ids[first:] if token != pad)]


class Qwen2_5_VLProcessor(_Processor, qwen2_5_vl.Qwen2_5_VLMultiModalProcessor):
    """Of Qwen2.5-VL."""


class Qwen3VLProcessor(_Processor, qwen3_vl.Qwen3VLMultiModalProcessor):
    """Of Qwen3-VL, dense or not."""


check_hooks(_Processor, qwen2_5_vl.Qwen2_5_VLMultiModalProcessor)
check_hooks(_Processor, qwen3_vl.Qwen3VLMultiModalProcessor)
