"""DivPrune: the most diverse tokens."""

from typing import TYPE_CHECKING, NoReturn

from vidsieve.methods.base import Reducer
from vidsieve.methods.budget import Proportional
from vidsieve.methods.prune import Prune
from vidsieve.methods.relevance import Flat
from vidsieve.methods.segment import Whole
from vidsieve.methods.selection import MaxMin
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


@register_method(grows="square")
def divprune(keep: float) -> Reducer:
    """DivPrune: max-min diversity over the whole video.

    Alvar et al., "DivPrune: diversity-based visual token pruning for large multimodal models", CVPR 2025,
    arXiv 2503.02175.
    """
    return Prune(keep, Whole(), Proportional(), Flat(), MaxMin())
