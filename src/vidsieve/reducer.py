"""READ FIRST. What a reducer is, and the four decisions that most of them take.

A `Reducer` turns the tokens of a video (and the prompt) into a `Reduction`: which tokens stay, and what became of the
others. `Prune` is the general pruning method: segment, budget, weigh, select. A published method is one `Prune`
expression (see presets.py). Calling a reducer on a model attaches it:

    with vidsieve.presets.vidsieve(keep=0.1)(model) as trace:
        out = model.generate(**inputs)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vidsieve import ops
from vidsieve.budget import Budget, MarginalGain
from vidsieve.merge import Merger
from vidsieve.relevance import Flat, Relevance
from vidsieve.segment import SceneCuts, Segmenter
from vidsieve.selection import ConditionalDPP, Selector
from vidsieve.timeline import stage
from vidsieve.tokens import Prompt, Reduction, VideoTokens

if TYPE_CHECKING:
    from vidsieve.models import Attachment


class Reducer(ABC):
    """Decides which tokens of a video a language model gets to see."""

    @abstractmethod
    def reduce(self, tokens: VideoTokens, prompt: Prompt | None = None) -> Reduction:
        """The reduction of one video's tokens (N, D).

        Raises `ValueError` where the method needs a prompt and got none, and `NonFiniteFeatures` for NaN or inf: on CPU
        here, on an accelerator from `Reduction.check`, so that nothing here waits for the device.
        """

    def __call__(self, model: object) -> Attachment:
        """Attach to a Hugging Face video language model: `with reducer(model) as trace: model.generate(...)`."""
        from vidsieve.models import attach

        return attach(model, self)


def kept_count(keep: float, produced: int) -> int:
    """How many of `produced` tokens a fraction `keep` leaves: round(keep * produced), and never none."""
    return max(1, round(keep * produced))


def check_keep(keep: float) -> None:
    """Raise unless `keep` is a fraction in (0, 1]."""
    if not 0 < keep <= 1:
        raise ValueError(f"keep is the fraction of the video tokens that stays, in (0, 1]; got {keep}")


@dataclass(frozen=True)
class Prune(Reducer):
    """Segment, budget, weigh, select: the four decisions of a pruning method, in the order they are taken.

    keep: fraction of the video tokens that stays; exactly round(keep * N) do (at least one).
    """

    keep: float
    segmenter: Segmenter = SceneCuts()
    budget: Budget = MarginalGain()
    relevance: Relevance = Flat()
    selector: Selector = ConditionalDPP()
    merger: Merger | None = None

    def __post_init__(self) -> None:
        check_keep(self.keep)

    def reduce(self, tokens: VideoTokens, prompt: Prompt | None = None) -> Reduction:
        total = min(kept_count(self.keep, tokens.produced), len(tokens))
        on_device = tokens.features.device.type != "cpu"
        if total == len(tokens):
            if not on_device:
                tokens.check()
            reduction = Reduction.identity(total, tokens.features.device)
            return replace(reduction, bad=tokens.bad) if on_device else reduction
        if any(getattr(part, "needs_persistence", False) for part in (self.segmenter, self.budget)):
            tokens.expect_persistence()
        with stage("relevance"):
            relevance = self.relevance(tokens, prompt)  # (N,) in [0, 1]
        with stage("segment"):
            segments = self.segmenter(tokens)  # S contiguous runs of frames
        if not on_device:
            tokens.check()  # here, where the norms are known most often: it costs nothing then
        with stage("budget"):
            budget = self.budget(tokens, segments, total)  # (S,), sums to total
        with stage("select"):
            order = self.selector(
                tokens, relevance, segments, budget, total
            )  # (N,) step of each pick, -1 if not picked
            kept, source = ops.compact(order, segments.offsets, budget, segments.longest, total)  # (K,) sorted, (N,)
        with stage("merge"):
            reduction = Reduction(kept, source, offsets=segments.offsets, budget=budget)
            if self.merger:
                reduction = self.merger(tokens, segments, reduction)
        return replace(reduction, bad=tokens.bad) if on_device else reduction


@dataclass(frozen=True, init=False)
class Chain(Reducer):
    """Reducers one after another, each on what the one before it left; every `keep` counts from the original video."""

    reducers: tuple[Reducer, ...]

    def __init__(self, *reducers: Reducer) -> None:
        if not reducers:
            raise ValueError("Chain needs at least one reducer")
        object.__setattr__(self, "reducers", reducers)

    def reduce(self, tokens: VideoTokens, prompt: Prompt | None = None) -> Reduction:
        reduction = self.reducers[0].reduce(tokens, prompt)
        for reducer in self.reducers[1:]:
            reduction = reduction.then(reducer.reduce(tokens.reduced(reduction), prompt))
        return reduction
