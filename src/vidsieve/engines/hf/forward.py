"""The state of a forward pass: born in the first hook of a call, handed from seam to seam, gone after the last."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

from torch import Tensor

from vidsieve.engines.hf.cache import AttachState, ReducedPrefix
from vidsieve.engines.hf.columns import Columns
from vidsieve.engines.hf.outputs import Rows
from vidsieve.engines.hf.prompt import HostInputs, PromptLayout
from vidsieve.engines.hf.sequence import SequenceSelection, VideoReduction, moved
from vidsieve.engines.hf.tracked import Finite, SequenceUpdate, TrackedVideo
from vidsieve.errors import UnsupportedCall
from vidsieve.telemetry.timing import StageTimer

KEY = "vidsieve_state"  # the keyword argument in which the decoder hands its layers the state of the sequence


class Level(IntEnum):
    """The modules that are hooked: each calls the next."""

    MODEL = 0
    BODY = 1
    DECODER = 2


@dataclass(frozen=True, eq=False)
class Generated:
    """What `generate` knows of the calls to come.

    described: what says where the encoded videos are.  encoded: the tokens of each.
    proposed: how many candidate tokens the next call is to judge.
    """

    described: Mapping[str, Any] = field(default_factory=dict)
    encoded: tuple[int, ...] = ()
    proposed: int = 0


_NOTHING = Generated()


@dataclass(eq=False)
class SequenceState:
    """The sequence of one call on its way through the decoder.

    mask: the logical mask (B, logical length) of all tokens so far, None for all ones.
    start, length: logical, of the cache and of what is added.  held: tokens in the cache's first layer.
    prefixes: what the cache remembered before.
    Where the sequence just goes on, that is all. For a prompt with videos,
    past: tokens that the cache holds in each layer.  prompt: as it came.  videos: as they shrink.  queries: for each
    kind of query, its columns in each row, as the sequence is.  first: what the decoder's input is of the prompt, None
    for all of it.  begins: how a cache of it begins.  counts: tokens in each row of the input.  padded: whether there
    is any padding, in the prompt or the cache.  entered: the columns of each video in the input.  timer: of all but
    the reductions: each video has its own.
    Of its layers, each by the first layer it holds for,
    updates: the sequence from a stage on.  done: the stages that have been, also those that removed nothing.
    attended: by row and kind of query, what a stage is told of the attention in the layer before, (L,).
    read_masks: int64 (B, L), what that attention sees.  masks, orders: what layers are given, made once a run of them.
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
    orders: dict[int, Tensor] = field(default_factory=dict, init=False)
    finite: Finite = field(default_factory=Finite, init=False)

    def move(self, reductions: Sequence[VideoReduction], step: SequenceSelection) -> None:
        """Follow what is left of the videos, and what is asked, to their new places."""
        for video, one in zip(self.videos, reductions, strict=True):
            video.at = moved(video.at, one.row, reductions, step, one)
        self.queries = {
            kind: {row: moved(columns, row, reductions, step) for row, columns in rows.items()}
            for kind, rows in self.queries.items()
        }

    def update_at(self, layer: int) -> SequenceUpdate | None:
        """The sequence that `layer` sees, None where it is the decoder's input."""
        begins = max((first for first in self.updates if first <= layer), default=None)
        return None if begins is None else self.updates[begins]

    @property
    def last(self) -> SequenceUpdate | None:
        """The sequence that the last layer sees, None where it is the decoder's input."""
        return self.updates[max(self.updates)] if self.updates else None

    def present(self, layer: int) -> SequenceSelection | None:
        """Where the sequence that `layer` sees last changed: the stage's, or the decoder's input; None for neither."""
        update = self.update_at(layer)
        return self.first if update is None else update.kept

    def run(self, layer: int) -> int:
        """The first of the layers up to `layer` that share its cache length and its mask."""
        return max((first for first in (*self.prefixes, *self.updates) if first <= layer), default=0)

    def valid(self, layer: int) -> Tensor | None:
        """What is no padding of the prompt as it enters the stage at `layer`: int64 (B, L); None where nothing is."""
        present = self.present(layer)
        if present is not None:
            return present.valid if self.padded else None
        return self.mask[:, -self.length :].bool().long() if self.padded and self.mask is not None else None

    def reduced_prefix(self, mask: Tensor, has_padding: bool, attached: AttachState) -> ReducedPrefix:
        """How a cache begins that this sequence is added to: all that is settled of it, up to the last video.

        mask: int64 (B, past + M), of all that the cache then holds.
        """
        suffix = self.prompt.stable_suffix
        settled = self.start + self.length - suffix
        return ReducedPrefix(settled, mask[:, : mask.shape[1] - suffix], has_padding, attached)

    def look(self) -> None:
        """Look for NaN or inf in what the reductions saw, once all have been; `finite.check()` tells."""
        self.finite.look([record.reduction for video in self.videos for record in video.stages])

    def rows(self) -> Rows:
        """What the last layer's output is of the prompt."""
        steps = (self.first, None if self.last is None else self.last.kept)
        return Rows(self.prompt.not_padding, self.prompt.stable_suffix, [step for step in steps if step is not None])


