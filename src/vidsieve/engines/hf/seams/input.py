"""Reduce videos before the language model, between the vision tower and the decoder.

A hook on the body copies the token ids to the host. A hook on the decoder gets embeddings, positions and mask, finds
the videos, their frames and the question (prompt.py), reduces each video, and gathers the kept tokens (sequence.py).
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from vidsieve.engines.graph import ReductionGraph
from vidsieve.engines.hf import contract, costs, prompt
from vidsieve.engines.hf.cache import (
    check_length,
    continued,
    held_mask,
    layer_bytes,
    physical_length,
    prefix_of,
    prefixes_of,
    refuse_overread,
    remember,
    restore,
)
from vidsieve.engines.hf.columns import Columns
from vidsieve.engines.hf.forward import KEY, ForwardState, Generated, Level, SequenceState
from vidsieve.engines.hf.intercept import Interceptions
from vidsieve.engines.hf.outputs import Rows
from vidsieve.engines.hf.replayed import StoredVideo, replayed_on
from vidsieve.engines.hf.seams.body_masks import BodyMasks, end_body
from vidsieve.engines.hf.seams.layers import PACKING, LayersSeam
from vidsieve.engines.hf.seams.output import OutputSeam
from vidsieve.engines.hf.sequence import VideoReduction, reduce_arguments, select_remaining
from vidsieve.engines.hf.target import Target
from vidsieve.engines.hf.tracked import TrackedVideo
from vidsieve.errors import UnsupportedCall
from vidsieve.telemetry.timing import StageTimer, timed
from vidsieve.telemetry.trace import CallRecord, Trace
from vidsieve.types.tokens import Prompt, VideoTokens

Arguments = dict[str, Any]


class InputSeam:
    """Hooks on the body and the decoder of `target`, which find the videos of a call and reduce them.

    replay: the reducer before the language model, None without one.  layers: the stages inside it, None without any.
    """

    def __init__(
        self,
        target: Target,
        replay: ReductionGraph | None,
        layers: LayersSeam | None,
        output: OutputSeam,
        trace: Trace,
        hooks: Interceptions,
    ) -> None:
        self._target, self._replay, self._layers, self._output, self._trace = target, replay, layers, output, trace
        self._adapter, self._states, self._marks = target.adapter, target.states, prompt.marks_of(target.model.config)
        kinds = target.adapter.mask_kinds
        self._body_masks = None if kinds is None else BodyMasks(target, kinds)
        hooks.before(target.body, self._before_body)
        hooks.wrap(target.body, "get_placeholder_mask", self._placeholder_mask)
        hooks.before(target.decoder, self._before_decoder)
        hooks.after(target.decoder, self.after_decoder)

    def _before_body(self, body: nn.Module, args: tuple[Any, ...], kwargs: Arguments) -> Any:
        state, kwargs = self._states.enter(Level.BODY), contract.by_name(body, args, kwargs)
        self._look(state, body, kwargs)
        return None if self._body_masks is None else ((), self._body_masks.before_body(state, kwargs))

    def _look(self, state: ForwardState, body: nn.Module, kwargs: Arguments) -> None:
        """Copy to the host what says where the videos of a call are."""
        ids = kwargs.get("input_ids")  # (B, L)
        given = ids if ids is not None else kwargs.get("inputs_embeds")
        if given is None or given.shape[1] == 1:
            return
        shows = prompt.shows(self._adapter, kwargs)
        if not shows and ids is not None:
            return
        answer = state.answer
        if answer is not None and answer.shape != given.shape[:2]:
            answer = None  # of a model whose labels are no tokens of its prompt
        copies = prompt.copies_of(state.generated.encoded, kwargs)
        if state.generated.encoded and not copies:  # a call of its own, of which a generation around it knows nothing
            state.generated = Generated(proposed=state.generated.proposed)
        host_inputs = self._read(body, ids, kwargs, answer, state.generated)
        if shows:
            state.host_inputs, state.copies = host_inputs, copies or 1

    def _read(
        self, body: Any, ids: Tensor | None, kwargs: Arguments, answer: Tensor | None, generated: Generated
    ) -> prompt.HostInputs:
        """Copy to the host what says where the videos are, while the device is busy."""
        placeholder = None
        if ids is None:
            placeholder = prompt.placeholder_in(kwargs["inputs_embeds"], body, self._target.token)
        described, proposed = generated.described, generated.proposed
        host_inputs = prompt.read(self._adapter, ids, placeholder, kwargs, described, answer, proposed)
        if host_inputs.placeholder is not None and not host_inputs.placeholder.any():
            warnings.warn(
                "inputs_embeds without a video placeholder: if video features were already merged into them, "
                "nothing tells which they are, and none is dropped; pass input_ids and pixels instead",
                stacklevel=2,
            )
        return host_inputs

    def _placeholder_mask(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Count placeholders on the host: transformers asks the device, and so waits for the whole vision tower."""
        state, features = self._states.current, kwargs.get("video_features")
        host_inputs = None if state is None else state.host_inputs
        if features is not None and host_inputs is not None and host_inputs.ids is not None:
            embeds = kwargs["inputs_embeds"] if "inputs_embeds" in kwargs else args[1]
            if int((host_inputs.ids == self._target.token).sum()) * embeds.shape[-1] == features.numel():
                kwargs = {**kwargs, "video_features": None}
        return inner(*args, **kwargs)

    def _find(
        self, host_inputs: prompt.HostInputs, copies: int, stored: Sequence[StoredVideo] = ()
    ) -> prompt.PromptLayout:
        model = self._target.model
        end = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
        ends = frozenset(end if isinstance(end, list) else () if end is None else (end,))
        return prompt.find(self._adapter, model.config, host_inputs, copies, ends, self._marks, stored)

    def _before_decoder(self, decoder: nn.Module, args: tuple[Any, ...], kwargs: Arguments) -> Any:
        masks = self._body_masks
        if masks is not None:
            end_body(self._states.current, kwargs)
        kwargs, state = contract.with_new_names(kwargs), self._states.enter(Level.DECODER)
        if masks is None:
            return args, self._decoder_arguments(state, kwargs)
        return args, masks.make(state, self._decoder_arguments(state, masks.restore(state, kwargs)))

    def _decoder_arguments(self, state: ForwardState, kwargs: Arguments) -> Arguments:
        """Reduce the arguments of the decoder, if they are of a prompt with video."""
        embeds = kwargs["inputs_embeds"]  # (B, L, D)
        if embeds.shape[1] > 1:
            replayed = replayed_on(self._target.body)
            if replayed is not None and replayed.given is not None:
                with StageTimer(embeds.device) as timer:
                    layout = self._find_stored(state, replayed.given, replayed.videos)
                    return replayed.write(self._reduce(state, layout, kwargs, timer))
            host_inputs, state.host_inputs = state.host_inputs, None
            found = None if host_inputs is None else self._find(host_inputs, state.copies)
            if found is not None and found.spans and found.not_padding.shape == embeds.shape[:2]:
                with StageTimer(embeds.device) as timer:
                    return self._reduce(state, found, kwargs, timer)
        new = continued(kwargs)
        if self._layers is not None and any(layer > 0 for layer in prefixes_of(contract.cache_of(kwargs))):
            new = {**new, KEY: _sequence(kwargs)}
        return new

    def _find_stored(
        self, state: ForwardState, given: Mapping[str, Any], videos: Sequence[StoredVideo]
    ) -> prompt.PromptLayout:
        """Find encoded videos in a call whose body was `given` these arguments."""
        ids, answer = given["input_ids"], state.answer
        if answer is not None and answer.shape != ids.shape:
            answer = None
        proposed = state.generated.proposed
        host_inputs = prompt.read(self._adapter, ids, None, given, {}, answer, proposed, stored=True)
        return self._find(host_inputs, 1, videos)

    def _reduce(
        self, state: ForwardState, found: prompt.PromptLayout, kwargs: Arguments, timer: StageTimer
    ) -> Arguments:
        """Reduce the decoder's arguments, and store on the cache which tokens it lacks."""
        embeds, cache, layers = kwargs["inputs_embeds"], contract.cache_of(kwargs), self._layers
        queries = {
            kind: {row: found.columns(at, embeds.device) for row, at in enumerate(rows) if len(at)}
            for kind, rows in (
                ("question", found.questions),
                ("last", found.lasts if layers is not None and layers.asks_last else ()),
            )
        }
        videos, finalize = self._videos(found, embeds, queries["question"])
        # The device is busy now, so checks that need only the host are made here.
        _refuse(kwargs, inside=layers is not None)
        sequence = _sequence(kwargs, prompt=found, videos=videos, queries=queries, timer=timer)
        mask, past = sequence.mask, sequence.held
        if mask is not None:
            check_length(mask, sequence.start + sequence.length)
        before = None  # (B, past)
        if past:
            held = held_mask(prefix_of(cache), mask, past, len(embeds), embeds.device)
            before = held.to(embeds.device, torch.long)
        each = layers is not None and past
        sequence.past = tuple(physical_length(cache, i) if each else past for i in range(len(self._target.costs)))

        finalize()
        counts, reductions = list(found.counts), []
        for video in videos:
            counts[video.span.row] -= len(video.at) - video.after
        if counts != list(found.counts):
            refuse_overread(cache)
            with timed("gather"):
                reductions = [VideoReduction(v.span.row, v.at, v.stages[0].reduction) for v in videos]
                valid = found.valid_on(embeds.device)
                sequence.first = select_remaining(reductions, valid, sequence.length, counts, found.holes)
                config, first = self._target.decoder.config, sequence.first
                kwargs = reduce_arguments(self._adapter, config, kwargs, reductions, first, before, sequence.start)
        state.sequence, sequence.counts = sequence, tuple(counts)
        uneven = len(set(counts)) > 1 or any(found.holes) or (before is not None and not before.all())
        sequence.padded = uneven or not found.unpadded
        if sequence.first is None:
            kwargs = continued(kwargs)
        else:
            sequence.begins = sequence.reduced_prefix(kwargs["attention_mask"], uneven, self._target.attach_state)
            if cache is not None:
                remember(cache, sequence.begins)
                if not sequence.padded:  # transformers would ask the device, and so wait for the whole vision tower
                    kwargs["attention_mask"] = None
        if layers is None:
            sequence.check_finite()
            return _all_rows(kwargs, sequence.rows())
        layers.enter(sequence, reductions)
        return {**kwargs, KEY: sequence}

    def _videos(
        self, found: prompt.PromptLayout, embeds: Tensor, questions: dict[int, Columns]
    ) -> tuple[tuple[TrackedVideo, ...], Callable[[], None]]:
        """Collect the videos of the call, and start to reduce them if there is a reducer before the model.

        Returned with a function that waits for the reductions.
        """
        embeds = embeds.detach()
        videos = []
        for span in found.spans:
            at = found.columns(span.at, embeds.device)
            if span.stored is not None:
                videos.append(TrackedVideo.stored(span, span.stored, at))
                continue
            tokens = VideoTokens(at.take(embeds[span.row]), span.frames, span.grid)
            videos.append(TrackedVideo(span, tokens, at))
        if self._replay is None:
            return tuple(videos), lambda: None
        prompts = {row: Prompt(columns.take(embeds[row])) for row, columns in questions.items()}
        finalize = TrackedVideo.reduce_each(videos, self._replay, [prompts.get(span.row) for span in found.spans])
        return tuple(videos), finalize

    def after_decoder(self, decoder: nn.Module, args: tuple[Any, ...], kwargs: Arguments, output: Any) -> None:
        """Record a call with videos; undo the changes of one that failed."""
        if self._states.current is not None and self._states.current.making:
            return
        state = self._states.leave(Level.DECODER)
        if state is None or state.sequence is None:
            return
        sequence, state.sequence = state.sequence, None
        cache = contract.cache_of(kwargs)
        with ExitStack() as failed:
            failed.callback(restore, cache, sequence.prefixes, sequence.past)
            if output is None:
                return
            rows = sequence.rows()
            self._output.check(state, rows)
            if cache is None:
                cache = getattr(output, contract.CACHE, None)  # the decoder's own
                if cache is not None and sequence.begins is not None:
                    remember(cache, sequence.begins)
            record = self._record(sequence, cache, rows)
            sequence.nonfinite_check.check()
            failed.pop_all()
        state.rows = rows
        self._trace.add(record)

    def _record(self, sequence: SequenceState, cache: Any, rows: Rows) -> CallRecord:
        """Make the record of the call after the decoder has run."""
        present = sequence.length if sequence.first is None else sequence.first.index.shape[1]
        last = sequence.last
        return CallRecord(
            tuple(video.record() for video in sequence.videos),
            (sequence.length, present if last is None else last.kept.index.shape[1]),
            None if cache is None else sequence.held + present,
            sequence.timer,
            () if cache is None else layer_bytes(cache),
            costs.totals(self._target.costs, sequence),
            rows,
        )


