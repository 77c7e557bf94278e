"""PyramidDrop: prune at each quarter of the depth, by attention."""

from typing import TYPE_CHECKING, NoReturn

from vidsieve.methods.compose import Staged
from vidsieve.methods.presets.attended import attended
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


@register_method(default_keep=0.5, inside=True)
def pyramiddrop(keep: float = 0.5) -> Staged:
    """PyramidDrop: at each quarter of the depth, keep the share `keep` that the last token attends to most.

    Xing et al., "PyramidDrop: accelerating your large vision-language models via pyramid visual redundancy reduction",
    CVPR 2025, arXiv 2410.17247.
    """
    return Staged({0.25: attended(keep), 0.5: attended(keep**2), 0.75: attended(keep**3)})
