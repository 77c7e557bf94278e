"""FastV: prune once, by attention."""

from vidsieve.methods.compose import Staged
from vidsieve.methods.presets.attended import attended
from vidsieve.registry import register_method


@register_method(default_keep=0.5, inside=True)
def fastv(keep: float = 0.5, layer: int = 2) -> Staged:
    """FastV: after an early layer, keep the tokens that the last token of the prompt attends to most.

    Chen et al., "An image is worth 1/2 tokens after layer 2: plug-and-play inference acceleration for large
    vision-language models", ECCV 2024, arXiv 2403.06764.
    """
    return Staged({layer: attended(keep)})
