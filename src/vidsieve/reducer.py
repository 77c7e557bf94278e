"""READ FIRST. What a reducer is, and the four decisions that most of them take.

A `Reducer` turns the tokens of a video (and the prompt) into a `Reduction`: which tokens stay, and what became of the
others. `Prune` is the general pruning method: segment, budget, weigh, select. A published method is one `Prune`
expression (see presets.py). Calling a reducer on a model attaches it:

    with vidsieve.presets.vidsieve(keep=0.1)(model) as trace:
        out = model.generate(**inputs)

`Chain` puts reducers one after another before the language model, `Staged` puts them at layers inside it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from vidsieve import ops
from vidsieve.budget import Budget, MarginalGain, Proportional
from vidsieve.errors import WrongArgument, check_number, check_part, describe
from vidsieve.reduction import Reduction
from vidsieve.relevance import Flat, Novelty, PromptSimilarity, Relevance
from vidsieve.segment import PerFrame, SceneCuts, Segmenter, Segments, Uniform, Whole, Within, cut
from vidsieve.selection import MMR, ConditionalDPP, EvenlySpaced, Hybrid, LowRankDPP, MaxMin, Selector, TopRelevance
from vidsieve.timeline import stage
from vidsieve.tokens import Prompt, VideoTokens

if TYPE_CHECKING:
    from vidsieve.merge import Merger
    from vidsieve.models import Attachment


class Attachable:
    """What can be attached to a model, by calling it."""

    def __call__(self, model: object) -> Attachment:
        """Attach to a Hugging Face video language model: `with reducer(model) as trace: model.generate(...)`."""
        from vidsieve.models import attach

        return attach(model, self)


class Reducer(Attachable, ABC):
    """Decides which tokens of a video a language model gets to see."""

    @abstractmethod
    def reduce(self, tokens: VideoTokens, prompt: Prompt | None = None) -> Reduction:
        """The reduction of one video's tokens (N, D).

        Raises `ValueError` where the method needs a prompt and got none, and `NonFiniteFeatures` for NaN, inf or a
        length that float32 cannot square: on CPU here, on an accelerator from `Reduction.check`, so that nothing here
        waits for the device.
        """

    def reduce_each(
        self, videos: Sequence[VideoTokens], prompts: Sequence[Prompt | None] | None = None
    ) -> list[Reduction]:
        """The reduction of each of several videos, each with a prompt of its own where there are prompts.

        Videos of one layout go through the kernels together where the method allows it: a launch for all of them.
        """
        return [self.reduce(*pair) for pair in zip(videos, prompts or [None] * len(videos), strict=True)]


class Capturable(Reducer):
    """A reducer in two steps: what it asks of the device, and what it makes of the answer.

    The first never waits for the device, so a CUDA graph can repeat it (replay.py).
    """

    @abstractmethod
    def captures(self, tokens: VideoTokens) -> bool:
        """Whether that holds for videos laid out like this one."""

    @property
    @abstractmethod
    def prompted(self) -> bool:
        """Whether what is asked depends on the prompt."""

    @abstractmethod
    def ask(self, tokens: VideoTokens, prompt: Prompt | None = None) -> dict[str, Tensor]:
        """What `settle` needs to know of the device."""

    @abstractmethod
    def settle(self, tokens: VideoTokens, found: dict[str, Tensor]) -> Reduction:
        """The reduction, given what `ask` found."""


def kept_count(keep: float, produced: int) -> int:
    """How many of `produced` tokens a fraction `keep` leaves: round(keep * produced), and never none."""
    return max(1, round(keep * produced))


def check_keep(keep: float) -> None:
    """Raise unless `keep` is a fraction in (0, 1]."""
    check_number("keep is the fraction of the video tokens that stays, in (0, 1]", keep, 0, 1, beyond=True)


def check_cost(cost: float) -> None:
    """Raise unless `cost` is a share in (0, 1]."""
    check_number("cost is the share of the prefill FLOPs to spend, in (0, 1]", cost, 0, 1, beyond=True)


def check_given(tokens: object, prompt: object = None) -> None:
    """Raise `WrongArgument` unless these are the tokens of a video, and its prompt if there is one."""
    if not isinstance(tokens, VideoTokens):
        raise WrongArgument(
            f"expected the VideoTokens of a video, got {describe(tokens)}; features (N, D) become them by "
            "VideoTokens.from_grid(features, frames, rows, columns)"
        )
    if not isinstance(prompt, Prompt | None):
        raise WrongArgument(f"expected a Prompt or None, got {describe(prompt)}; Prompt(embeddings) holds (L, D)")


def refuse_non_finite(tokens: VideoTokens) -> None:
    """Raise `NonFiniteFeatures` for NaN or inf on CPU, before anything is decided; see `unseen` for accelerators."""
    if tokens.features.device.type == "cpu":
        tokens.check()


def unseen(tokens: VideoTokens) -> Tensor | None:
    """What `Reduction.check` needs on an accelerator, where nobody has looked for NaN or inf yet."""
    return None if tokens.features.device.type == "cpu" else tokens.bad


TOGETHER_BYTES = 1 << 30  # of features that are reduced together, which bounds what that takes beyond them

# The parts that take several videos of one layout as one `VideoTokens`, and never wait for the device.
_OURS: set[type] = {
    *(PerFrame, Uniform, Within, Whole, SceneCuts),
    *(Proportional, MarginalGain),
    *(Flat, PromptSimilarity, Novelty),
    *(ConditionalDPP, LowRankDPP, MMR, MaxMin, Hybrid, TopRelevance, EvenlySpaced),
}


def _with_theirs(parts: Iterable[object]) -> Iterator[object]:
    """The parts, and the parts of those."""
    for part in parts:
        yield part
        if isinstance(part, Hybrid):
            yield from _with_theirs((part.small, part.large))


def ours(*parts: object) -> bool:
    """Whether all parts are known to behave, for which a class derived from one of ours is not."""
    return all(type(part) in _OURS for part in _with_theirs(parts))


@dataclass(frozen=True)
class Prune(Capturable):
    """Segment, budget, weigh, select: the four decisions of a pruning method, in the order they are taken.

    keep: fraction of the video tokens that stays; exactly round(keep * N) do (at least one).
    """

    keep: float
    segmenter: Segmenter = Within()
    budget: Budget = MarginalGain()
    relevance: Relevance = Novelty()
    selector: Selector = ConditionalDPP()
    merger: Merger | None = None

    def __post_init__(self) -> None:
        check_keep(self.keep)
        for name in ("segmenter", "budget", "relevance", "selector"):
            check_part(name, getattr(self, name))
        if self.merger is not None:
            check_part("merger", self.merger)

    def reduce(self, tokens: VideoTokens, prompt: Prompt | None = None) -> Reduction:
        check_given(tokens, prompt)
        if self._keeps(tokens) == len(tokens):
            refuse_non_finite(tokens)
            return Reduction.identity(len(tokens), tokens.features.device, unseen(tokens))
        segments, found = self._select(tokens, prompt)
        return self._merged(tokens, segments, self.settle(tokens, found))

    @property
    def _parts(self) -> tuple[object, ...]:
        return self.segmenter, self.budget, self.relevance, self.selector

    @property
    def _ours(self) -> bool:
        return type(self) is Prune and ours(*self._parts)

    @property
    def prompted(self) -> bool:
        return "similarity" in self._needs

    @property
    def _needs(self) -> frozenset[str]:
        """What of one pass over the features is needed."""
        return frozenset().union(*(getattr(part, "needs", ()) for part in self._parts))

    def captures(self, tokens: VideoTokens) -> bool:
        # Matrix products of torch's keep memory of the graph's for good.
        multiplies = any(isinstance(part, LowRankDPP | MaxMin) for part in _with_theirs([self.selector]))
        return self.merger is None and not multiplies and self._ours and self._keeps(tokens) < tokens.each

    def ask(self, tokens: VideoTokens, prompt: Prompt | None = None) -> dict[str, Tensor]:
        return self._select(tokens, prompt)[1]

    def settle(self, tokens: VideoTokens, found: dict[str, Tensor]) -> Reduction:
        kept, source, offsets, budget = (found[name] for name in ("kept", "source", "offsets", "budget"))
        return Reduction(kept, source, offsets=offsets, budget=budget, bad=unseen(tokens))

    def reduce_each(
        self, videos: Sequence[VideoTokens], prompts: Sequence[Prompt | None] | None = None
    ) -> list[Reduction]:
        for video, prompt in zip(videos, prompts or [None] * len(videos), strict=True):
            check_given(video, prompt)
        given = [prompt for prompt in prompts or () if prompt is not None]
        spaces = {prompt.embeddings.shape[1] for prompt in given}
        if not self._takes_together(videos) or len(given) not in (0, len(videos)) or len(spaces) > 1:
            return super().reduce_each(videos, prompts)
        most = max(1, min(TOGETHER_BYTES // videos[0].features.nbytes, ops.SEGMENTS // len(videos[0].frames)))
        if len(videos) > most:
            groups = [slice(i, i + most) for i in range(0, len(videos), most)]
            return [r for some in groups for r in self.reduce_each(videos[some], prompts[some] if prompts else None)]
        tokens = VideoTokens.together(videos)
        segments, found = self._select(tokens, Prompt.together(given) if given else None)
        slots = len(segments) // len(videos)
        offsets = segments.offsets.unfold(0, slots + 1, slots)  # (V, slots + 1)
        offsets = offsets - offsets[:, :1]
        reductions = []
        for video, bounds, budget, kept, source, bad in zip(
            videos,
            offsets,
            *(x.view(len(videos), -1) for x in (found["budget"], found["kept"], found["source"], tokens.bad)),
            strict=True,
        ):
            looked = bad.device.type == "cpu"
            reduction = Reduction(kept, source, offsets=bounds, budget=budget, bad=None if looked else bad)
            reductions.append(self._merged(video, Segments(bounds, segments.longest), reduction))
        return reductions

    def _takes_together(self, videos: Sequence[VideoTokens]) -> bool:
        """Whether the videos are of one layout, as they came, and every part of the method takes several at once."""
        if len(videos) < 2 or any(video.origin is not None for video in videos):
            return False
        first = videos[0]
        layouts = {(tuple(v.frames), v.grid, v.features.dtype, v.features.device, v.features.shape) for v in videos}
        return (
            len(layouts) == 1
            and first.regular
            and self._keeps(first) < len(first)
            and self._ours
            and ops.together(first.features, len(first.frames))
        )

    def _keeps(self, tokens: VideoTokens) -> int:
        """How many tokens stay of each video."""
        return min(kept_count(self.keep, tokens.produced), tokens.each)

    def _select(self, tokens: VideoTokens, prompt: Prompt | None) -> tuple[Segments, dict[str, Tensor]]:
        """The segments; their budgets (S,), the tokens that stay (K,) and the row of each among those (N,)."""
        total = tokens.videos * self._keeps(tokens)
        needs = self._needs
        tokens.expect(needs, prompt)
        with stage("segment"):
            segments = cut(tokens, self.segmenter)  # S contiguous runs of frames
        tokens.expect(needs & {"products"}, segments=segments)
        with stage("relevance"):
            relevance = self.relevance(tokens, prompt)  # (N,) in [0, 1]
        refuse_non_finite(tokens)  # here, where the norms are known most often: it costs nothing then
        with stage("budget"):
            budget = self.budget(tokens, segments, total)  # (S,), sums to total
        with stage("select"):
            order = self.selector(
                tokens, relevance, segments, budget, total
            )  # (N,) step of each pick, -1 if not picked
            bounds = segments.offsets, budget, segments.longest
            kept, source = ops.compact(order, *bounds, total, tokens.videos)  # (K,) sorted, (N,)
        return segments, {"kept": kept, "source": source, "offsets": segments.offsets, "budget": budget}

    def _merged(self, tokens: VideoTokens, segments: Segments, reduction: Reduction) -> Reduction:
        if self.merger is None:
            return reduction
        with stage("merge"):
            return self.merger(tokens, segments, reduction)


@dataclass(frozen=True, init=False)
class Chain(Reducer):
    """Reducers one after another, each on what the one before it left; every `keep` counts from the original video."""

    reducers: tuple[Reducer, ...]

    def __init__(self, *reducers: Reducer) -> None:
        if not reducers:
            raise ValueError("Chain needs at least one reducer")
        if strangers := [r for r in reducers if not isinstance(r, Reducer)]:
            raise ValueError(
                f"a Chain is of reducers, got {strangers[0]!r}; to combine one with Staged, make it the stage at 0"
            )
        object.__setattr__(self, "reducers", reducers)

    def reduce(self, tokens: VideoTokens, prompt: Prompt | None = None) -> Reduction:
        check_given(tokens, prompt)
        reduction = self.reducers[0].reduce(tokens, prompt)
        for reducer in self.reducers[1:]:
            reduction = reduction.then(reducer.reduce(tokens.reduced(reduction), prompt))
        return reduction


@dataclass(frozen=True, init=False)
class Staged(Attachable):
    """A reducer at each of several layers of the language model: `Staged({0: TemporalMerge(0.6), 0.5: Prune(0.3)})`.

    stages: where a reducer takes its share of what the one before it left, as layers are entered. A layer is a number,
    or a fraction of the depth, so that one configuration serves 28, 36 and 80 layers: the layer nearest to it, and 1
    at least, for 0 alone is before the language model.
    Every `keep` counts from the original video.
    cost: the share of the decoder's prefill FLOPs to spend, counted from its real layers (models/flops.py). The keep of
    the last stage is then whatever meets it, at most its own; `BudgetError` says so where nothing can. Where less is
    left than `cost` would pay for, less is spent.
    """

    stages: Mapping[int | float, Reducer]
    cost: float | None = None

    def __init__(self, stages: Mapping[int | float, Reducer], cost: float | None = None) -> None:
        if not isinstance(stages, Mapping):
            raise ValueError(f"expected stages as {{layer: reducer}}, got {stages!r}")
        if not stages:
            raise ValueError("Staged needs at least one stage, as {layer: reducer}")
        for layer, reducer in stages.items():
            end = math.nextafter(1, 0) if isinstance(layer, float) else math.inf
            told = "a stage is at a layer, 0 or more, or at a fraction of the depth in [0, 1)"
            check_number(told, layer, 0, end)
            if not isinstance(reducer, Reducer):
                raise ValueError(f"expected a reducer at layer {layer}, got {reducer!r}")
        if cost is not None:
            check_cost(cost)
        object.__setattr__(self, "stages", dict(stages))
        object.__setattr__(self, "cost", cost)

    def layers(self, depth: int) -> dict[int, Reducer]:
        """The stages of a model of `depth` layers, first to last."""
        found: dict[int, Reducer] = {}
        for place, reducer in self.stages.items():
            layer = max(1, min(round(place * depth), depth - 1)) if isinstance(place, float) and place else int(place)
            if layer >= depth:
                raise ValueError(f"no layer {layer} to stage at: this model has {depth}, 0 to {depth - 1}")
            if layer in found:
                raise ValueError(
                    f"two stages at layer {layer} of {depth}, the later one at {place}; give them layers of their own, "
                    "or combine them: Chain(first, second)"
                )
            found[layer] = reducer
        last = max(found)
        if self.cost is not None and getattr(found[last], "keep", None) is None:
            raise ValueError(f"cost sets the keep of the last stage, and {found[last]!r} has none; end with a Prune")
        if self.cost is not None and last == 0:
            raise ValueError("cost is met by a stage at layer 1 or later; before the language model, set keep itself")
        return dict(sorted(found.items()))
