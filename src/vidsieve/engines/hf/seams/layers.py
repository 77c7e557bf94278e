"""Reduce videos inside the language model, as they enter some of its layers.

A hook on every decoder layer does it, for every family, with no model code copied. At a stage it reduces the hidden
states. From there on each layer gets the positions of the remaining tokens and a mask of the length of its cache, also
while decoding. The state of the sequence is passed as an additional keyword argument from the decoder to its layers,
and removed by their hooks. So threads cannot mix up calls, and a layer that is recomputed for its gradient gets the
same state.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vidsieve.engines.hf import contract, costs
from vidsieve.engines.hf.forward import KEY, SequenceState
from vidsieve.engines.hf.intercept import Interceptions
from vidsieve.engines.hf.seams.attention import AttentionSeam, kinds
from vidsieve.engines.hf.seams.masks import adapt, cache_mask, dense_position_ids, layer_type
from vidsieve.engines.hf.sequence import VideoReduction, reduced_visual, select_remaining
from vidsieve.engines.hf.target import Target
from vidsieve.engines.hf.tracked import SequenceUpdate
from vidsieve.errors import UnsupportedCall
from vidsieve.methods.base import Reducer
from vidsieve.telemetry.timing import timed
from vidsieve.types.tokens import Prompt, VideoTokens

Arguments = dict[str, Any]
PACKING = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")


class LayersSeam:
    """Hooks on the layers of the decoder, which reduce at `stages`. Raises `UnsupportedCall` for sliding windows.

    share: of the prefill FLOPs of the unreduced prompt, which the last stage meets; None to use its own keep.
    asks_last: whether a stage reads the attention of the prompt's last token.
    """

    def __init__(
        self, target: Target, stages: Mapping[int, Reducer], share: float | None, hooks: Interceptions
    ) -> None:
        self._config, self._states = target.decoder.config, target.states
        self._costs, self._share, self._attach_state = target.costs, share, target.attach_state
        self._stages, self._last = stages, max(stages)
        self.asks_last = any("last" in kinds(reducer) for reducer in stages.values())
        layers = target.decoder.layers
        for i in range(min(stages), len(layers)):
            if layer_type(self._config, i) not in ("full_attention", "linear_attention"):
                raise UnsupportedCall(
                    f"layer {i} has {layer_type(self._config, i)}, and what a reduced sequence should see of its "
                    "window is not defined; stages serve full and linear attention only. Reduce before the language "
                    "model"
                )
        for i, layer in enumerate(layers):
            hooks.before(layer, partial(self._before_layer, i))
        self._read_by = AttentionSeam(target.decoder, stages, hooks).read_by
        hooks.wrap(target.decoder, "_deepstack_process", self._deepstack)

    def enter(self, sequence: SequenceState, reductions: Sequence[VideoReduction]) -> None:
        """Move videos and queries to their columns in the decoder's input, which `reductions` shortened."""
        if sequence.first is not None:
            sequence.move(reductions, sequence.first)
        sequence.entered = tuple(video.at for video in sequence.videos)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # what it does depends on the data
    def _before_layer(self, i: int, layer: nn.Module, args: tuple[Any, ...], kwargs: Arguments) -> Any:
        sequence: SequenceState | None = kwargs.pop(KEY, None)
        if sequence is None:
            return None
        hidden = self._adapt(sequence, i, args[0], kwargs)
        if sequence.videos and i in self._read_by:
            kwargs[KEY] = sequence  # for its attention, which removes it
        return (hidden, *args[1:]), kwargs

    def _adapt(self, sequence: SequenceState, layer: int, hidden: Tensor, arguments: Arguments) -> Tensor:
        """Reduce `hidden` (B, L, D) if `layer` has a stage, and adapt the other `arguments`."""
        if layer in self._stages and sequence.videos:
            if layer in sequence.updates:  # recomputed for its gradient
                hidden = sequence.updates[layer].replay(hidden)
            elif layer not in sequence.done:
                hidden = self._reduce(sequence, layer, hidden, arguments)
        update = sequence.update_at(layer)
        if update is not None:
            arguments["position_embeddings"] = update.rope
            if arguments.get("position_ids") is not None:
                arguments["position_ids"] = dense_position_ids(sequence, layer, hidden, contract.cache_of(arguments))
            for name in PACKING:
                arguments.pop(name, None)
        if layer in self._read_by and sequence.videos and sequence.padded:
            cache = contract.cache_of(arguments)
            sequence.read_masks[self._read_by[layer]] = cache_mask(sequence, layer, cache, hidden)
        if update is not None or sequence.run(layer) > 0:
            adapt(sequence, update, self._config, self._attach_state, layer, hidden, arguments)
        return hidden

    def _reduce(self, sequence: SequenceState, layer: int, hidden: Tensor, arguments: Arguments) -> Tensor:
        before = sequence.update_at(layer)
        counts = list(before.counts if before else sequence.counts)
        home = sequence.videos[0].at.device
        rows = {video.span.row for video in sequence.videos}
        reducers = {row: self._affordable(sequence, layer, row, counts[row]) for row in rows}
        reductions = []
        for video in sequence.videos:
            row = video.span.row
            scores = sequence.attended.get(layer, {}).get(row)
            attended = {kind: video.at.take(mass) for kind, mass in scores.items()} if scores else None
            tokens = VideoTokens.left_of(video.origin, video.at.take(hidden.detach()[row]).to(home), attended)
            question = sequence.queries["question"].get(row)
            prompt = None if question is None else Prompt(question.take(hidden.detach()[row]).to(home))
            reductions.append(
                VideoReduction(row, video.at, video.reduce(layer, reducers[row], tokens, prompt), tokens.provenance)
            )
            counts[row] -= len(tokens) - len(reductions[-1].reduction)
        sequence.done.add(layer)
        if layer == self._last:
            sequence.check_finite()
        if all(len(one.reduction) == len(one.at) for one in reductions):
            return hidden
        with sequence.timer, timed("gather"):
            valid = sequence.valid(layer)
            valid = None if valid is None else valid.to(home)
            step = select_remaining(reductions, valid, hidden.shape[1], counts, sequence.prompt.holes)
            kept = before.kept.then(step) if before else step
            rope = before.rope if before else arguments["position_embeddings"]
            rope = tuple(step.rotations(x) for x in rope)
            update = sequence.updates[layer] = SequenceUpdate(kept, step, tuple(reductions), tuple(counts), rope)
            sequence.padded |= len(set(counts)) > 1
            sequence.move(reductions, step)
            return update.replay(hidden)

    def _affordable(self, sequence: SequenceState, layer: int, row: int, count: int) -> Reducer:
        """Get the reducer of the stage at `layer`, which `count` tokens of `row` enter; the last meets the share."""
        reducer = self._stages[layer]
        if self._share is None or layer != self._last:
            return reducer
        return costs.affordable(reducer, self._share, self._costs, sequence, layer, row, count)

    def _deepstack(self, inner: Callable[..., Any], hidden: Tensor, visual: Tensor, rows: Tensor) -> Any:
        # Qwen3-VL adds features to the visual tokens after its first layers, by the mask of the decoder's input.
        state = self._states.current
        if state is not None and state.sequence is not None and state.sequence.last is not None:
            visual, rows = _stacked(state.sequence, state.sequence.last, visual, rows)
        return inner(hidden, visual, rows)


def _stacked(sequence: SequenceState, last: SequenceUpdate, visual: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Reduce `visual` (B, L) of the decoder's input, and `rows` (V, D) to be added there, to the current sequence."""
    reductions = [
        VideoReduction(video.span.row, at, video.reduction_since(1), video.entered)
        for video, at in zip(sequence.videos, sequence.entered, strict=True)
    ]
    return reduced_visual(rows, visual, reductions, last.kept)
