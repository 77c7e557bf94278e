"""Merge tokens that do not stay into kept ones: the most similar one, or the one before it in time.

A `Merger` is the last decision of `Prune`; `TemporalMerge` is a method of its own.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import torch

from vidsieve import ops
from vidsieve.checks import check_number, check_part
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
from vidsieve.methods.measure import cut, identity, measure, measure_before_cut
from vidsieve.methods.segment import SceneCuts, Segmenter
from vidsieve.telemetry.timing import timed
from vidsieve.types.reduction import Reduction
from vidsieve.types.segments import Segments
from vidsieve.types.statistics import ORIGINAL_QUANTITIES, OriginalStatistics
from vidsieve.types.tokens import Prompt, VideoTokens


class Merger(Protocol):
    """Assigns tokens that a reduction dropped to kept tokens."""

    def __call__(self, tokens: VideoTokens, segments: Segments, reduction: Reduction) -> Reduction: ...


@dataclass(frozen=True)
class NearestKept:
    """Assigns every token to the most similar kept token of its segment.

    A kept token becomes the mean of all tokens assigned to it, each weighted by the original tokens that it represents
    (method.md, eq. 11-12). A segment that kept none drops its tokens.
    """

    def __call__(self, tokens: VideoTokens, segments: Segments, reduction: Reduction) -> Reduction:
        problem = ops.NearestKeptProblem(tokens.features, segments.offsets, reduction.kept)
        assigned_to = ops.nearest_kept(problem)
        return replace(reduction, assigned_to=assigned_to, merges=True, next_member=None)


@dataclass(frozen=True)
class TemporalMerge(PlannedReducer):
    """Merges runs of similar tokens at the same place in successive frames into their first token.

    A token is compared with the one in the nearest earlier frame of its segment that still has a token at its place.
    The first token of a run stays and becomes the mean of the run, each token weighted by the original tokens that it
    represents. method.md, eq. 14-15. FrameFusion (Fu et al., ICCV 2025, arXiv 2501.01986), whose merges cross cuts.

    threshold: least cosine at which a token joins; 0.6 if `keep` is not given either.
    keep: instead of the threshold, exactly round(keep * N) tokens stay and the most similar ones join, without a wait
    for the device. If that is fewer than there are runs, complete runs are dropped, later ones first.
    least: with the threshold, merge nothing if fewer than this share of the tokens would join.
    Raises `ValueError` for both threshold and keep, and for values out of range.
    """

    captures: ClassVar[bool] = True
    part_fields: ClassVar[tuple[str, ...]] = ("segmenter",)

    threshold: float | None = None
    segmenter: Segmenter = SceneCuts(max_tokens=None)
    keep: float | None = None
    least: float = 0.0

    def __post_init__(self) -> None:
        if self.keep is not None:
            check_keep(self.keep)
            if self.threshold is not None:
                raise ValueError("threshold and keep both say how many join; give one of the two")
        elif self.threshold is None:
            object.__setattr__(self, "threshold", 0.6)
        if self.threshold is not None:
            check_number("threshold is a cosine, in [-1, 1]", self.threshold, -1, 1)
        check_number("least is a share of the tokens, in [0, 1]", self.least, 0, 1)
        if self.keep is not None and self.least:
            raise ValueError("least goes with a threshold; with keep it is known how many join")
        check_part("segmenter", self.segmenter)
        check_requires("segmenter", self.segmenter, ORIGINAL_QUANTITIES)

    def reduce(self, tokens: VideoTokens, prompt: Prompt | None = None) -> Reduction:
        check_given(tokens, prompt)
        if self._keeps_all(tokens):
            return identity(tokens)
        return self.finalize(tokens, self.plan(tokens))

    def _keeps(self, tokens: VideoTokens) -> int:
        """Count the tokens that `keep` leaves; all of them without it."""
        return kept_count(1.0 if self.keep is None else self.keep, tokens.original_count)

    def _keeps_all(self, tokens: VideoTokens) -> bool:
        return self.keep is not None and self._keeps(tokens) >= len(tokens)

    def replayable(self, tokens: VideoTokens) -> bool:
        return declares(self, "captures") and not self._keeps_all(tokens)

    def plan(self, tokens: VideoTokens, prompt: Prompt | None = None) -> Plan:
        with timed("segment"):
            before = measure_before_cut(tokens, self.segmenter, self.requires)
            segments, original = cut(tokens, self.segmenter, before)
        stats = measure(tokens, self.requires, before=before)
        raise_if_nonfinite(stats)
        with timed("merge"):
            frames = tuple(tokens.original.frames)
            neighbour, cosine = ops.temporal(
                ops.TemporalProblem(
                    tokens.features, stats.required("norm"), segments.offsets, frames, tokens.original_index
                )
            )
            if self.threshold is not None:  # without a token before it, the cosine is -2
                kept, count, row, assigned_to, next_member = ops.merge_runs(
                    ops.MergeRunsProblem(cosine, neighbour, self.threshold, len(frames))
                )
                found = {
                    "kept": kept,
                    "assigned_to": assigned_to,
                    "row": row,
                    "next_member": next_member,
                    "count": count,
                }
            else:
                n, total = len(tokens), self._keeps(tokens)
                bounds = torch.arange(2, device=cosine.device) * n
                budget = torch.full((1,), total, device=cosine.device)
                order = ops.top(ops.TopProblem(-cosine, bounds, budget))
                kept, row = ops.compact(ops.CompactProblem(order, bounds, budget, n, total))
                assigned_to, next_member = ops.follow_runs(ops.FollowRunsProblem(row, neighbour, len(frames)))
                found = {"kept": kept, "assigned_to": assigned_to, "row": row, "next_member": next_member}
        found["nonfinite"] = stats.required("nonfinite")
        return Plan(found, OriginalStatistics(stats.persistence, original.segments))

    def finalize(self, tokens: VideoTokens, plan: Plan) -> Reduction:
        found, original, nonfinite = (
            plan.tensors,
            plan.original_statistics,
            pending_nonfinite(plan.tensors["nonfinite"]),
        )
        n, kept = len(tokens), found["kept"]
        if "count" in found:
            kept = kept[: int(found["count"])]  # waits for the device, with nothing left to do
            if n - len(kept) < max(1, self.least * n):
                return Reduction.identity(n, tokens.features.device, nonfinite, original)
        next_member, row = found["next_member"], found["row"]
        return Reduction(
            kept,
            found["assigned_to"],
            merges=True,
            next_member=next_member,
            row=row,
            nonfinite=nonfinite,
            original_statistics=original,
        )
