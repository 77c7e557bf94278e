"""VidCom2: keep tokens far from the means of the video and of their frame, more of them in unusual frames."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vidsieve import ops
from vidsieve.methods.base import Reducer
from vidsieve.methods.prune import Prune
from vidsieve.methods.relevance import min_max
from vidsieve.methods.segment import PerFrame
from vidsieve.methods.selection import TopRelevance
from vidsieve.registry import register_method
from vidsieve.types.segments import Segments
from vidsieve.types.statistics import TokenStatistics
from vidsieve.types.tokens import Prompt, VideoTokens

WIDTHS = tuple(2.0**k for k in range(-3, 2))  # of the Gaussians
TEMPERATURE = 0.01  # of the softmax over frames


def closeness(tokens: VideoTokens) -> tuple[Tensor, Tensor]:
    """Compute the closeness of each token to the mean of the video, and to that of its frame: (N,) each.

    Sum over the widths a of exp(-|u - m|^2 / 2a), u the unit vectors of the half of the features that vary least.
    """
    x = tokens.features.float()
    calm = x.var(dim=0, unbiased=False).argsort(stable=True)[: max(1, x.shape[1] // 2)]
    unit = F.normalize(x[:, calm], dim=1)
    means = frame_mean(unit, tokens)[tokens.frame]
    video, frame = ((unit - mean).square().sum(1) for mean in (unit.mean(0), means))
    near, nearer = (torch.stack([torch.exp(-d / (2 * a)) for a in WIDTHS]).sum(0) for d in (video, frame))
    return near, nearer


def frame_mean(x: Tensor, tokens: VideoTokens) -> Tensor:
    """Average x (N, ...) over each frame: (T, ...)."""
    sums = x.new_zeros(len(tokens.frames), *x.shape[1:]).index_add_(0, tokens.frame, x)
    return sums / tokens.offsets.diff().view(-1, *[1] * (x.ndim - 1))


@dataclass(frozen=True)
class Outlying:
    """Scores a token by minus its closeness to the video plus that to its frame: (N,) in (0, 1]."""

    def __call__(self, tokens: VideoTokens, stats: TokenStatistics, prompt: Prompt | None) -> Tensor:
        video, frame = closeness(tokens)
        return min_max(-(video + frame))


@dataclass(frozen=True)
class Uniqueness:
    """Gives a frame the share R (1 + s_t - 1 / T), s the softmax over frames of minus their closeness to the video."""

    def __call__(self, tokens: VideoTokens, stats: TokenStatistics, segments: Segments, total: int) -> Tensor:
        score = -frame_mean(closeness(tokens)[0], tokens)  # (T,)
        share = 1 + torch.softmax(score / TEMPERATURE, 0) - 1 / len(score)
        return ops.apportion(ops.ApportionProblem(share * segments.lengths, segments.offsets, total))


@register_method()
def vidcom2(keep: float) -> Reducer:
    """VidCom2: tokens far from the mean of the video and of their frame, with more of them in unusual frames.

    Liu et al., "Video compression commander: plug-and-play inference acceleration for video large language models",
    EMNLP 2025, arXiv 2505.14454. What differs: shares are apportioned to the exact count, and every frame keeps at
    least one token where the count allows. The published code rounds each share by itself and cuts it off at the size
    of the frame, so it may keep more or less than it was asked for: then a frame here keeps one token more or less, or
    what a full frame could not take. Where its counts add up, the same tokens stay.
    """
    return Prune(keep, PerFrame(), Uniqueness(), Outlying(), TopRelevance())
