"""The state of a forward pass: made in the first hook of a call, passed from seam to seam, deleted after the last."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import partial
from typing import Any

from torch import Tensor

from vidsieve.engines.hf.cache import AttachState, ReducedPrefix
from vidsieve.engines.hf.columns import Columns
from vidsieve.engines.hf.intercept import OfOneModel
from vidsieve.engines.hf.outputs import Rows
from vidsieve.engines.hf.prompt import HostInputs, PromptLayout
from vidsieve.engines.hf.sequence import SequenceSelection, VideoReduction, moved
from vidsieve.engines.hf.tracked import NonFiniteCheck, SequenceUpdate, TrackedVideo
from vidsieve.telemetry.timing import StageTimer

KEY = "vidsieve_state"  # the keyword argument in which the decoder hands its layers the state of the sequence


class Level(IntEnum):
    """The hooked modules, each of which calls the next."""

    MODEL = 0
    BODY = 1
    DECODER = 2


@dataclass(frozen=True, eq=False)
class Generated:
    """What `generate` passes on to its calls of the model.

    described: the arguments that describe the videos of encoded features.  encoded: the tokens of each encoded video or
    frame.  proposed: how many candidate tokens the next call verifies (assisted decoding).  masks: makes those of the
    next call, for a static cache, where the decoder does not make its own.
    """

    described: Mapping[str, Any] = field(default_factory=dict)
    encoded: tuple[int, ...] = ()
    proposed: int = 0
    masks: "partial[Any] | None" = None


_NOTHING = Generated()


@dataclass(eq=False)
class SequenceState:
    """The sequence of one call, as the decoder processes it.

    mask: the logical mask (B, logical length) of all tokens so far, None for all ones.
    start, length: logical, of the cache and of the new tokens.  held: tokens in the first layer of the cache.
    prefixes: those that the cache had before the call.
    The other fields are set for a prompt with videos.
    past: tokens that the cache holds in each layer.  prompt: unreduced.  videos: as reduced so far.  queries: for each
    kind of query, its columns in each row of the current sequence.  first: the decoder's input among the tokens of the
    prompt, None for all of them.  begins: the prefix of a cache of that input.  counts: tokens in each row of the
    input.  padded: whether the prompt or the cache has padding.  entered: the columns of each video in the input.
    timer: of everything but the reductions; each video has its own.
    By layer, which is the first one that the value holds for:
    updates: the sequence after a stage.  done: the stages that have run, also those that removed nothing.
    attended: by row and kind of query, the attention (L,) that the layer before a stage puts on each token.
    read_masks: int64 (B, L), the tokens visible to that attention.  masks, position_ids: arguments of the layers, made
    once for each run of layers.
    """

    mask: Tensor | None
    start: int
    length: int
    held: int
    prefixes: dict[int, ReducedPrefix]
    past: tuple[int, ...] = ()
    prompt: PromptLayout = PromptLayout.none()
    videos: tuple[TrackedVideo, ...] = ()
    queries: Mapping[str, dict[int, Columns]] = field(default_factory=dict)
    first: SequenceSelection | None = None
    begins: ReducedPrefix | None = None
    counts: tuple[int, ...] = ()
    padded: bool = True
    entered: tuple[Columns, ...] = ()
    timer: StageTimer = field(default_factory=StageTimer)
    updates: dict[int, SequenceUpdate] = field(default_factory=dict, init=False)
    done: set[int] = field(default_factory=set, init=False)
    attended: dict[int, dict[int, dict[str, Tensor]]] = field(default_factory=dict, init=False)
    read_masks: dict[int, Tensor] = field(default_factory=dict, init=False)
    masks: dict[int, Any] = field(default_factory=dict, init=False)
    position_ids: dict[int, Tensor] = field(default_factory=dict, init=False)
    nonfinite_check: NonFiniteCheck = field(default_factory=NonFiniteCheck, init=False)

    def move(self, reductions: Sequence[VideoReduction], step: SequenceSelection) -> None:
        """Move the columns of videos and queries to their places in the reduced sequence."""
        for video, one in zip(self.videos, reductions, strict=True):
            video.at = moved(video.at, one.row, reductions, step, one)
        self.queries = {
            kind: {row: moved(columns, row, reductions, step) for row, columns in rows.items()}
            for kind, rows in self.queries.items()
        }

    def update_at(self, layer: int) -> SequenceUpdate | None:
        """Get the sequence that `layer` processes, None if it is the decoder's input."""
        begins = max((first for first in self.updates if first <= layer), default=None)
        return None if begins is None else self.updates[begins]

    @property
    def last(self) -> SequenceUpdate | None:
        """The sequence that the last layer processes, None if it is the decoder's input."""
        return self.updates[max(self.updates)] if self.updates else None

    def present(self, layer: int) -> SequenceSelection | None:
        """Get the last selection before `layer`: a stage's, else that of the decoder's input; None for neither."""
        update = self.update_at(layer)
        return self.first if update is None else update.kept

    def run(self, layer: int) -> int:
        """Find the first of the layers up to `layer` that share its cache length and its mask."""
        return max((first for first in (*self.prefixes, *self.updates) if first <= layer), default=0)

    def valid(self, layer: int) -> Tensor | None:
        """Get 0 on padding, else 1, of what enters the stage at `layer`: int64 (B, L); None without padding."""
        present = self.present(layer)
        if present is not None:
            return present.valid if self.padded else None
        return self.mask[:, -self.length :].bool().long() if self.padded and self.mask is not None else None

    def reduced_prefix(self, mask: Tensor, has_padding: bool, attached: AttachState) -> ReducedPrefix:
        """Make the prefix of a cache that this sequence is added to. It ends with the last video.

        mask: int64 (B, past + M), of all tokens that the cache then holds.
        """
        suffix = self.prompt.stable_suffix
        logical = self.start + self.length - suffix
        return ReducedPrefix(logical, mask[:, : mask.shape[1] - suffix], has_padding, attached)

    def check_finite(self) -> None:
        """Start to look for NaN or inf in all reduced features; `nonfinite_check.check()` raises."""
        self.nonfinite_check.start([record.reduction for video in self.videos for record in video.stages])

    def rows(self) -> Rows:
        """Get the rows of the last layer's output."""
        steps = (self.first, None if self.last is None else self.last.kept)
        return Rows(self.prompt.not_padding, self.prompt.stable_suffix, [step for step in steps if step is not None])


