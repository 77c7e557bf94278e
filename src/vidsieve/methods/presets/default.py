"""This library's default."""

from typing import TYPE_CHECKING, NoReturn

from vidsieve.methods.base import Reducer
from vidsieve.methods.budget import MarginalGain
from vidsieve.methods.prune import Prune
from vidsieve.methods.relevance import Novelty
from vidsieve.methods.segment import Within
from vidsieve.methods.selection import ConditionalDPP
from vidsieve.registry import register_method

if not TYPE_CHECKING:  # or a name that is not here would be no error to a type checker

    def __getattr__(name: str) -> NoReturn:
        from vidsieve import registry
        from vidsieve.methods import presets

        where = (
            "vidsieve.methods.presets"
            if name in presets.METHODS
            else getattr(registry.ALL.get(name), "__module__", None)
        )
        hint = f"; it is {where}.{name}" if where else ""
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")


@register_method()
def vidsieve(keep: float) -> Reducer:
    """Determinantal selection weighted by what is new at its place, budgets by marginal gain: this library's default.

    Not conditioned on the question: raw prompt similarity in the language model's input space is known to be weak.
    Chosen on the development split of the synthetic needle suite (docs/evaluation.md).
    """
    return Prune(keep, Within(), MarginalGain(), Novelty(), ConditionalDPP())
