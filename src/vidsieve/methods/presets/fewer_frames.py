"""Fewer frames: the baseline that needs no method."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vidsieve.methods.base import Reducer
from vidsieve.methods.prune import Prune
from vidsieve.methods.relevance import Flat
from vidsieve.methods.segment import PerFrame
from vidsieve.methods.selection import EvenlySpaced
from vidsieve.registry import register_method
from vidsieve.types.segments import Segments
from vidsieve.types.statistics import TokenStatistics
from vidsieve.types.tokens import VideoTokens


@dataclass(frozen=True)
class WholeFrames:
    """Keeps complete frames, evenly spread, as many as the total allows; the last of them gets the remainder."""

    def __call__(self, tokens: VideoTokens, stats: TokenStatistics, segments: Segments, total: int) -> Tensor:
        lengths = segments.lengths
        frames = len(lengths)
        many = min(frames, -(-total // min(tokens.frames)))
        middle = ((2 * torch.arange(many, device=lengths.device) + 1) * frames) // (2 * many)
        budget = torch.zeros_like(lengths)
        before = lengths[middle].cumsum(0) - lengths[middle]
        budget[middle] = torch.minimum(lengths[middle], (total - before).clamp(min=0))
        return budget


@register_method()
def fewer_frames(keep: float) -> Reducer:
    """Whole frames at even distances and none of the others: what sampling fewer frames gives for the same tokens.

    Exactly so for towers whose frames do not see each other, as Qwen2.5-VL's, in pairs of frames that share a token.
    """
    return Prune(keep, PerFrame(), WholeFrames(), Flat(), EvenlySpaced())
