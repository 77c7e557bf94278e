"""The default method of this library."""

from vidsieve.methods.base import Reducer
from vidsieve.methods.budget import MarginalGain
from vidsieve.methods.prune import Prune
from vidsieve.methods.relevance import Contrast
from vidsieve.methods.segment import SceneCuts
from vidsieve.methods.selection import ConditionalDPP
from vidsieve.registry import register_method


@register_method()
def vidsieve(keep: float) -> Reducer:
    """Determinantal selection in each scene, budgets by marginal gain above a floor: this library's default.

    The floor, a part of each scene's share by length, keeps what stands still from being starved; what changes in a
    frame that stands still weighs a little more. Not conditioned on the question: raw prompt similarity in the language
    model's input space is known to be weak. Chosen on the development halves of the synthetic and the natural suites
    (docs/evaluation.md).
    """
    return Prune(keep, SceneCuts(), MarginalGain(), Contrast(), ConditionalDPP())
