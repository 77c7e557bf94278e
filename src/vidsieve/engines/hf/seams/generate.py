"""Wrap what `generate` does between the calls of the model, where a reduced prompt needs it."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor
from transformers.masking_utils import create_masks_for_generate

from vidsieve.engines.hf import contract, prompt
from vidsieve.engines.hf.cache import continued, prefixes_of
from vidsieve.engines.hf.intercept import Interceptions
from vidsieve.engines.hf.target import Target
from vidsieve.errors import UnsupportedCall

Arguments = dict[str, Any]


class GenerateSeam:
    """Wrappers around `generate` of the model of `target`, and around the methods that it calls.

    They store what later calls need (`ForwardStates.generated`) until the generation ends.
    """

    def __init__(self, target: Target, hooks: Interceptions) -> None:
        self._model, self._states = target.model, target.states
        self._adapter, self._token = target.adapter, target.token
        hooks.wrap(target.model, "generate", self._generate)
        hooks.wrap(target.model, "create_masks_for_generate", self._masks, create_masks_for_generate)
        hooks.wrap(target.model, "_prefill", self._prefill)
        hooks.wrap(target.model, "_prepare_multimodal_encoder_kwargs_for_generation", self._encode)  # >= 5.18
        hooks.wrap(target.model, "_get_candidate_generator", self._candidates)

    def _generate(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        around = self._states.generated  # of the generation that this one drafts for, where a model drafts for itself
        try:
            return inner(*args, **kwargs)
        finally:
            self._states.generated = around

    def _masks(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        # Static caches have their 4D masks prepared before the call, for the unreduced length.
        if kwargs["inputs_embeds"].shape[1] > 1:
            if self._adapter.mask_kinds is not None:
                self._states.generated = replace(self._states.generated, masks=partial(inner, *args, **kwargs))
            return kwargs["attention_mask"]  # the decoder builds the mask of the reduced prompt
        return inner(*args, **continued(kwargs))

    def _prefill(
        self, inner: Callable[..., Any], ids: Tensor, generation_config: Any, model_kwargs: Arguments, **kw: Any
    ) -> Any:
        contract.refuse_static_cache(self._model, contract.cache_of(model_kwargs))
        chunked = generation_config.prefill_chunk_size is not None
        if chunked and prompt.shows(self._adapter, model_kwargs) and (ids == self._token).any():
            raise UnsupportedCall(
                "prefill_chunk_size shows the reducer one piece of a video at a time, and a budget cannot be set on "
                "pieces; generate without it (a reduced prompt is short), or detach"
            )
        return inner(ids, generation_config, model_kwargs, **kw)

    def _encode(self, inner: Callable[..., Any], arguments: Arguments) -> Any:
        # generate() runs the vision tower itself, and the body does not get the arguments that describe the videos.
        described = prompt.description(arguments)
        arguments = inner(arguments)
        if encoded := prompt.encodings(arguments):  # else the calls get the pixels, and describe them themselves
            around = self._states.generated
            if not described and encoded == around.encoded:  # a draft gets what that one has described
                described = dict(around.described)
            self._states.generated = replace(around, described=described, encoded=encoded)
        return arguments

    def _candidates(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        # The first call of assisted decoding has candidates after the prompt, which are not part of the question.
        generator = inner(*args, **kwargs)
        propose = generator.get_candidates

        def get_candidates(input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
            outputs = kwargs.get("model_outputs")  # for drafts that go on from hidden states
            if outputs is not None and prefixes_of(contract.cache_of(outputs)):
                raise UnsupportedCall(
                    f"{type(generator).__name__} needs the hidden states of every token of the prompt, and dropped "
                    "tokens have none; generate without it, with an assistant model or prompt lookup, or detach"
                )
            proposed, logits = propose(input_ids, *args, **kwargs)
            self._states.generated = replace(self._states.generated, proposed=proposed.shape[1] - input_ids.shape[1])
            return proposed, logits

        generator.get_candidates = get_candidates
        return generator
