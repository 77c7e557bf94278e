"""What is left of a prompt on its way through the layers: of each video, and of the sequence from one stage on."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from vidsieve.engines.graph import ReductionGraph
from vidsieve.engines.hf.columns import Columns
from vidsieve.engines.hf.prompt import VideoSpan
from vidsieve.engines.hf.sequence import SequenceSelection, VideoReduction, reduced
from vidsieve.engines.streams import stream_for
from vidsieve.methods.base import Reducer, kept_count
from vidsieve.telemetry.timing import StageTimer
from vidsieve.telemetry.trace import StageRecord, VideoRecord
from vidsieve.types.reduction import Reduction
from vidsieve.types.tokens import Prompt, Provenance, VideoTokens


@dataclass(eq=False)
class TrackedVideo:
    """One video of a pass, as it shrinks.

    span: where it is in the prompt as it came.  tokens: as they came.  at: the columns of those that are left
    in the sequence as it is.  stages: what each did.  timer: of its reductions.
    """

    span: VideoSpan
    tokens: VideoTokens
    at: Columns
    stages: list[StageRecord] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.timer = StageTimer(self.at.device)
        self._origin: tuple[int, Provenance] | None = None  # after so many stages

    @property
    def origin(self) -> Provenance:
        """Of what is left. Found when a stage asks, for no one does after the last."""
        done, origin = self._origin or (0, Provenance.of(self.tokens))
        for record in self.stages[done:]:
            origin = origin.then(record.reduction)
        self._origin = len(self.stages), origin
        return origin

    @property
    def entered(self) -> Provenance | None:
        """Of what entered the language model, None where that is the whole video."""
        before = [record.reduction for record in self.stages if record.layer == 0]
        return Provenance.of(self.tokens).then(before[0]) if before else None

    @property
    def after(self) -> int:
        """How many tokens are left."""
        return self.stages[-1].after if self.stages else len(self.tokens)

    def record(self) -> VideoRecord:
        """What became of it so far."""
        span = self.span
        return VideoRecord(span.row, torch.from_numpy(span.at), span.frames, span.grid, self.timer, tuple(self.stages))

    def reduction_since(self, layer: int) -> Reduction:
        """What the stages from `layer` on did together."""
        done = [record.reduction for record in self.stages if record.layer >= layer]
        return reduce(Reduction.then, done) if done else Reduction.identity(self.after, self.at.device)

    @staticmethod
    def reduce_each(
        videos: "Sequence[TrackedVideo]", replay: ReductionGraph, prompts: Sequence[Prompt | None]
    ) -> Callable[[], None]:
        """Reduce whole videos before the language model, those of one layout together. What is returned ends it."""
        timer = StageTimer(videos[0].at.device)
        with torch.no_grad(), timer:
            settle = replay.reduce_each([video.tokens for video in videos], prompts)

        def end() -> None:
            for video, reduction in zip(videos, settle(), strict=True):
                video.timer.shared(timer, len(videos))
                video.stages.append(StageRecord(0, len(video.tokens), len(reduction), reduction))
                _warn_if_idle(replay.reducer, len(video.tokens), len(reduction))

        return end

    def reduce(self, layer: int, reducer: Reducer, tokens: VideoTokens, prompt: Prompt | None) -> Reduction:
        """Reduce `tokens`, what is left, as they enter `layer`."""
        with torch.no_grad(), self.timer:
            reduction = reducer.reduce(tokens, prompt)
        self.stages.append(StageRecord(layer, len(tokens), len(reduction), reduction))
        return reduction


class Finite:
    """Whether reductions saw NaN or inf, asked of the device without waiting for it."""

    def __init__(self) -> None:
        self._reductions: Sequence[Reduction] = ()
        self._any_bad: Tensor | None = None
        self._looked: torch.cuda.Event | None = None

    def look(self, reductions: Sequence[Reduction]) -> None:
        """Ask."""
        self._reductions = reductions
        bad = [reduction.nonfinite for reduction in reductions if reduction.nonfinite is not None]
        if bad:
            aside = stream_for("look", bad[0].device) if bad[0].is_cuda else None
            if aside is not None:
                aside.wait_stream(torch.cuda.current_stream(bad[0].device))
            with torch.cuda.stream(aside):  # which the layers need not wait for
                self._any_bad = (
                    (bad[0] if len(bad) == 1 else torch.cat(bad)).any().to("cpu", non_blocking=aside is not None)
                )
                self._looked = None if aside is None else aside.record_event()

    def check(self) -> None:
        """Raise `NonFiniteFeatures` if there were any. By now the device has long been there, and has more to do."""
        if self._looked is not None:
            self._looked.synchronize()
        if self._any_bad is not None and self._any_bad:
            for reduction in self._reductions:
                reduction.check()


def _warn_if_idle(reducer: Reducer, before: int, after: int) -> None:
    keep = getattr(reducer, "keep", None)
    if after == before and isinstance(keep, float) and kept_count(keep, before) < before:
        warnings.warn(f"{reducer!r} removed none of {before} video tokens", stacklevel=2)


@dataclass(frozen=True, eq=False)
class SequenceUpdate:
    """The sequence from one stage on.

    kept: what is left of the decoder's input.  step, reductions: how it came from the sequence before the stage.
    counts: tokens left in each row.  rope: the positions' cosines and sines of what is left.
    """

    kept: SequenceSelection
    step: SequenceSelection
    reductions: tuple[VideoReduction, ...]
    counts: tuple[int, ...]
    rope: Any

    def replay(self, hidden: Tensor) -> Tensor:
        """The hidden states (B, L, D) before the stage as they are after it."""
        return reduced(hidden, self.reductions, self.step)
