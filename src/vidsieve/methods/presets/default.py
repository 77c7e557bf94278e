"""The default method of this library."""

from vidsieve.methods.base import Reducer
from vidsieve.methods.budget import MarginalGain
from vidsieve.methods.prune import Prune
from vidsieve.methods.relevance import Novelty
from vidsieve.methods.segment import Within
from vidsieve.methods.selection import ConditionalDPP
from vidsieve.registry import register_method


@register_method()
def vidsieve(keep: float) -> Reducer:
    """Determinantal selection weighted by what is new at its place, budgets by marginal gain: this library's default.

    Not conditioned on the question: raw prompt similarity in the language model's input space is known to be weak.
    Chosen on the development split of the synthetic needle suite (docs/evaluation.md).
    """
    return Prune(keep, Within(), MarginalGain(), Novelty(), ConditionalDPP())
