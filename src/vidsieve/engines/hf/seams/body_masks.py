"""Let the body of a model make the masks of its decoder anew, of the tokens that are left.

Where a body makes the masks (Gemma 4, Molmo 2), they are of the whole prompt, and those of layers with a window cannot
be cut out of them: a window counts tokens. On the way of a prompt with video to the decoder, an empty mask stands in,
which transformers hands through as one that was made before. Then the body is called once more, with the embeddings and
kinds of the tokens that are left, up to its decoder, which ends that call with the masks.
"""

from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from vidsieve.engines.hf import contract
from vidsieve.engines.hf.cache import continued, physical_length, prefix_of
from vidsieve.engines.hf.forward import ForwardState
from vidsieve.engines.hf.sequence import SequenceSelection
from vidsieve.engines.hf.target import Target
from vidsieve.errors import UnsupportedCall

Arguments = dict[str, Any]


class _Made(Exception):
    """Ends the call of a body, with the masks that it made."""

    def __init__(self, masks: Any) -> None:
        super().__init__(masks)
        self.masks = masks


class BodyMasks:
    """The masks of the decoder of `target`, whose body makes them of the kinds of tokens that it gets as `kinds`."""

    def __init__(self, target: Target, kinds: str) -> None:
        self._body, self._kinds = target.body, kinds
        self._stand_in = torch.empty(0, 0, 0, 0)
        follow = ("inputs_embeds", "attention_mask", "position_ids", contract.CACHE, *target.adapter.per_token)
        self._names = contract.accepted(target.body, follow)
        self._takes_encoded = bool(contract.accepted(target.body, ("mm_encoder_outputs",)))

    def before_body(self, state: ForwardState, kwargs: Arguments) -> Arguments:
        """Adapt the arguments of the body: a prompt with video gets its masks later, any other the cache's."""
        kwargs = contract.with_new_names(kwargs)
        mask, make = kwargs.get("attention_mask"), state.generated.masks
        if mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 2):
            return kwargs  # made before
        if state.host_inputs is not None:
            state.deferred = kwargs
            return {**kwargs, "attention_mask": self._stand_in}
        kwargs = {**continued(kwargs), **self._of_text(state, kwargs)}
        if make is not None:
            given = {name: kwargs.get(name) for name in ("attention_mask", self._kinds)}
            kwargs["attention_mask"] = self._beforehand(make, given)
        return kwargs

    def restore(self, state: ForwardState, kwargs: Arguments) -> Arguments:
        """Give the arguments of the decoder the 2D mask back that something stood in for."""
        if state.deferred is None:
            return kwargs
        mask = kwargs.get("attention_mask")
        if not all(one is self._stand_in for one in (mask.values() if isinstance(mask, dict) else (mask,))):
            raise contract.unknown(f"{type(self._body).__name__} hands no mask through that was made before")
        return {**kwargs, "attention_mask": state.deferred.get("attention_mask")}

    def make(self, state: ForwardState, kwargs: Arguments) -> Arguments:
        """Make the masks of the arguments of the decoder, which were reduced with their 2D mask."""
        body, state.deferred, sequence = state.deferred, None, state.sequence
        if body is None:
            return kwargs
        if sequence is None:
            kinds = self._of_text(state, body)
        else:
            begin = sequence.start, sequence.held, sequence.length
            kinds = self._of(state, body, *begin, sequence.first)
        arguments = {name: kwargs[name] for name in self._names if kwargs.get(name) is not None} | kinds
        if (make := state.generated.masks) is not None:
            arguments["inputs_embeds"] = arguments["inputs_embeds"][..., :0]
            names = ("inputs_embeds", "attention_mask", "position_ids", self._kinds)
            masks = self._beforehand(make, {name: arguments.get(name) for name in names})
        else:
            if sequence is not None and sequence.held and self._takes_encoded:
                arguments |= _shown(arguments["inputs_embeds"])
            masks = self._of_body(state, arguments)
        # Of none, the decoder would make its own: of the 2D mask, without which gaps in positions are packed sequences.
        return kwargs if masks is None else {**kwargs, "attention_mask": masks}

    def _beforehand(self, make: "partial[Any]", arguments: Arguments) -> Any:
        """Make the masks as `generate` does before a call with a static cache; without kinds, if it has none then."""
        known = {} if make.keywords.get(self._kinds) is not None else {self._kinds: None}
        return make(**arguments | known)

    def _of_body(self, state: ForwardState, arguments: Arguments) -> Any:
        """Call the body, without its hooks, up to the decoder."""
        state.making = True
        try:
            with torch.no_grad():
                type(self._body).forward(self._body, **arguments)
        except _Made as made:
            return made.masks
        finally:
            state.making = False
        raise contract.unknown(f"{type(self._body).__name__} does not call its decoder")

    def _of_text(self, state: ForwardState, kwargs: Arguments) -> Arguments:
        """Make the kinds of a call in which nothing is dropped."""
        cache = contract.cache_of(kwargs)
        if kwargs.get(self._kinds) is None or (prefix := prefix_of(cache)) is None:
            return {self._kinds: kwargs.get(self._kinds)}
        tokens = kwargs["input_ids"] if kwargs.get("inputs_embeds") is None else kwargs["inputs_embeds"]
        held = physical_length(cache)
        return self._of(state, kwargs, held + prefix.removed, held, tokens.shape[1], None)

    def _of(
        self,
        state: ForwardState,
        kwargs: Arguments,
        start: int,
        held: int,
        length: int,
        kept: SequenceSelection | None,
    ) -> Arguments:
        """Make the kinds of the tokens that the cache holds, which are text, and of those of a call that are left.

        start, length: logical, of the cache and of the call.  held: tokens in the cache.
        """
        kinds = kwargs.get(self._kinds)
        if kinds is None or (kept is None and start == held):  # transformers counts them as this does
            return {self._kinds: kinds}
        kinds = _of_columns(kinds, self._kinds, start, length, state.generated.proposed)
        if kept is not None:
            kinds = kept.gather(kinds) * kept.valid.to(kinds)
        return {self._kinds: nn.functional.pad(kinds, (held, 0))}


def end_body(state: ForwardState | None, kwargs: Arguments) -> None:
    """End the call of a body that was made for its masks, where its decoder is called with these arguments."""
    if state is not None and state.making:
        raise _Made(kwargs.get("attention_mask"))


def _shown(embeds: Tensor) -> Arguments:
    """Tell a body that it is shown a video, of whose features none is to be written: some ask that, after a prompt."""
    features = SimpleNamespace(pooler_output=(embeds.new_empty(0, embeds.shape[-1]),))
    return {"mm_encoder_outputs": {"video": features}}


def _of_columns(kinds: Tensor, name: str, start: int, length: int, proposed: int) -> Tensor:
    """Get the kinds (B, length) of a call after `start` tokens. What was said since has none yet: it is text.

    kinds: (B, K) of the call, or of the conversation.
    """
    count, known = kinds.shape[1], length - proposed
    if start and count == start + known:
        kinds = kinds[:, start:]
    elif count > length or (start and count != known):
        raise UnsupportedCall(
            f"expected {name} of {known} tokens, or of all {start + known} of the conversation, got {count}; pass one "
            "for each of input_ids"
        )
    return nn.functional.pad(kinds, (0, length - kinds.shape[1]))
