"""Decide which tokens stay, without a model: a method is one expression of these parts.

base         what a `Reducer` is; read it first
prune        `Prune`: segment, budget, relevance, select, each a part from the file of its name
             (segment, budget, relevance, selection)
measure      one pass over the features, for all parts of a method
pixels       which groups of pixels the vision tower computes, before it
merge        what becomes of the tokens that do not stay
chunked      the same of a video that comes chunk after chunk, `ChunkedPrune`; stream: of one without an end
compose      `Chain`, one reducer after another, and `Staged`, reducers at layers of the language model
framefusion  the interface of the guide
presets      published methods, one paper a file
"""

from vidsieve.methods.base import Attachable, Attached, Reducer
from vidsieve.methods.budget import Budget, MarginalGain, Proportional
from vidsieve.methods.chunked import ChunkedPrune, in_chunks
from vidsieve.methods.compose import Chain, Pixels, Staged
from vidsieve.methods.framefusion import FrameFusion
from vidsieve.methods.merge import Merger, NearestKept, TemporalMerge
from vidsieve.methods.pixels import KCenter, PixelSelector, RandomGroups, RunLength
from vidsieve.methods.prune import Prune
from vidsieve.methods.relevance import Contrast, Flat, Given, Novelty, PromptAttention, PromptSimilarity, Relevance
from vidsieve.methods.segment import PerFrame, SceneCuts, SceneRuns, Segmenter, Uniform, Whole, Within
from vidsieve.methods.selection import (
    MMR,
    ConditionalDPP,
    DistinctFirst,
    EvenlySpaced,
    Hybrid,
    LowRankDPP,
    MaxMin,
    Random,
    SelectionProblem,
    Selector,
    TopRelevance,
)
from vidsieve.methods.stream import StreamMemory

__all__ = [
    "MMR",
    "Attachable",
    "Attached",
    "Budget",
    "Chain",
    "ChunkedPrune",
    "ConditionalDPP",
    "Contrast",
    "DistinctFirst",
    "EvenlySpaced",
    "Flat",
    "FrameFusion",
    "Given",
    "Hybrid",
    "KCenter",
    "LowRankDPP",
    "MarginalGain",
    "MaxMin",
    "Merger",
    "NearestKept",
    "Novelty",
    "PerFrame",
    "PixelSelector",
    "Pixels",
    "PromptAttention",
    "PromptSimilarity",
    "Proportional",
    "Prune",
    "Random",
    "RandomGroups",
    "Reducer",
    "Relevance",
    "RunLength",
    "SceneCuts",
    "SceneRuns",
    "Segmenter",
    "SelectionProblem",
    "Selector",
    "Staged",
    "StreamMemory",
    "TemporalMerge",
    "TopRelevance",
    "Uniform",
    "Whole",
    "Within",
    "in_chunks",
]
