"""The numerical operations, each with one meaning and several implementations.

    reference   float64, loops, equation numbers: the truth that the others are tested against
    eager       batched torch, any device
    triton      kernels where one pays and torch elsewhere, on CUDA; never asks the device anything

They lie beside one another, in one folder for each kind of operation, whose `__init__` says what the operations mean.
`VIDSIEVE_OPS` chooses one implementation for the process: `auto` (default: triton on CUDA, else eager), `reference`,
`eager` or `triton`. An implementation that was asked for and cannot run raises `KernelUnavailable`. `spy()` shows what
ran.

Operations know tensors only, and each takes one tuple, which is its signature in all implementations: those are in
`definitions.py`. In them `offsets` (S + 1,) are the bounds of S contiguous segments, `longest` bounds their length,
`budget` (S,) is the picks each may make and `total` their sum.

Where `together` says so, the tokens may be those of several `videos` of one layout, one after another, and what is of a
video (its cuts, budgets, scale) is found for each: as many segments and picks in each. Only kernels do that.
"""

from vidsieve.ops.attention import received_attention
from vidsieve.ops.compaction import compact, compact_rows
from vidsieve.ops.definitions import (
    ApportionProblem,
    AttentionProblem,
    CompactProblem,
    CompactRowsProblem,
    ContrastProblem,
    ElsewhereProblem,
    FollowRunsProblem,
    GateProblem,
    GreedyProblem,
    Head,
    HoldHighestProblem,
    HybridProblem,
    KCenterProblem,
    MeasureProblem,
    Measures,
    MergeAmongProblem,
    MergeProblem,
    MergeRunsProblem,
    MinMaxProblem,
    MMRProblem,
    NearestKeptProblem,
    NoveltyProblem,
    RotaryProblem,
    RunLengthProblem,
    SceneCutsProblem,
    SegmentAttentionProblem,
    TemporalProblem,
    TopProblem,
    TransienceProblem,
)
from vidsieve.ops.dispatch import available, spy, together
from vidsieve.ops.elsewhere import alike_elsewhere
from vidsieve.ops.greedy import conditional_dpp, hybrid, max_min, mmr, top
from vidsieve.ops.greedy.eager import GRAM_LIMIT
from vidsieve.ops.k_center import k_center
from vidsieve.ops.k_center.blocks import Blocks
from vidsieve.ops.limits import NONFINITE_PROMPT
from vidsieve.ops.measurement import contrast, measure, min_max, raise_if_nonfinite, transience
from vidsieve.ops.merge import follow_runs, merge_among, merge_mean, merge_runs, nearest_kept, temporal
from vidsieve.ops.partition import apportion, novelty, scene_cuts
from vidsieve.ops.run_length import hold_highest, raise_if_nonfinite_pixels, run_length
from vidsieve.ops.vision import VisionOperations, gate, rotate_, segment_attention

SEGMENTS = 65535  # that one launch takes

__all__ = [
    "GRAM_LIMIT",
    "NONFINITE_PROMPT",
    "SEGMENTS",
    "ApportionProblem",
    "AttentionProblem",
    "Blocks",
    "CompactProblem",
    "CompactRowsProblem",
    "ContrastProblem",
    "ElsewhereProblem",
    "FollowRunsProblem",
    "GateProblem",
    "GreedyProblem",
    "Head",
    "HoldHighestProblem",
    "HybridProblem",
    "KCenterProblem",
    "MMRProblem",
    "MeasureProblem",
    "Measures",
    "MergeAmongProblem",
    "MergeProblem",
    "MergeRunsProblem",
    "MinMaxProblem",
    "NearestKeptProblem",
    "NoveltyProblem",
    "RotaryProblem",
    "RunLengthProblem",
    "SceneCutsProblem",
    "SegmentAttentionProblem",
    "TemporalProblem",
    "TopProblem",
    "TransienceProblem",
    "VisionOperations",
    "alike_elsewhere",
    "apportion",
    "available",
    "compact",
    "compact_rows",
    "conditional_dpp",
    "contrast",
    "follow_runs",
    "gate",
    "hold_highest",
    "hybrid",
    "k_center",
    "max_min",
    "measure",
    "merge_among",
    "merge_mean",
    "merge_runs",
    "min_max",
    "mmr",
    "nearest_kept",
    "novelty",
    "raise_if_nonfinite",
    "raise_if_nonfinite_pixels",
    "received_attention",
    "rotate_",
    "run_length",
    "scene_cuts",
    "segment_attention",
    "spy",
    "temporal",
    "together",
    "top",
    "transience",
]
