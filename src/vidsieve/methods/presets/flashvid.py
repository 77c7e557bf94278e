"""FlashVID: keep tokens that are attended to and differ; merge the others in trees from frame to frame."""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from vidsieve.methods.base import Reducer
from vidsieve.methods.budget import Proportional
from vidsieve.methods.presets.attention import OwnAttention
from vidsieve.methods.presets.fixed import FixedSize
from vidsieve.methods.relevance import Relevance, min_max
from vidsieve.methods.segment import PerFrame
from vidsieve.registry import register_method
from vidsieve.types.reduction import Reduction
from vidsieve.types.statistics import TokenStatistics
from vidsieve.types.tokens import Prompt, VideoTokens


@dataclass(frozen=True)
class FlashVid(FixedSize):
    """Selects a part of each frame's budget by attention and diversity, and merges the other tokens in trees.

    selected: that part, as a fraction of the budget; the rest of it is for the roots of trees.
    attention: scales the distances, together with the closeness of a token to the mean of its scene.
    cut: a scene ends where the cosine of neighbouring frames' means falls below this.
    link: a token joins the most similar token of the previous frame above this cosine.
    """

    part_fields: ClassVar[tuple[str, ...]] = ("attention",)

    selected: float = 0.7
    cut: float = 0.9
    link: float = 0.8
    attention: Relevance = OwnAttention()

    def _reduce(self, tokens: VideoTokens, stats: TokenStatistics, prompt: Prompt | None, total: int) -> Reduction:
        unit = F.normalize(tokens.features.float(), dim=1)
        segments = PerFrame()(tokens, stats)
        budget = Proportional()(tokens, stats, segments, total)
        bounds = segments.offsets.tolist()
        scene = self._scenes(tokens, bounds)
        weight = min_max(self.attention(tokens, stats, prompt)) * self._event(tokens, scene[tokens.frame])
        kept = torch.zeros(len(tokens), dtype=torch.bool, device=unit.device)
        for (begin, end), k in zip(pairwise(bounds), (self.selected * budget).ceil().long().tolist(), strict=True):
            kept[begin + diverse(unit[begin:end], weight[begin:end], k)] = True
        parent = self._trees(unit, kept, bounds, scene.tolist(), total)
        return replace(rooted(parent, kept, total), offsets=segments.offsets, budget=None)

    def _scenes(self, tokens: VideoTokens, bounds: list[int]) -> Tensor:
        """Number the scene of each frame: int64 (T,)."""
        means = torch.stack([tokens.features[a:b].float().mean(0) for a, b in pairwise(bounds)])
        alike = F.cosine_similarity(means[1:], means[:-1], dim=1, eps=1e-30)
        return F.pad((alike < self.cut).long().cumsum(0), (1, 0))

    def _event(self, tokens: VideoTokens, scene: Tensor) -> Tensor:
        """Score the similarity of each token to the mean of its scene, in (0, 1]: (N,)."""
        x = tokens.features.float()
        # Added up in a fixed order, so that near-ties fall alike on every run.
        means = torch.segment_reduce(x, "mean", lengths=torch.bincount(scene))
        return min_max(F.cosine_similarity(x, means[scene], dim=1, eps=1e-30))

    def _trees(self, unit: Tensor, kept: Tensor, bounds: list[int], scene: list[int], total: int) -> Tensor:
        """Find the token of the previous frame that each token joins, itself if none: int64 (N,)."""
        n = len(unit)
        parent = torch.arange(n, device=unit.device)
        best = torch.full((n,), -torch.inf, device=unit.device)
        joins = parent.clone()
        for frame in range(1, len(bounds) - 1):
            before, begin, end = bounds[frame - 1 : frame + 2]
            if scene[frame] != scene[frame - 1]:
                continue
            cosine = (unit[begin:end] @ unit[before:begin].mT).masked_fill(kept[before:begin], -torch.inf)
            most, index = cosine.max(1)
            best[begin:end] = most.masked_fill(kept[begin:end], -torch.inf)
            joins[begin:end] = before + index
        # No more may join than leaves enough roots for the budget: of those above `link`, the most similar ones.
        first = best.argsort(descending=True, stable=True)[: n - total]
        first = first[best[first] > self.link]
        parent[first] = joins[first]
        return parent


def diverse(unit: Tensor, weight: Tensor, k: int) -> Tensor:
    """Pick k of the unit vectors (n, D) that are far apart, by (1 - cosine) times the candidate's weight (n,).

    Greedy max-min: first the token that is farthest from its nearest neighbour, then always the one that is farthest
    from those picked. The weight of what it is compared with does not count. Returns indices (k,).
    """
    distance = (1 - unit @ unit.mT).clamp(min=0) * weight  # [i, j]: of i from the candidate j
    nearest = distance.clone().fill_diagonal_(torch.inf).amin(0) if len(unit) > 1 else torch.zeros(1)
    picks = torch.empty(k, dtype=torch.int64, device=unit.device)
    away = nearest.to(unit.device)
    for step in range(k):
        pick = away.argmax()
        picks[step] = pick
        away = distance[pick].clone() if step == 0 else torch.minimum(away, distance[pick])
        away[picks[: step + 1]] = -torch.inf
    return picks


def rooted(parent: Tensor, kept: Tensor, total: int) -> Reduction:
    """Merge every tree into its root, and keep `total` roots: those `kept` (N,) already, then of the largest trees."""
    root = parent
    while not torch.equal(further := root[root], root):
        root = further
    n = len(parent)
    size = torch.bincount(root, minlength=n).float().masked_fill((root != torch.arange(n, device=root.device)), -1)
    size[kept] = n + 1
    kept = size.argsort(descending=True, stable=True)[:total].sort().values
    reduction = Reduction.select(kept, n)
    return replace(reduction, assigned_to=reduction.assigned_to[root], merges=True)


@register_method()
def flashvid(keep: float) -> Reducer:
    """FlashVID: attention-and-diversity selection in each frame, and trees of similar tokens through the frames.

    Fan et al., "FlashVID: efficient video large language models via training-free tree-based spatiotemporal token
    merging", ICLR 2026. What differs: the count is exact, so where trees are too many the largest stay (the paper
    clusters them by density); its last step, attention inside the language model, is left out; the attention is a
    substitute unless it is passed. The published code cuts every video into at least eight scenes and here scenes end
    where frames differ; there the weights are the attention times the product with the scene's mean, here both factors
    are brought to (0, 1] first, so that none is negative.
    """
    return FlashVid(keep)