@dataclass(eq=False)
class ForwardState:
    """What the seams know of one call: each reads what those before it left.

    outermost: what was called.  innermost: how deep the call came.  generated: by `generate`, around the call.
    Of the whole model, answer: bool (B, L), true on the training targets among `labels`; None without labels.
    asked: `logits_to_keep`, None for all.
    Of its body, host_inputs: what tells where videos are, until the decoder asks.  copies: rows that share each video.
    Of the decoder, sequence: while it runs on a prompt with videos.
    Of the output, rows: what its rows are of the prompt.  spread: whether there is one for each column.
    """

    outermost: Level
    innermost: Level
    generated: Generated
    answer: Tensor | None = None
    asked: Any = None
    host_inputs: HostInputs | None = None
    copies: int = 1
    sequence: SequenceState | None = None
    rows: Rows | None = None
    spread: bool = False


class ForwardStates:
    """The state of the call that each thread is in: the one place where states begin and end.

    An interrupt (KeyboardInterrupt) runs no hook; what it leaves is dropped by the next call of its thread.
    """

    def __init__(self) -> None:
        self._threads = threading.local()

    @property
    def current(self) -> ForwardState | None:
        """The state of the call that this thread is in."""
        state: ForwardState | None = self._threads.__dict__.get("state")
        return state

    def enter(self, level: Level) -> ForwardState:
        """The state of a call that comes to `level`: a new one where that is what was called."""
        here = self._threads.__dict__
        state: ForwardState | None = here.get("state")
        if state is None or state.innermost >= level:
            generated: Generated = here.get("generated", _NOTHING)
            if generated.proposed:
                here["generated"] = replace(generated, proposed=0)  # they are of one call
            state = here["state"] = ForwardState(level, level, generated)
        state.innermost = level
        return state

    def leave(self, level: Level) -> ForwardState | None:
        """The state of a call that is done with `level`, for the last time where that is what was called."""
        here = self._threads.__dict__
        state: ForwardState | None = here.get("state")
        if state is not None and state.outermost == level:
            del here["state"]
        return state

    def tell(self, **what: Any) -> None:
        """Hand the calls to come what `generate` knows, by the names of `Generated`."""
        here = self._threads.__dict__
        here["generated"] = replace(here.get("generated", _NOTHING), **what)

    def forget(self) -> None:
        """Forget what this thread was told, at the end of a generation."""
        self._threads.__dict__.pop("generated", None)

    def clear(self) -> None:
        """Forget the calls of all threads."""
        self._threads = threading.local()

    def __reduce_ex__(self, protocol: object) -> Any:  # every hook holds these
        raise UnsupportedCall(
            "a model cannot be copied or pickled with a reducer attached, whose hooks know this model alone; "
            "remove() it first"
        )
