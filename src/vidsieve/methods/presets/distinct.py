"""A method of this library for less than a twentieth of the tokens."""

from vidsieve.methods.base import Reducer
from vidsieve.methods.budget import MarginalGain
from vidsieve.methods.prune import Prune
from vidsieve.methods.relevance import Contrast
from vidsieve.methods.segment import SceneCuts
from vidsieve.methods.selection import DistinctFirst
from vidsieve.registry import register_method


@register_method()
def distinct(keep: float) -> Reducer:
    """The default, but the first picks of a scene prefer what no other scene has: for less than 5 % of the tokens.

    With 5 % and more it answers as the default does, and takes longer: it compares each token with those of all other
    scenes before it picks, so `encode` does not take it (docs/choose.md). Chosen on the development halves of the
    synthetic and the natural suites.
    """
    return Prune(keep, SceneCuts(), MarginalGain(), Contrast(), DistinctFirst())
