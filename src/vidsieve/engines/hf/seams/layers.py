"""Inside the language model: the video tokens are reduced as they enter some of its layers.

A hook on every decoder layer does it, for every family, with no model code copied. At a stage it reduces the hidden
states; from there on each layer gets the positions of the tokens that are left and a mask of its cache's own length,
also while decoding. What a `Pass` knows travels as one more keyword argument from the decoder to its layers, which
every hook takes out: so threads cannot mix passes up, and a layer that is recomputed for its gradient finds its own.
Attention for `PromptAttention` is read in the layer before the stage, through transformers' `AttentionInterface`: its
own queries and keys after their rotation, no attention matrix beyond a few rows of it.
"""

import copy
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_causal_mask

from vidsieve import ops
from vidsieve.engines.hf import contract
from vidsieve.engines.hf.attention import As, kinds, layer_type
from vidsieve.engines.hf.cache import Prefix, Switch, held_mask, layer_bytes, physical_length, remember
from vidsieve.engines.hf.outputs import Rows
from vidsieve.engines.hf.prompt import Columns, Layout
from vidsieve.engines.hf.sequence import Fold, Kept, left_by, moved, reduced_visual
from vidsieve.engines.hf.tracked import Finite, State, Video
from vidsieve.errors import BudgetError, UnsupportedCall
from vidsieve.methods.base import Reducer
from vidsieve.telemetry import flops
from vidsieve.telemetry.timing import StageTimer, timed
from vidsieve.telemetry.trace import CallRecord
from vidsieve.types.tokens import Prompt, VideoTokens

Arguments = dict[str, Any]
CONTEXT = "vidsieve_pass"  # the keyword argument
PACKING = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")


