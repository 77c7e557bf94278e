"""FrameFusion: merge along time, then prune by attention."""

from vidsieve.methods.base import check_cost
from vidsieve.methods.compose import Staged
from vidsieve.methods.merge import TemporalMerge
from vidsieve.methods.presets.attended import attended
from vidsieve.registry import register_method


@register_method(keep_of="FLOPs", default_keep=0.3, inside=True)
def framefusion(cost: float = 0.3, similarity: float = 0.6, ratio: float = 0.1) -> Staged:
    """FrameFusion: merge along time in the first layers, then prune by attention to meet a share of the FLOPs.

    Fu et al., "FrameFusion: combining similarity and importance for video token reduction on large vision language
    models", ICCV 2025, arXiv 2501.01986. There, layers merge until one finds less than `ratio` to merge, and the layer
    after that prunes; here layers 0 and 1 merge, if they find as much, and layer 2 prunes. There, merging stops where
    `cost` is met; here all that is alike is merged, and where that is more, less than `cost` is spent: to keep as many
    as `cost` pays for, merge a fixed share, `Staged({0: TemporalMerge(keep=0.3)})`. Merges do not cross cuts, and
    `cost` is in FLOPs of the real layers rather than in tokens times 28.
    """
    check_cost(cost)  # a Staged may do without
    merge = TemporalMerge(similarity, least=ratio)
    return Staged({0: merge, 1: merge, 2: attended(1.0)}, cost)
