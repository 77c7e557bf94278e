"""Around `generate`: what it does between the model's calls that a reduced prompt must be told of, or be told from."""

import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import Tensor
from transformers.masking_utils import create_masks_for_generate

from vidsieve.engines.hf import prompt
from vidsieve.engines.hf.cache import continued
from vidsieve.engines.hf.families import Adapter
from vidsieve.errors import UnsupportedCall

Arguments = dict[str, Any]


def wrap(owner: Any, name: str, wrapper: Callable[..., Any], undo: ExitStack, default: Any = None) -> None:
    """Call `wrapper` in place of the function `name` of `owner`, which it gets first, for as long as `undo` is open."""
    inner = getattr(owner, name, default)
    if inner is None:
        return
    own = owner.__dict__
    undo.callback(own.__setitem__ if name in own else own.pop, name, own.get(name))
    own[name] = lambda *args, **kwargs: wrapper(inner, *args, **kwargs)


class Generation:
    """Wrappers around what `generate` asks `model` for, for as long as `undo` is open.

    On `here`, of each thread, they leave until the generation ends
    described: what says where the videos of encoded features are, and how many of these there are.
    proposed: how many candidate tokens the next call of the model is to judge.
    """

    def __init__(self, model: Any, adapter: Adapter, here: threading.local, undo: ExitStack) -> None:
        self.token: int = getattr(model.config, adapter.token)
        self._adapter, self._here = adapter, here
        wrap(model, "generate", self._generate, undo)
        wrap(model, "create_masks_for_generate", self._masks, undo, create_masks_for_generate)
        wrap(model, "_prefill", self._prefill, undo)
        wrap(model, "_prepare_multimodal_encoder_kwargs_for_generation", self._encode, undo)  # transformers >= 5.18
        wrap(model, "_get_candidate_generator", self._candidates, undo)

    def _generate(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return inner(*args, **kwargs)
        finally:
            for name in ("described", "proposed"):
                self._here.__dict__.pop(name, None)

    def _masks(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        # Static caches have their 4D masks prepared ahead of the call, which would not survive a reduction.
        if kwargs["inputs_embeds"].shape[1] > 1:
            return kwargs["attention_mask"]  # the decoder builds it, once reduced
        return inner(*args, **continued(kwargs))

    def _prefill(
        self, inner: Callable[..., Any], ids: Tensor, generation_config: Any, model_kwargs: Arguments, **kw: Any
    ) -> Any:
        chunked = generation_config.prefill_chunk_size is not None
        if chunked and prompt.shows(self._adapter, model_kwargs) and (ids == self.token).any():
            raise UnsupportedCall(
                "prefill_chunk_size shows the reducer one piece of a video at a time, and a budget cannot be set on "
                "pieces; generate without it (a reduced prompt is short), or detach"
            )
        return inner(ids, generation_config, model_kwargs, **kw)

    def _encode(self, inner: Callable[..., Any], arguments: Arguments) -> Any:
        # generate() runs the vision tower itself, and the body never sees what described the videos.
        described = prompt.description(arguments)
        arguments = inner(arguments)
        self._here.described = described, prompt.encodings(arguments)
        return arguments

    def _candidates(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        # The first call of assisted decoding judges candidates beside the prompt, and they ask nothing.
        generator = inner(*args, **kwargs)
        propose = generator.get_candidates

        def get_candidates(input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
            proposed, logits = propose(input_ids, *args, **kwargs)
            self._here.proposed = proposed.shape[1] - input_ids.shape[1]
            return proposed, logits

        generator.get_candidates = get_candidates
        return generator
