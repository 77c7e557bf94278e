"""CDPruner: select by a DPP conditioned on the question."""

from vidsieve.methods.base import Reducer
from vidsieve.methods.budget import Proportional
from vidsieve.methods.prune import Prune
from vidsieve.methods.relevance import PromptSimilarity
from vidsieve.methods.segment import PerFrame
from vidsieve.methods.selection import ConditionalDPP
from vidsieve.registry import register_method


@register_method()
def cdpruner(keep: float) -> Reducer:
    """CDPruner: question-conditioned DPP, here frame by frame and with the prompt in the language model's input space.

    Zhang et al., "Beyond attention or similarity: maximizing conditional diversity for token pruning in MLLMs",
    NeurIPS 2025, arXiv 2506.10967. The paper prunes images and scores relevance with CLIP's text tower.
    """
    return Prune(keep, PerFrame(), Proportional(), PromptSimilarity(), ConditionalDPP())
