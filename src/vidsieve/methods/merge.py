"""What becomes of the tokens that do not stay: dropped, folded into one that does, or merged along time.

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
    """Finds a kept token for tokens that a reduction dropped."""

    def __call__(self, tokens: VideoTokens, segments: Segments, reduction: Reduction) -> Reduction: ...


@dataclass(frozen=True)
class NearestKept:
    """Every token is folded into the most similar kept token of its segment; a kept token becomes the mean of all it
    absorbed, each with the weight of the tokens it stands for (method.md, eq. 11-12). A segment that kept none drops
    its tokens."""

    def __call__(self, tokens: VideoTokens, segments: Segments, reduction: Reduction) -> Reduction:
        source = ops.nearest_kept(tokens.features, segments.offsets, reduction.kept)
        return replace(reduction, assigned_to=source, merges=True, next_member=None)


@dataclass(frozen=True)
class TemporalMerge(PlannedReducer):
    """A token joins the one before it at the same place where the two are alike; what joined becomes one mean.

    The token before is that of the nearest earlier frame in which the place still has one, never across a segment
    border. The first of a run stays, and becomes the mean of the run, each token weighing as many as it stands for.
    method.md, eq. 14-15. FrameFusion (Fu et al., ICCV 2025, arXiv 2501.01986), whose merges cross cuts.

    threshold: least cosine at which a token joins; 0.6 if `keep` is not given either.
    keep: instead of the threshold, exactly round(keep * N) tokens stay and the most alike join, without asking the
    device anything. Where all pairs together are not enough, whole runs are dropped, later ones first.
    least: with the threshold, leave the video as it is where fewer than this share of its tokens would join.
    """

    captures: ClassVar[bool] = True
    part_fields: ClassVar[tuple[str, ...]] = ("segmenter",)

    threshold: float | None = None
    segmenter: Segmenter = SceneCuts(max_frames=None)
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
        """How many tokens stay, if `keep` says so; else how many could."""
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
            if self.threshold is not None:  # where there is none before, the cosine is below any
                kept, count, row, source, link = ops.merge_runs(cosine, neighbour, self.threshold, len(frames))
                found = {"kept": kept, "assigned_to": source, "row": row, "next_member": link, "count": count}
            else:
                n, total = len(tokens), self._keeps(tokens)
                bounds = torch.arange(2, device=cosine.device) * n
                budget = torch.full((1,), total, device=cosine.device)
                kept, row = ops.compact(ops.top(-cosine, bounds, budget), bounds, budget, n, total)
                source, link = ops.follow_runs(row, neighbour, len(frames))
                found = {"kept": kept, "assigned_to": source, "row": row, "next_member": link}
        found["nonfinite"] = stats.required("nonfinite")
        return Plan(found, OriginalStatistics(stats.persistence, original.segments))

    def finalize(self, tokens: VideoTokens, plan: Plan) -> Reduction:
        found, original, bad = plan.tensors, plan.original_statistics, pending_nonfinite(plan.tensors["nonfinite"])
        n, kept = len(tokens), found["kept"]
        if "count" in found:
            kept = kept[: int(found["count"])]  # waits for the device, with nothing left to do
            if n - len(kept) < max(1, self.least * n):
                return Reduction.identity(n, tokens.features.device, bad, original)
        link, row = found["next_member"], found["row"]
        return Reduction(
            kept,
            found["assigned_to"],
            merges=True,
            next_member=link,
            row=row,
            nonfinite=bad,
            original_statistics=original,
        )
