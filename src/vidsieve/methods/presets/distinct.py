"""A method of this library for budgets of a few hundredths."""

from vidsieve.methods.base import Reducer
from vidsieve.methods.budget import MarginalGain
from vidsieve.methods.prune import Prune
from vidsieve.methods.relevance import Contrast
from vidsieve.methods.segment import SceneCuts
from vidsieve.methods.selection import DistinctFirst
from vidsieve.registry import register_method


@register_method()
def distinct(keep: float) -> Reducer:
    """The default, but the first picks of a scene prefer what no other scene has: for keep=0.02 to 0.05.

    With 10 % and more it keeps nearly what the default does. It looks at all scenes before it picks, so `encode` does
    not take it (docs/choose.md). Chosen on the development halves of the synthetic and the natural suites.
    """
    return Prune(keep, SceneCuts(), MarginalGain(), Contrast(), DistinctFirst())
