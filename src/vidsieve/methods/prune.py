"""Prune: segment, budget, weigh, select."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from vidsieve import ops
from vidsieve.checks import check_part
from vidsieve.methods.base import Capturable, check_given, check_keep, kept_count, refuse_non_finite, unseen
from vidsieve.methods.budget import Budget, MarginalGain, Proportional
from vidsieve.methods.relevance import Flat, Novelty, PromptSimilarity, Relevance
from vidsieve.methods.segment import PerFrame, SceneCuts, Segmenter, Uniform, Whole, Within, cut
from vidsieve.methods.selection import (
    MMR,
    ConditionalDPP,
    EvenlySpaced,
    Hybrid,
    LowRankDPP,
    MaxMin,
    Selector,
    TopRelevance,
)
from vidsieve.telemetry.timing import stage
from vidsieve.types.reduction import Reduction
from vidsieve.types.segments import Segments
from vidsieve.types.tokens import Prompt, VideoTokens

if TYPE_CHECKING:
    from vidsieve.methods.merge import Merger


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