@dataclass(eq=False)
class ForwardState:
    """The state of one call. Each seam reads what earlier seams of the call set.

    outermost: the module that was called.  innermost: the innermost module called so far.  generated: by `generate`.
    Set for the model, answer: bool (B, L), true on the training targets among `labels`; None without labels.
    logits_to_keep: None for all.
    Set for its body, host_inputs: says where videos are, until the decoder reads it.  copies: rows that share a video.
    deferred: its arguments, until the masks of the decoder are made of them.  making: while it is called for these.
    Set for the decoder, sequence: while it runs on a prompt with videos.
    Set for the output, rows: which columns of the prompt they belong to.  spread: whether every column has one.
    """

    outermost: Level
    innermost: Level
    generated: Generated
    answer: Tensor | None = None
    logits_to_keep: Any = None
    host_inputs: HostInputs | None = None
    copies: int = 1
    deferred: dict[str, Any] | None = None
    making: bool = False
    sequence: SequenceState | None = None
    rows: Rows | None = None
    spread: bool = False


class ForwardStates(OfOneModel):
    """Makes, holds and deletes the state of the current call of each thread.

    An interrupt (KeyboardInterrupt) runs no hook; the next call of the thread drops the state that it leaves.
    """

    def __init__(self) -> None:
        self._threads = threading.local()

    @property
    def current(self) -> ForwardState | None:
        """The state of this thread's current call, None outside of a call."""
        state: ForwardState | None = self._threads.__dict__.get("state")
        return state

    def enter(self, level: Level) -> ForwardState:
        """Get the state of a call that reaches `level`; makes it if `level` is what was called."""
        here = self._threads.__dict__
        state: ForwardState | None = here.get("state")
        if state is None or state.innermost >= level:
            generated = self.generated
            if generated.proposed or generated.masks:
                self.generated = replace(generated, proposed=0, masks=None)  # they belong to one call
            state = here["state"] = ForwardState(level, level, generated)
        state.innermost = level
        return state

    def leave(self, level: Level) -> ForwardState | None:
        """Get the state of a call that leaves `level`; deletes it if `level` is what was called."""
        here = self._threads.__dict__
        state: ForwardState | None = here.get("state")
        if state is not None and state.outermost == level:
            del here["state"]
        return state

    @property
    def generated(self) -> Generated:
        """What the current generation of this thread passes on to its calls."""
        generated: Generated = self._threads.__dict__.get("generated", _NOTHING)
        return generated

    @generated.setter
    def generated(self, generated: Generated) -> None:
        if generated == _NOTHING:
            self._threads.__dict__.pop("generated", None)
        else:
            self._threads.__dict__["generated"] = generated

    def clear(self) -> None:
        """Delete the states of all threads."""
        self._threads = threading.local()