@dataclass(eq=False)
class Pass:
    """One pass through the decoder of a model with stages.

    config: of the decoder.  mask: the logical mask (B, logical length) of all tokens so far, None for all ones.
    start, length: logical, of the cache and of the prompt as it came.  held: tokens in the cache's first layer.
    prefixes: what the cache remembered before.
    Where the sequence just goes on, that is all. For a prompt with videos,
    prompt: as it came.  first: what the decoder's input is of it.  real: tokens in each row of that.
    padded: whether there is any padding, in the prompt or the cache.  asked: for each kind of query, its
    columns in each row, as the sequence is.  stages, share, costs: of the attached `Staged` and of the layers.
    past: tokens that the cache holds in each layer.  timer: of all but the reductions: each video has its own.
    """

    config: Any
    mask: Tensor | None
    start: int
    length: int
    held: int
    prefixes: dict[int, Prefix]
    attached: Switch
    prompt: Layout = Layout.none()
    first: Kept | None = None
    real: tuple[int, ...] = ()
    padded: bool = True
    videos: tuple[Video, ...] = ()
    asked: Mapping[str, dict[int, Columns]] = field(default_factory=dict)
    stages: Mapping[int, Reducer] = field(default_factory=dict)
    costs: tuple[flops.LayerCost, ...] = ()
    share: float | None = None
    past: tuple[int, ...] = ()
    timer: StageTimer = field(default_factory=StageTimer)

    def __post_init__(self) -> None:
        self.states: dict[int, State] = {}
        self._done: set[int] = set()  # the stages that have been, also those that removed nothing
        self.attended: dict[int, dict[int, dict[str, Tensor]]] = {}  # by stage, row and kind of query: (L,)
        self._masks: dict[int, Any] = {}
        self._read_masks: dict[int, Tensor] = {}
        self._orders: dict[int, Tensor] = {}
        self.begins: Prefix | None = None
        self._finite = Finite()
        self._input = [video.at for video in self.videos]  # where the tokens of each are, as they enter the decoder

    def enters(self, first: Kept, folds: Sequence[Fold], begins: Prefix) -> None:
        """The decoder's input is `first` of the prompt, by `folds`, and that is how a cache of it begins."""
        self.first, self.begins = first, begins
        if self.stages:
            self._move(folds, first)
            self._input = [video.at for video in self.videos]

    def _move(self, folds: Sequence[Fold], step: Kept) -> None:
        """Follow what is left of the videos, and what is asked, to their new places."""
        for video, fold in zip(self.videos, folds, strict=True):
            video.at = moved(video.at, fold.row, folds, step, fold)
        self.asked = {
            kind: {row: moved(columns, row, folds, step) for row, columns in rows.items()}
            for kind, rows in self.asked.items()
        }

    def enter(self, layer: int, hidden: Tensor, arguments: Arguments) -> Tensor:
        """What `layer` gets in place of `hidden` (B, L, D); its other `arguments` are adapted."""
        if layer in self.stages and self.videos:
            if layer in self.states:  # recomputed for its gradient
                hidden = self.states[layer].replay(hidden)
            elif layer not in self._done:
                hidden = self._reduce(layer, hidden, arguments)
        state = self.state(layer)
        if state is not None:
            arguments["position_embeddings"] = state.rope
            if arguments.get("position_ids") is not None:
                arguments["position_ids"] = self._order(layer, hidden, contract.cache_of(arguments))
            for name in PACKING:
                arguments.pop(name, None)
        if layer + 1 in self.stages and kinds(self.stages[layer + 1]):
            cache = contract.cache_of(arguments)
            if self.padded:
                self._read_masks[layer + 1] = self._seen(layer, cache, hidden)
        if state is not None or self._run(layer) > 0:
            self._adapt_mask(layer, hidden, arguments, state)
        return hidden

    def _order(self, layer: int, hidden: Tensor, cache: Any) -> Tensor:
        """Position ids (B, M) without gaps: the rotary part is done, and these only tell packed sequences apart."""
        run = self._run(layer)
        if run not in self._orders:
            order = torch.arange(hidden.shape[1], device=hidden.device) + physical_length(cache, layer)
            self._orders[run] = order[None].expand(len(hidden), -1)
        return self._orders[run]

    def state(self, layer: int) -> State | None:
        """The sequence that `layer` sees, None where it is the decoder's input."""
        begins = max((first for first in self.states if first <= layer), default=None)
        return None if begins is None else self.states[begins]

    def _run(self, layer: int) -> int:
        """The first of the layers up to `layer` that share its cache length and its mask."""
        return max((first for first in (*self.prefixes, *self.states) if first <= layer), default=0)

    # --- reducing

    def _reduce(self, layer: int, hidden: Tensor, arguments: Arguments) -> Tensor:
        before = self.state(layer)
        counts = list(before.counts if before else self.real)
        home = self.videos[0].at.device
        reducers = {row: self._affordable(layer, row, counts[row]) for row in {v.clip.row for v in self.videos}}
        folds = []
        for video in self.videos:
            row = video.clip.row
            scores = self.attended.get(layer, {}).get(row)
            attended = {kind: video.at.take(mass) for kind, mass in scores.items()} if scores else None
            tokens = VideoTokens.left_of(video.origin, video.at.take(hidden.detach()[row]).to(home), attended)
            question = self.asked["question"].get(row)
            prompt = None if question is None else Prompt(question.take(hidden.detach()[row]).to(home))
            folds.append(Fold(row, video.at, video.reduce(layer, reducers[row], tokens, prompt), tokens.provenance))
            counts[row] -= len(tokens) - len(folds[-1].reduction)
        self._done.add(layer)
        if layer == max(self.stages):
            self.look()
        if all(len(fold.reduction) == len(fold.at) for fold in folds):
            return hidden
        with self.timer, timed("gather"):
            valid = self._valid(layer)
            step = left_by(folds, None if valid is None else valid.to(home), hidden.shape[1], counts, self.prompt.holes)
            kept = before.kept.then(step) if before else step
            rope = before.rope if before else arguments["position_embeddings"]
            rope = tuple(step.rotations(x) for x in rope)
            state = self.states[layer] = State(kept, step, tuple(folds), tuple(counts), rope)
            self.padded |= len(set(counts)) > 1
            self._move(folds, step)
            return state.replay(hidden)

    def _valid(self, layer: int) -> Tensor | None:
        """What is no padding of the prompt as it enters the stage at `layer`: int64 (B, L); None where nothing is."""
        present = self._present(layer)
        if present is not None:
            return present.valid if self.padded else None
        return self.mask[:, -self.length :].bool().long() if self.padded and self.mask is not None else None

    def _affordable(self, layer: int, row: int, count: int) -> Reducer:
        """The reducer of the stage at `layer`; if it is the last, with the keep that meets the budget of `row`.

        count: tokens of the row that enter the stage.
        """
        reducer = self.stages[layer]
        if self.share is None or layer != max(self.stages):
            return reducer
        budget = self.share * self._full(row)
        spent = sum(self._took(i, row) for i in range(layer))
        mine = [video for video in self.videos if video.clip.row == row]
        text = count - sum(video.after for video in mine)
        left = flops.affordable(self.costs[layer:], budget - spent, self.past[layer:], count) - text
        if left < len(mine):
            least = spent + flops.total(self.costs[layer:], text + len(mine), self.past[layer:])
            of = f" for row {row}" if len(self.real) > 1 else ""
            raise BudgetError(
                f"cost={self.share} cannot be met{of}: all before layer {layer}, where the last stage is, and the text "
                f"alone take {self.share * least / budget:.3f} of the full prefill; raise cost, reduce more before, "
                "or stage earlier"
            )
        own: float = reducer.keep  # type: ignore[attr-defined]  # Staged has seen to it
        keep = left / sum(video.whole.original_count for video in mine)
        return replace(reducer, keep=min(keep, own))  # type: ignore[type-var]

    def _full(self, row: int) -> float:
        return flops.total(self.costs, self.prompt.counts[row], [self.start] * len(self.costs))

    def _took(self, layer: int, row: int) -> float:
        state = self.state(layer)
        return self.costs[layer].flops(state.counts[row] if state else self.real[row], self.past[layer])

    def look(self) -> None:
        """Look for NaN or inf in what the stages saw, now that the last is over."""
        self._finite.look([record.reduction for video in self.videos for record in video.stages])

    def check(self) -> None:
        """Raise `NonFiniteFeatures` if `look` found any."""
        self._finite.check()

    def rows(self) -> Rows:
        """What the last layer's output is of the prompt."""
        last = self.state(len(self.costs))
        steps = (self.first, None if last is None else last.kept)
        return Rows(self.prompt.real, self.prompt.tail, [step for step in steps if step is not None])

    def record(self, cache: Any, output: Rows) -> CallRecord:
        """What became of the pass, now that the decoder has run."""
        rows, layers = range(len(self.real)), range(len(self.costs))
        present = self.length if self.first is None else self.first.index.shape[1]
        last = self.state(len(self.costs))
        return CallRecord(
            tuple(video.record() for video in self.videos),
            (self.length, present if last is None else last.kept.index.shape[1]),
            None if cache is None else self.held + present,
            self.timer,
            () if cache is None else layer_bytes(cache),
            (sum(self._full(row) for row in rows), sum(self._took(i, row) for i in layers for row in rows))
            if self.costs
            else None,
            output,
        )

    def stacked(self, visual: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """`visual` (B, L) of the decoder's input, and what is to be added to those tokens, (V, D), as they are now."""
        if not self.states:
            return visual, rows
        folds = [
            Fold(video.clip.row, at, video.since(1), video.entered)
            for video, at in zip(self.videos, self._input, strict=True)
        ]
        return reduced_visual(rows, visual, folds, self.states[max(self.states)].kept)

    # --- attention

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def observe(self, layer: int, query: Tensor, key: Tensor, scaling: float | None, softcap: float | None) -> None:
        """Note, for the stage at `layer`, the attention that tokens receive in the layer before.

        query: (B, H, L, d) and key: (B, G, past + L, d) of that layer, rotated.
        """
        if layer in self._done:
            return
        home = self.videos[0].at.device
        with torch.no_grad(), self.timer, timed("attention"):
            seen = self._read_masks.get(layer)
            seen = None if seen is None else seen.to(query.device).bool()
            for row in {video.clip.row for video in self.videos}:
                real = None if seen is None else seen[row]
                queries = {kind: self.asked[kind].get(row) for kind in kinds(self.stages[layer])}
                self.attended.setdefault(layer, {})[row] = {
                    kind: ops.received_attention(
                        query[row], key[row], at.at.to(query.device), real, scaling, softcap
                    ).to(home)
                    for kind, at in queries.items()
                    if at is not None
                }

    # --- masks

    def _adapt_mask(self, layer: int, hidden: Tensor, arguments: Arguments, state: State | None) -> None:
        """Give this layer the mask of what it sees, and let the cache remember it."""
        cache, given, run = contract.cache_of(arguments), arguments.get("attention_mask"), self._run(layer)
        reduces = state is not None or self.first is not None
        if layer == run and cache is not None and reduces:
            mask = self._seen(layer, cache, hidden)
            mask = mask[:, : mask.shape[1] - self.prompt.tail]
            settled = self.start + self.length - self.prompt.tail
            remember(cache, Prefix(settled, mask, self.padded, self.attached), layer)
        if layer_type(self.config, layer) == "linear_attention":
            if state is not None:
                arguments["attention_mask"] = state.kept.valid.to(hidden.device) if self.padded else None
            return
        if not reduces and given is None and not self.prefixes[run].ragged:
            return  # what needs no mask in layer 0 needs none here
        if run not in self._masks:
            full = reduces and not self.padded
            self._masks[run] = create_causal_mask(
                config=self.config,
                inputs_embeds=hidden,
                attention_mask=None if full else self._seen(layer, cache, hidden),
                layer_idx=layer,
                **{contract.CACHE: cache},
            )
        arguments["attention_mask"] = self._masks[run]

    def _present(self, layer: int) -> Kept | None:
        """Where the sequence that `layer` sees last changed: the stage's, or the decoder's input; None for neither."""
        state = self.state(layer)
        return self.first if state is None else state.kept

    def _seen(self, layer: int, cache: Any, hidden: Tensor) -> Tensor:
        """The mask (B, past + L) of all that this layer's cache holds after the pass over `hidden` (B, L, D): int64."""
        past, present = physical_length(cache, layer), self._present(layer)
        if present is not None and not past:
            return present.valid
        prefix = next((self.prefixes[first] for first in sorted(self.prefixes, reverse=True) if first <= layer), None)
        mask = held_mask(prefix, self.mask, past + hidden.shape[1], len(hidden), hidden.device)
        if present is None:
            return mask.long()
        return torch.cat([mask[:, :past].to(present.valid), present.valid], 1).long()


class Layers:
    """Hooks on the layers of `decoder`, for as long as `undo` is open."""

    def __init__(self, decoder: Any, stages: Mapping[int, Reducer], undo: ExitStack) -> None:
        self.config = decoder.config
        for i in range(min(stages), len(decoder.layers)):
            if layer_type(self.config, i) not in ("full_attention", "linear_attention"):
                raise UnsupportedCall(
                    f"layer {i} has {layer_type(self.config, i)}, and what a reduced sequence should see of its window "
                    "is not defined; stages serve full and linear attention only. Reduce before the language model"
                )
        for i, layer in enumerate(decoder.layers):
            undo.callback(layer.register_forward_pre_hook(partial(self._before_layer, i), with_kwargs=True).remove)
        self._read_by: dict[int, int] = {}  # the layer whose attention is read: the stage it is read for
        for k, reducer in stages.items():
            if kinds(reducer):
                self._read(decoder.layers[k - 1], k, undo)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # what it does depends on the data
    def _before_layer(self, i: int, layer: nn.Module, args: tuple[Any, ...], kwargs: Arguments) -> Any:
        current: Pass | None = kwargs.pop(CONTEXT, None)
        if current is None:
            return None
        hidden = current.enter(i, args[0], kwargs)
        if current.videos and i in self._read_by:
            kwargs[CONTEXT] = current  # on to its attention, which takes it out
        return (hidden, *args[1:]), kwargs

    def _read(self, layer: Any, k: int, undo: ExitStack) -> None:
        """Let the attention of `layer` tell the pass what it sees, for the stage at `k`."""
        attention = getattr(layer, "self_attn", None)
        if attention is None:
            raise UnsupportedCall(
                f"PromptAttention at layer {k} reads the attention of layer {k - 1}, which is linear and has none; "
                "stage after a layer of full attention"
            )
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface  # loaded with any model

        plain = attention.config
        eager = sys.modules[type(attention).__module__].eager_attention_forward

        def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
            current: Pass | None = kwargs.pop(CONTEXT, None)
            if current is not None:
                current.observe(k, query, key, kwargs.get("scaling"), kwargs.get("softcap"))
            inner = ALL_ATTENTION_FUNCTIONS.get_interface(plain._attn_implementation, eager)
            return inner(As(module, plain), query, key, value, mask, **kwargs)

        name = f"vidsieve-{id(attend)}"
        AttentionInterface.register(name, attend)
        undo.callback(AttentionInterface._global_mapping.pop, name)
        undo.callback(setattr, attention, "config", plain)
        attention.config = copy.copy(plain)
        attention.config._attn_implementation_internal = name
        self._read_by[k - 1] = k
