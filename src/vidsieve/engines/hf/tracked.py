"""Track which tokens remain from layer to layer: of each video, and of the sequence after each stage."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from vidsieve.engines.graph import ReductionGraph
from vidsieve.engines.hf.columns import Columns
from vidsieve.engines.hf.layouts import VideoSpan
from vidsieve.engines.hf.replayed import StoredVideo
from vidsieve.engines.hf.sequence import SequenceSelection, VideoReduction, reduced
from vidsieve.engines.streams import stream_for
from vidsieve.methods.base import Reducer, kept_count, own_precision
from vidsieve.telemetry.timing import StageTimer
from vidsieve.telemetry.trace import StageRecord, VideoRecord
from vidsieve.types.reduction import Reduction
from vidsieve.types.tokens import Prompt, Provenance, VideoTokens


@dataclass(eq=False)
class TrackedVideo:
    """One video of a call, and its remaining tokens.

    span: its place in the unreduced prompt.  tokens: before any reduction.  at: the columns of the remaining tokens in
    the current sequence.  stages: what each did, with what was done before an encoded video was stored.  timer: of its
    reductions.
    """

    span: VideoSpan
    tokens: VideoTokens
    at: Columns
    stages: list[StageRecord] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.timer = StageTimer(self.at.device)
        self._origin: tuple[int, Provenance] | None = None  # after so many stages

    @classmethod
    def stored(cls, span: VideoSpan, video: StoredVideo, at: Columns) -> Self:
        """Track an encoded video, which was reduced before it came: it stands where a stage at 0 would have left it."""
        before, after = len(video.tokens), len(video.reduction)
        tracked = cls(span, video.tokens, at, [StageRecord(0, before, after, video.reduction)])
        tracked._origin = 1, Provenance(video.tokens, video.reduction.kept, video.multiplicity)
        return tracked

    @property
    def origin(self) -> Provenance:
        """The provenance of the remaining tokens, computed when a stage needs it: after the last stage none does."""
        done, origin = self._origin or (0, Provenance.of(self.tokens))
        for record in self.stages[done:]:
            origin = origin.then(record.reduction)
        self._origin = len(self.stages), origin
        return origin

    @property
    def entered(self) -> Provenance | None:
        """The provenance of the tokens that entered the language model, None if all did."""
        before = [record.reduction for record in self.stages if record.layer == 0]
        return Provenance.of(self.tokens).then(before[0]) if before else None

    @property
    def after(self) -> int:
        """How many tokens remain."""
        return self.stages[-1].after if self.stages else len(self.tokens)

    def record(self) -> VideoRecord:
        """Record what the stages did so far."""
        span = self.span
        at = span.at if span.stored is None else span.stored.columns(span.at)
        return VideoRecord(span.row, torch.from_numpy(at), span.frames, span.grid, self.timer, tuple(self.stages))

    def reduction_since(self, layer: int) -> Reduction:
        """Compose the reductions of the stages from `layer` on."""
        done = [record.reduction for record in self.stages if record.layer >= layer]
        return reduce(Reduction.then, done) if done else Reduction.identity(self.after, self.at.device)

    @staticmethod
    def reduce_each(
        videos: "Sequence[TrackedVideo]", replay: ReductionGraph, prompts: Sequence[Prompt | None]
    ) -> Callable[[], None]:
        """Start to reduce unreduced videos before the language model, those of one layout together.

        The function returned waits for the reductions and records them.
        """
        timer = StageTimer(videos[0].at.device)
        with torch.no_grad(), own_precision(videos[0].at.device), timer:
            finalize = replay.reduce_each([video.tokens for video in videos], prompts)

        def end() -> None:
            for video, reduction in zip(videos, finalize(), strict=True):
                video.timer.shared(timer, len(videos))
                video.stages.append(StageRecord(0, len(video.tokens), len(reduction), reduction))
                _warn_if_idle(replay.reducer, len(video.tokens), len(reduction))

        return end

    def reduce(self, layer: int, reducer: Reducer, tokens: VideoTokens, prompt: Prompt | None) -> Reduction:
        """Reduce the remaining `tokens` as they enter `layer`, and record it."""
        with torch.no_grad(), own_precision(self.at.device), self.timer:
            reduction = reducer.reduce(tokens, prompt)
        self.stages.append(StageRecord(layer, len(tokens), len(reduction), reduction))
        return reduction


class Checked(Protocol):
    """What was decided by values that nobody looked at yet: a `Reduction`, or a `PixelSelection`."""

    @property
    def nonfinite(self) -> Tensor | None: ...

    def check(self) -> None: ...


class NonFiniteCheck:
    """Checks reductions for NaN or inf, without waiting for the device in between."""

    def __init__(self) -> None:
        self._reductions: Sequence[Checked] = ()
        self._any_nonfinite: Tensor | None = None
        self._looked: torch.cuda.Event | None = None

    def start(self, reductions: Sequence[Checked]) -> None:
        """Start to copy to the host whether any of `reductions` had NaN or inf in its features."""
        self._reductions = reductions
        nonfinite = [reduction.nonfinite for reduction in reductions if reduction.nonfinite is not None]
        if nonfinite:
            aside = stream_for("look", nonfinite[0].device) if nonfinite[0].is_cuda else None
            if aside is not None:
                aside.wait_stream(torch.cuda.current_stream(nonfinite[0].device))
            with torch.cuda.stream(aside):  # which the layers need not wait for
                self._any_nonfinite = (
                    (nonfinite[0] if len(nonfinite) == 1 else torch.cat(nonfinite))
                    .any()
                    .to("cpu", non_blocking=aside is not None)
                )
                self._looked = None if aside is None else aside.record_event()

    def check(self) -> None:
        """Raise `NonFiniteFeatures` if any had. Called late, when the device has long computed the answer."""
        if self._looked is not None:
            self._looked.synchronize()
        if self._any_nonfinite is not None and self._any_nonfinite:
            for reduction in self._reductions:
                reduction.check()


def _warn_if_idle(reducer: Reducer, before: int, after: int) -> None:
    keep = getattr(reducer, "keep", None)
    if after == before and isinstance(keep, float) and kept_count(keep, before) < before:
        warnings.warn(f"{reducer!r} removed none of {before} video tokens", stacklevel=2)


@dataclass(frozen=True, eq=False)
class SequenceUpdate:
    """The sequence after one stage.

    kept: its tokens among the decoder's input.  step, reductions: its tokens among the sequence before the stage.
    counts: tokens in each row.  rope: cosines and sines of their positions.
    """

    kept: SequenceSelection
    step: SequenceSelection
    reductions: tuple[VideoReduction, ...]
    counts: tuple[int, ...]
    rope: Any

    def replay(self, hidden: Tensor) -> Tensor:
        """Reduce the hidden states (B, L, D) before the stage to those after it: (B, M, D)."""
        return reduced(hidden, self.reductions, self.step)
