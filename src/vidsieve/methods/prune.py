"""Prune: segment, budget, relevance, select. `Prune.pick` makes these decisions one after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from vidsieve import ops
from vidsieve.checks import check_part
from vidsieve.methods.base import (
    Plan,
    PlannedReducer,
    check_given,
    check_keep,
    check_requires,
    declares,
    kept_count,
    pending_nonfinite,
    raise_if_nonfinite,
)
from vidsieve.methods.budget import Budget, MarginalGain
from vidsieve.methods.measure import cut, identity, measure, measure_before_cut
from vidsieve.methods.merge import Merger
from vidsieve.methods.relevance import Contrast, Relevance
from vidsieve.methods.segment import SceneCuts, Segmenter
from vidsieve.methods.selection import ConditionalDPP, SelectionProblem, Selector
from vidsieve.telemetry.timing import timed
from vidsieve.types.reduction import Reduction
from vidsieve.types.segments import Segments
from vidsieve.types.statistics import ORIGINAL_QUANTITIES, QUANTITIES, OriginalStatistics
from vidsieve.types.tokens import Prompt, VideoTokens

TOGETHER_BYTES = 1 << 30  # of features that are reduced at once, which bounds the memory besides them


class Picks(NamedTuple):
    """The decisions of `Prune`: K of N tokens, within S segments.

    order: int32 (N,), the step at which each token was picked in its segment, -1 if it was not.  kept: int64 (K,),
    sorted.  assigned_to: int64 (N,), the row of each token among those, -1 if dropped.  budget: int64 (S,).  nonfinite:
    int32 (N,), as in `TokenStatistics`.  original_statistics: measured so far of the original video.
    """

    order: Tensor
    kept: Tensor
    assigned_to: Tensor
    segments: Segments
    budget: Tensor
    nonfinite: Tensor
    original_statistics: OriginalStatistics


@dataclass(frozen=True)
class Prune(PlannedReducer):
    """Makes the four decisions of a pruning method: segment, budget, relevance, select.

    keep: fraction of the video tokens that stays; exactly round(keep * N) do (at least one).
    segmenter: cuts the video into S segments.  budget: says how many tokens each keeps.  relevance: weighs the tokens.
    selector: picks them.  merger: merges the others into them; None drops the others.
    Raises `ValueError` for a keep outside (0, 1], or a part that cannot be one.
    """

    batches: ClassVar[bool] = True
    captures: ClassVar[bool] = True
    chunks: ClassVar[bool] = True
    part_fields: ClassVar[tuple[str, ...]] = ("segmenter", "budget", "relevance", "selector")

    keep: float
    segmenter: Segmenter = SceneCuts()
    budget: Budget = MarginalGain()
    relevance: Relevance = Contrast()
    selector: Selector = ConditionalDPP()
    merger: Merger | None = None

    def __post_init__(self) -> None:
        check_keep(self.keep)
        for name in self.part_fields:
            check_part(name, getattr(self, name))
            check_requires(name, getattr(self, name), ORIGINAL_QUANTITIES if name == "segmenter" else QUANTITIES)
        if self.merger is not None:
            check_part("merger", self.merger)

    def reduce(self, tokens: VideoTokens, prompt: Prompt | None = None) -> Reduction:
        check_given(tokens, prompt)
        if self._keeps(tokens) == len(tokens):
            return identity(tokens)
        picks = self.pick(tokens, prompt)
        return self._merged(tokens, picks.segments, self.finalize(tokens, self._plan_of(picks)))

    def pick(self, tokens: VideoTokens, prompt: Prompt | None = None) -> Picks:
        """Make the four decisions: of N tokens, pick K. Does not wait for the device where kernels run."""
        total = tokens.videos * self._keeps(tokens)
        with timed("segment"):
            before = measure_before_cut(tokens, self.segmenter, self.requires, prompt)
            segments, original = cut(tokens, self.segmenter, before)  # S contiguous runs of frames
        with timed("relevance"):
            stats = measure(tokens, self.requires, prompt, segments, before)
            raise_if_nonfinite(stats, prompt)
            relevance = self.relevance(tokens, stats, prompt)  # (N,) in [0, 1], high is kept
        with timed("budget"):
            budget = self.budget(tokens, stats, segments, total)  # (S,), sums to total
        with timed("select"):
            problem = SelectionProblem(tokens, stats, segments, budget, relevance, total)
            order = self.selector(problem)  # (N,) step, -1 if not picked
            picked = ops.CompactProblem(order, segments.offsets, budget, segments.longest, total, tokens.videos)
            kept, assigned_to = ops.compact(picked)
        original = OriginalStatistics(stats.persistence, original.segments)
        return Picks(order, kept, assigned_to, segments, budget, stats.required("nonfinite"), original)

    def plan(self, tokens: VideoTokens, prompt: Prompt | None = None) -> Plan:
        return self._plan_of(self.pick(tokens, prompt))

    def _plan_of(self, picks: Picks) -> Plan:
        names = ("kept", "assigned_to", "budget", "nonfinite")
        tensors = {name: getattr(picks, name) for name in names}
        return Plan({**tensors, "offsets": picks.segments.offsets}, picks.original_statistics)

    def finalize(self, tokens: VideoTokens, plan: Plan) -> Reduction:
        found = plan.tensors
        return Reduction(
            found["kept"],
            found["assigned_to"],
            offsets=found["offsets"],
            budget=found["budget"],
            nonfinite=pending_nonfinite(found["nonfinite"]),
            original_statistics=plan.original_statistics,
        )

    def replayable(self, tokens: VideoTokens) -> bool:
        return self.merger is None and declares(self, "captures") and self._keeps(tokens) < tokens.tokens_per_video

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
        tokens = VideoTokens.stack(videos)
        picks = self.pick(tokens, Prompt.stack(given) if given else None)
        slots = len(picks.segments) // len(videos)
        offsets = picks.segments.offsets.unfold(0, slots + 1, slots)  # (V, slots + 1)
        offsets = offsets - offsets[:, :1]
        rows = (picks.budget, picks.kept, picks.assigned_to, picks.nonfinite)
        reductions = []
        for video, bounds, budget, kept, assigned_to, nonfinite in zip(
            videos, offsets, *(x.view(len(videos), -1) for x in rows), strict=True
        ):
            reduction = Reduction(
                kept, assigned_to, offsets=bounds, budget=budget, nonfinite=pending_nonfinite(nonfinite)
            )
            reductions.append(self._merged(video, Segments(bounds, picks.segments.longest), reduction))
        return reductions

    def _takes_together(self, videos: Sequence[VideoTokens]) -> bool:
        """Whether the videos have one layout and are unreduced, and every part of the method takes several at once."""
        if len(videos) < 2 or any(video.provenance is not None for video in videos):
            return False
        first = videos[0]
        layouts = {(tuple(v.frames), v.grid, v.features.dtype, v.features.device, v.features.shape) for v in videos}
        return (
            len(layouts) == 1
            and first.regular
            and self._keeps(first) < len(first)
            and declares(self, "batches")
            and ops.together(first.features, len(first.frames))
        )

    def _keeps(self, tokens: VideoTokens) -> int:
        """Count the tokens that stay of each video."""
        return min(kept_count(self.keep, tokens.original_count), tokens.tokens_per_video)

    def _merged(self, tokens: VideoTokens, segments: Segments, reduction: Reduction) -> Reduction:
        if self.merger is None:
            return reduction
        with timed("merge"):
            return self.merger(tokens, segments, reduction)