def _refuse(kwargs: Arguments, inside: bool) -> None:
    """Raise `UnsupportedCall` for arguments of the decoder that cannot be reduced.

    inside: whether stages act inside it.
    """
    mask = kwargs.get("attention_mask")
    if mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 2):
        raise UnsupportedCall("a prompt with video needs a 2D attention_mask (B, L), no custom one can be reduced")
    if packing := [name for name in (*PACKING, "seq_idx") if kwargs.get(name) is not None]:
        raise UnsupportedCall(
            f"{', '.join(packing)} say where packed samples are in a row as it was; "
            "pass the samples of a prompt with video as rows, padded, or detach"
        )
    if inside and getattr(contract.cache_of(kwargs), "is_compileable", False):
        raise UnsupportedCall(
            "a static cache gives every layer the same room, and stages inside the model leave every layer another "
            "length; use a dynamic cache (the default), or reduce before the language model"
        )


def _all_rows(kwargs: Arguments, rows: Rows) -> Arguments:
    """Let a decoder that is told how many of the last rows are asked for compute all, if they are not its own last."""
    asked = kwargs.get("logits_to_keep")
    if asked is None or not rows.steps or rows.is_at_the_end(asked):
        return kwargs
    return {**kwargs, "logits_to_keep": 0}


def _sequence(kwargs: Arguments, **more: Any) -> SequenceState:
    """Make the sequence of a call of the decoder with these arguments. Raises `UnsupportedCall` for a static cache."""
    mask, cache = kwargs.get("attention_mask"), contract.cache_of(kwargs)
    if mask is not None and mask.ndim != 2:
        raise UnsupportedCall(
            "a static cache has its masks made before the call, for layers of one length; inside the model each "
            "stage shortens the layers after it, so use a dynamic cache (the default)"
        )
    prefix, held = prefix_of(cache), physical_length(cache)
    start = held + (prefix.removed if prefix else 0)
    return SequenceState(mask, start, kwargs["inputs_embeds"].shape[1], held, dict(prefixes_of(cache)), **more)
