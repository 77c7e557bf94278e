"""The baselines that any method has to beat that looks at the video."""

from vidsieve.methods.base import Reducer
from vidsieve.methods.budget import Proportional
from vidsieve.methods.prune import Prune
from vidsieve.methods.relevance import Flat
from vidsieve.methods.segment import Whole
from vidsieve.methods.selection import EvenlySpaced
from vidsieve.methods.selection import Random as RandomSelector
from vidsieve.registry import register_method


@register_method()
def uniform(keep: float) -> Reducer:
    """Every n-th token: the baseline for any method that looks at the video."""
    return Prune(keep, Whole(), Proportional(), Flat(), EvenlySpaced())


@register_method()
def random(keep: float, seed: int = 0) -> Reducer:
    """A uniformly random subset: the other baseline."""
    return Prune(keep, Whole(), Proportional(), Flat(), RandomSelector(seed))
