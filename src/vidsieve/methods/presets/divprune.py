"""DivPrune: keep the most diverse tokens."""

from vidsieve.methods.base import Reducer
from vidsieve.methods.budget import Proportional
from vidsieve.methods.prune import Prune
from vidsieve.methods.relevance import Flat
from vidsieve.methods.segment import Whole
from vidsieve.methods.selection import MaxMin
from vidsieve.registry import register_method


@register_method(grows="square")
def divprune(keep: float) -> Reducer:
    """DivPrune: max-min diversity over the whole video.

    Alvar et al., "DivPrune: diversity-based visual token pruning for large multimodal models", CVPR 2025,
    arXiv 2503.02175.
    """
    return Prune(keep, Whole(), Proportional(), Flat(), MaxMin())
