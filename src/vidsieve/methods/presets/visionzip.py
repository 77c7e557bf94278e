"""VisionZip: keep the tokens of each frame that are attended to most, and merge the others into a few more."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F

from vidsieve import ops
from vidsieve.methods.base import Reducer
from vidsieve.methods.budget import Proportional
from vidsieve.methods.presets.attention import OwnAttention
from vidsieve.methods.presets.fixed import FixedSize
from vidsieve.methods.relevance import Relevance
from vidsieve.methods.segment import PerFrame
from vidsieve.registry import register_method
from vidsieve.types.reduction import Reduction
from vidsieve.types.statistics import TokenStatistics
from vidsieve.types.tokens import Prompt, VideoTokens


@dataclass(frozen=True)
class VisionZip(FixedSize):
    """Keeps dominant and contextual tokens in each frame, and merges the others into the contextual ones.

    contextual: the fraction of the budget for contextual tokens. They are evenly spaced among the tokens that are not
    dominant, and every other of these is merged into the most similar of them.
    attention: its highest scores are the dominant tokens.
    """

    part_fields: ClassVar[tuple[str, ...]] = ("attention",)

    contextual: float = 10 / 64
    attention: Relevance = OwnAttention()

    def _reduce(self, tokens: VideoTokens, stats: TokenStatistics, prompt: Prompt | None, total: int) -> Reduction:
        score = self.attention(tokens, stats, prompt)
        segments = PerFrame()(tokens, stats)
        budget = Proportional()(tokens, stats, segments, total)
        x = F.normalize(tokens.features.float(), dim=1)
        dominant = (budget - (self.contextual * budget).round().long()).clamp(min=budget.clamp(max=1))
        order = ops.top(ops.TopProblem(score, segments.offsets, dominant))
        kept = order >= 0
        target = torch.arange(len(tokens), device=x.device)
        bounds = segments.offsets.tolist()
        for frame, count in enumerate((budget - dominant).tolist()):
            rest = bounds[frame] + (~kept[bounds[frame] : bounds[frame + 1]]).nonzero()[:, 0]  # (n,)
            if not count:
                target[rest] = -1
                continue
            place = torch.arange(count, device=x.device) * len(rest) // count
            centres = rest[place]
            kept[centres] = True
            target[rest] = centres[(x[rest] @ x[centres].mT).argmax(1)]
            target[centres] = centres
        reduction = Reduction.select(kept.nonzero()[:, 0], len(tokens))
        source = torch.where(target < 0, -1, reduction.assigned_to[target.clamp(min=0)])
        return replace(reduction, assigned_to=source, merges=True, offsets=segments.offsets, budget=budget)


@register_method()
def visionzip(keep: float) -> Reducer:
    """VisionZip: dominant tokens by attention, and contextual ones that average the rest, frame by frame.

    Yang et al., "VisionZip: longer is better but not necessary in vision language models", CVPR 2025,
    arXiv 2412.04467; 54 dominant and 10 contextual tokens in 64, as there. What differs: similarity is that of the
    tokens, not of the tower's keys; the attention is a substitute unless it is passed.
    """
    return VisionZip(keep)
