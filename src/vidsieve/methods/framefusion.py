"""Offer the interface of the guide, made of the parts of this library.

    with vidsieve.FrameFusion(cost=0.3)(model) as trace:
        model.generate(**inputs)

The guide is the user's guide that this library was written in answer to. It defined the interface of
`FrameFusion(cost, ...)` and its parts (a conditional DPP in each segment, a greedy selection for long ones, low rank,
merging, pruning in stages). docs/method.md has a table of its names; `FrameFusion(...).method` is the equivalent
expression.
"""

from __future__ import annotations

from torch import nn

from vidsieve.methods.base import Attachable, Attached, check_cost
from vidsieve.methods.budget import MarginalGain
from vidsieve.methods.compose import Staged
from vidsieve.methods.merge import TemporalMerge
from vidsieve.methods.prune import Prune
from vidsieve.methods.relevance import PromptAttention
from vidsieve.methods.segment import SceneCuts
from vidsieve.methods.selection import MMR, ConditionalDPP, Hybrid


class FrameFusion(nn.Module, Attachable):
    """Merge similar tokens of neighbouring frames at layers 0 and 1, select among the others by segment at layer 2.

    cost: share of the decoder's prefill FLOPs to spend; sets how many the selection keeps. Merging does not stop there:
        of a video that stands still less is spent.
    similarity_lower_bound: least cosine at which a token joins the one before it.
    ratio_lower_bound: a layer merges only where at least this share of its video tokens would join.
    segment_threshold: a scene begins where neighbouring frames are less similar than this (`SceneCuts`).
    use_ultra_fast_mode: exact selection for segments of up to 256 tokens instead of 512.
    greedy_threshold: exact selection for segments of up to this many tokens, whatever the mode; longer ones by MMR.

    Raises `ValueError` for arguments out of range.
    """

    def __init__(
        self,
        cost: float = 0.3,
        similarity_lower_bound: float = 0.6,
        ratio_lower_bound: float = 0.1,
        segment_threshold: float = 0.5,
        use_ultra_fast_mode: bool = False,
        greedy_threshold: int | None = None,
    ) -> None:
        super().__init__()
        check_cost(cost)  # a Staged may do without
        if not isinstance(use_ultra_fast_mode, bool):
            raise ValueError(f"use_ultra_fast_mode is True or False; got {use_ultra_fast_mode!r}")
        if greedy_threshold is None:
            greedy_threshold = 256 if use_ultra_fast_mode else 512
        cuts = SceneCuts(segment_threshold, max_tokens=None)
        merge = TemporalMerge(similarity_lower_bound, cuts, least=ratio_lower_bound)
        select = Prune(
            1.0,
            SceneCuts(segment_threshold),
            MarginalGain(),
            PromptAttention(),
            Hybrid(greedy_threshold, ConditionalDPP(), MMR()),
        )
        self.method = Staged({0: merge, 1: merge, 2: select}, cost)

    def forward(self, model: object) -> Attached:
        """Attach to a Hugging Face video language model: `with FrameFusion()(model) as trace:`."""
        return self.method(model)

    def extra_repr(self) -> str:
        return repr(self.method)
