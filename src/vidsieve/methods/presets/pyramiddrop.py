"""PyramidDrop: prune at each quarter of the depth, by attention."""

from vidsieve.methods.compose import Staged
from vidsieve.methods.presets.attended import attended
from vidsieve.registry import register_method


@register_method(default_keep=0.5, inside=True)
def pyramiddrop(keep: float = 0.5) -> Staged:
    """PyramidDrop: at each quarter of the depth, keep the share `keep` that the last token attends to most.

    Xing et al., "PyramidDrop: accelerating your large vision-language models via pyramid visual redundancy reduction",
    CVPR 2025, arXiv 2410.17247.
    """
    return Staged({0.25: attended(keep), 0.5: attended(keep**2), 0.75: attended(keep**3)})
