"""EVS: drop tokens that did not change since the previous frame."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vidsieve.methods.base import Reducer
from vidsieve.methods.budget import Proportional
from vidsieve.methods.prune import Prune
from vidsieve.methods.segment import Whole
from vidsieve.methods.selection import TopRelevance
from vidsieve.registry import register_method
from vidsieve.types.statistics import TokenStatistics
from vidsieve.types.tokens import Prompt, VideoTokens


@dataclass(frozen=True)
class Change:
    """Scores the change at a place since the previous frame, (1 - cos(x_i, x_(i - P))) / 4, 1 in the first: (N,).

    A quarter, so that no change, however rounded, comes before the first frame; of equal frames it is 0 but for
    rounding.
    """

    def __call__(self, tokens: VideoTokens, stats: TokenStatistics, prompt: Prompt | None) -> Tensor:
        if not tokens.regular:
            raise ValueError(f"EVS compares equal places, so every frame needs the same number of tokens: {tokens}")
        x = tokens.features.float().view(len(tokens.frames), -1, tokens.features.shape[1])
        change = (1 - F.cosine_similarity(x[1:], x[:-1], dim=2, eps=1e-30)) / 4
        return torch.cat((torch.ones_like(x[:1, :, 0]), change)).flatten()


@register_method()
def evs(keep: float) -> Reducer:
    """EVS: the tokens that changed most since the previous frame, of the whole video; the first frame stays.

    Bagrov et al., "Efficient video sampling: pruning temporally redundant tokens for faster VLM inference",
    arXiv 2510.14624. From one frame's worth on, these are the tokens that transformers' `nemotron_h_omni` keeps in
    float32. What differs: the published rule never keeps less than one frame's worth; here the count is exact, and
    below one frame the first frame is kept in raster order. The published code rounds cosines to the features' dtype,
    so in float16 and bfloat16 it does not tell small changes apart; here they are float32.
    """
    return Prune(keep, Whole(), Proportional(), Change(), TopRelevance())
