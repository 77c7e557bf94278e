"""Write stored rows over the placeholders of a prompt, in the calls of an unmodified model: no pixels, no vision tower.

    with Replay(model, features, {"deepstack_visual_embeds": rows}):
        model.generate(input_ids=..., attention_mask=..., position_ids=...)

A prompt has one placeholder for each row, and the positions of the unreduced one. A hook on the body finds the
placeholders, a hook on the decoder writes the rows there, and those of later layers (deepstack) beside them.
Rows of a batch, beams and returned sequences get the same rows; a row of text alone gets none.
Stages that are attached inside the model reduce what was written, as they would what a stage at 0 has left; the seams
of the attachment then call `write` (seams/input.py).
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vidsieve.checks import show
from vidsieve.engines.hf import arguments, contract, prompt
from vidsieve.engines.hf.attach import attachment_of
from vidsieve.engines.hf.families import adapter_for
from vidsieve.engines.hf.intercept import Interceptions, OfOneModel
from vidsieve.engines.hf.replayed import HANDLE, StoredVideo, check_inside
from vidsieve.engines.hf.sequence import flash_lengths
from vidsieve.errors import AlreadyAttached, UnsupportedCall, UnsupportedModel, WrongArgument

Arguments = dict[str, Any]
_HOLDS = "vidsieve_replayed"  # the attribute of a cache that holds the rows
_starting = threading.Lock()


class _Call(NamedTuple):
    """A call into which rows are written.

    at: bool (B, L), its placeholders.  copies: how many of its rows have them.  given: the arguments of the body.
    """

    at: Tensor
    copies: int
    given: Arguments


class Replay(OfOneModel):
    """A context in which the calls of `model` get stored rows, in all threads.

    features: (V, D), one row for each placeholder of a prompt.  others: (layers, V, D) of the decoder's arguments for
    visual tokens, by name.  videos: those that the V are of, in order, for stages inside the model; without them, such
    stages are refused.
    Entering raises `AlreadyAttached` if another video is replayed on the model, `UnsupportedCall` if a reducer is
    attached to it that acts before its layers, or it is compiled, `WrongArgument` for tensors of other shapes or names;
    making one, `UnsupportedModel` for a family of which nobody has shown that it works.
    A call that brings pixels of its own is left alone. In a call with placeholders and none, `UnsupportedCall` is
    raised for a prompt with another number of placeholders, without `position_ids` or `input_ids`, or in pieces.
    """

    def __init__(
        self, model: Any, features: Tensor, others: Mapping[str, Tensor], videos: Sequence[StoredVideo] = ()
    ) -> None:
        self._model = arguments.unwrap_model(model)
        self._adapter = adapter_for(self._model)
        if reason := self._adapter.no_chunks:
            raise UnsupportedModel(
                f"model type {self._model.config.model_type!r} does not answer from stored rows: {reason}; "
                "attach a method instead"
            )
        if features.ndim != 2:
            raise WrongArgument(f"expected features (V, D), got {show(features)}")
        for name, rows in others.items():
            if name not in self._adapter.per_visual or rows.ndim != 3 or rows.shape[1] != len(features):
                expected = " or ".join(self._adapter.per_visual)
                raise WrongArgument(f"expected {expected} (layers, {len(features)}, D), got {name} {show(rows)}")
        if videos and sum(video.placeholders for video in videos) != len(features):
            raise WrongArgument(f"expected the videos that {len(features)} rows are of, got {len(videos)} of others")
        self._features, self._others, self.videos = features, dict(others), tuple(videos)
        self._token: int = getattr(self._model.config, self._adapter.token)
        self._body, self._decoder = self._model.base_model, self._model.get_decoder()
        self._calls = threading.local()  # `call`: a `_Call`, of this thread
        self._hooks = Interceptions()

    def __enter__(self) -> None:
        model, body = self._model, self._body
        arguments.refuse_compiled(model, body, self._decoder)
        contract.check_replay(model, self._adapter)
        self._stages()
        embedding = model.get_input_embeddings().weight
        if embedding.shape[1] != self._features.shape[1]:
            raise WrongArgument(
                f"expected features of {embedding.shape[1]} numbers, as {type(model).__name__} takes them, "
                f"got {show(self._features)}"
            )
        with Interceptions() as hooks:
            with _starting:
                if HANDLE in body.__dict__:
                    raise AlreadyAttached(
                        f"this {type(model).__name__} already answers from an encoded video; leave that `with` block "
                        "first, or put both into one prompt: first + second"
                    )
                hooks.put(body, HANDLE, self)
            self._features = self._features.to(embedding.device, embedding.dtype)
            hooks.before(body, self._before_body)
            hooks.after(body, self._after_body)
            hooks.before(self._decoder, self._before_decoder)
            hooks.after(self._decoder, self._after_decoder)
            hooks.wrap(model, "_prepare_position_ids_for_generation", self._positions)
            hooks.wrap(model, "_expand_inputs_for_generation", self._expand)
            hooks.wrap(model, "prepare_inputs_for_generation", self._inputs)
            hooks.wrap(model, "_prefill", self._prefill)
            hooks.wrap(model, "_get_candidate_generator", self._candidates)
            self._hooks = hooks.pop_all()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._hooks.close()

    def _stages(self) -> bool:
        """Say whether stages inside the model reduce what is written. Raises `UnsupportedCall` for what cannot."""
        attached = attachment_of(self._body)
        if attached is None or attached.reducer is None:
            return False
        check_inside(attached.reducer)
        if not self.videos:
            raise UnsupportedCall(
                f"nothing says which videos these rows are of, which {attached.reducer!r} has to know"
            )
        return True

    @property
    def given(self) -> Mapping[str, Any] | None:
        """The arguments of the body in a call of this thread into which rows are written, None in any other."""
        call = self._call
        return None if call is None else call.given

    @property
    def _call(self) -> _Call | None:
        call: _Call | None = getattr(self._calls, "call", None)
        return call

    def _before_body(self, body: nn.Module, args: tuple[Any, ...], kwargs: Arguments) -> None:
        kwargs = contract.with_new_names(contract.by_name(body, args, kwargs))
        ids, cache = kwargs.get("input_ids"), contract.cache_of(kwargs)  # (B, L)
        given = ids if ids is not None else kwargs.get("inputs_embeds")
        if given is None:
            return
        if kwargs.get("position_ids") is None and getattr(cache, _HOLDS, False):
            raise _without_positions()
        if given.shape[1] == 1:  # a token of the answer; nothing here may wait for the device
            return
        self._calls.call = None
        if ids is None:
            if not prompt.encodes(kwargs):
                raise UnsupportedCall(
                    "an encoded video is written over placeholders; expected input_ids, got embeddings"
                )
            return
        if prompt.shows(self._adapter, kwargs):  # a call of its own, with its own video
            return
        at = ids == self._token
        counts = at.sum(1).tolist()
        if self._writes(counts, cache):
            self._stages()
            if prompt.encodes(kwargs):
                raise UnsupportedCall("an encoded video cannot be in one prompt with images; ask without them")
            if kwargs.get("position_ids") is None:
                raise _without_positions()
            self._calls.call = _Call(at, sum(map(bool, counts)), kwargs)

    def _writes(self, counts: list[int], cache: Any) -> bool:
        """Say whether rows are written into a call with so many placeholders in each row.

        Raises `UnsupportedCall` for numbers that are not those of the stored rows.
        """
        stored = len(self._features)
        most = max(counts, default=0)
        if not most or (most < stored and getattr(cache, _HOLDS, False) and int(cache.get_seq_length()) > 0):
            return False  # text, or an answer in which the model said the placeholder
        if wrong := [count for count in counts if count not in (0, stored)]:
            raise UnsupportedCall(
                f"expected {stored} placeholders in a prompt, one for each token of the encoded video, got {wrong[0]}; "
                "make the prompt with encoded.inputs(model, processor, question), and pass all of it in one call"
            )
        return True

    def _after_body(self, body: nn.Module, args: tuple[Any, ...], kwargs: Arguments, output: Any) -> None:
        if output is None:  # it failed, perhaps before the decoder
            self._calls.call = None

    def _before_decoder(self, decoder: nn.Module, args: tuple[Any, ...], kwargs: Arguments) -> Any:
        kwargs = contract.with_new_names(kwargs)
        embeds = kwargs.get("inputs_embeds")  # (B, L, D)
        if embeds is None or embeds.shape[1] == 1 or self._call is None or self._stages():
            return None
        return args, self.write(kwargs)

    def write(self, kwargs: Arguments) -> Arguments:
        """Write the rows into the arguments of the decoder, in a call of this thread that has `given`."""
        call = self._call
        if call is None or kwargs.get("position_ids") is None:
            raise _without_positions()
        embeds = kwargs["inputs_embeds"].clone()
        at = call.at.to(embeds.device)
        embeds[at] = self._features.to(embeds).repeat(call.copies, 1)
        new = {**kwargs, "inputs_embeds": embeds, **self._unpacked(kwargs, embeds)}
        for name, rows in self._others.items():
            new[name] = [layer.to(embeds).repeat(call.copies, 1) for layer in rows]
        if self._others:
            new |= dict.fromkeys(self._adapter.per_token, at)
        return new

    def _unpacked(self, kwargs: Arguments, embeds: Tensor) -> Arguments:
        """Make the arguments without which gaps in the positions would read as packed sequences."""
        cache, positions = contract.cache_of(kwargs), kwargs["position_ids"]
        past = 0 if cache is None else int(cache.get_seq_length())
        new = flash_lengths(self._decoder.config, positions, embeds, past)
        if kwargs.get("attention_mask") is None:
            new["attention_mask"] = embeds.new_ones(len(embeds), past + embeds.shape[1], dtype=torch.long)
        return new

    def _after_decoder(self, decoder: nn.Module, args: tuple[Any, ...], kwargs: Arguments, output: Any) -> None:
        if output is None or self._call is None:
            return
        self._calls.call = None
        cache = contract.cache_of(contract.with_new_names(kwargs))
        cache = getattr(output, contract.CACHE, None) if cache is None else cache
        if cache is not None:
            setattr(cache, _HOLDS, True)

    def _positions(self, inner: Callable[..., Any], inputs_tensor: Tensor, model_kwargs: Arguments) -> Any:
        ids = model_kwargs.get("input_ids", inputs_tensor)
        if not ids.is_floating_point() and not prompt.encodes(model_kwargs) and (ids == self._token).any():
            raise _without_positions()
        return inner(inputs_tensor, model_kwargs)

    def _inputs(self, inner: Callable[..., Any], input_ids: Tensor, *args: Any, **model_kwargs: Any) -> Any:
        made = inner(input_ids, *args, **model_kwargs)  # of EXAONE 4.5 without positions, to count them anew
        ids, positions = made.get("input_ids"), model_kwargs.get("position_ids")
        if made.get("position_ids") is not None or ids is None or positions is None:
            return made
        if getattr(contract.cache_of(model_kwargs), _HOLDS, False) or (ids == self._token).any():
            made["position_ids"] = positions[..., -ids.shape[1] :]
        return made

    def _expand(
        self,
        inner: Callable[..., Any],
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        **model_kwargs: Any,
    ) -> Any:
        if input_ids is None or prompt.encodes(model_kwargs):
            return inner(
                expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **model_kwargs
            )
        # Some families would count placeholders against the grids of their videos, which are not here.
        if expand_size > 1:
            input_ids = input_ids.repeat_interleave(expand_size, 0)
            for name, x in model_kwargs.items():
                if isinstance(x, Tensor):
                    rows = 1 if name == "position_ids" and x.ndim == 3 else 0
                    model_kwargs[name] = x.repeat_interleave(expand_size, rows)
        return input_ids, model_kwargs

    def _prefill(
        self, inner: Callable[..., Any], ids: Tensor, generation_config: Any, model_kwargs: Arguments, **kw: Any
    ) -> Any:
        chunked = generation_config.prefill_chunk_size is not None
        if chunked and not prompt.encodes(model_kwargs) and (ids == self._token).any():
            raise UnsupportedCall(
                "prefill_chunk_size cuts a prompt with an encoded video into pieces; generate without it"
            )
        return inner(ids, generation_config, model_kwargs, **kw)

    def _candidates(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        # Prompt look-up may propose placeholders, which would look like more of the video.
        generator = inner(*args, **kwargs)
        propose = generator.get_candidates

        def get_candidates(input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
            proposed, logits = propose(input_ids, *args, **kwargs)
            added = (proposed[:, input_ids.shape[1] :] == self._token).any(0).nonzero().flatten()
            if len(added):
                end = int(added[0])
                proposed = proposed[:, : input_ids.shape[1] + end]
                logits = None if logits is None else logits[:, :end]
                if (attached := attachment_of(self._body)) is not None:  # which counts them, perhaps before this
                    states = attached.target.states
                    states.generated = replace(states.generated, proposed=end)
            return proposed, logits

        generator.get_candidates = get_candidates
        return generator


def _without_positions() -> UnsupportedCall:
    return UnsupportedCall(
        "an encoded video keeps the positions of the whole one, and without position_ids they would be counted anew; "
        "pass those of encoded.inputs(model, processor, question), continued by one a token"
    )
