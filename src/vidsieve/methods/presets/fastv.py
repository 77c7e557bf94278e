"""FastV: prune once, by attention."""

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
def fastv(keep: float = 0.5, layer: int = 2) -> Staged:
    """FastV: after an early layer, keep the tokens that the last token of the prompt attends to most.

    Chen et al., "An image is worth 1/2 tokens after layer 2: plug-and-play inference acceleration for large
    vision-language models", ECCV 2024, arXiv 2403.06764.
    """
    return Staged({layer: attended(keep)})
