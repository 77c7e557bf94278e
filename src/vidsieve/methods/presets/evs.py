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
    """Scores the change at a place since the previous frame, (1 - cos(x_i, x_(i - P))) / 2, 1 in the first: (N,)."""

    def __call__(self, tokens: VideoTokens, stats: TokenStatistics, prompt: Prompt | None) -> Tensor:
        if not tokens.regular:
            raise ValueError(f"EVS compares equal places, so every frame needs the same number of tokens: {tokens}")
        unit = F.normalize(tokens.features.float(), dim=1).view(len(tokens.frames), -1, tokens.features.shape[1])
        change = (1 - (unit[1:] * unit[:-1]).sum(2)) / 2
        return torch.cat((torch.ones_like(unit[:1, :, 0]), change)).flatten().clamp(0, 1)


@register_method()
def evs(keep: float) -> Reducer:
    """EVS: the tokens that changed most since the previous frame, of the whole video; the first frame stays.

    Bagrov et al., "Efficient video sampling: pruning temporally redundant tokens for faster VLM inference",
    arXiv 2510.14624. What differs: the published rule never keeps less than one frame's worth; here the count is exact,
    and below one frame the first frame is kept in raster order.
    """
    return Prune(keep, Whole(), Proportional(), Change(), TopRelevance())
