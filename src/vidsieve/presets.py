"""Published methods, each as one expression of the same parts. `METHODS` lists them by name."""

from collections.abc import Callable

from vidsieve.budget import MarginalGain, Proportional
from vidsieve.reducer import Prune, Reducer
from vidsieve.relevance import Flat, PromptSimilarity
from vidsieve.segment import PerFrame, SceneCuts, Whole
from vidsieve.selection import ConditionalDPP, EvenlySpaced, MaxMin
from vidsieve.selection import Random as RandomSelector


def vidsieve(keep: float) -> Reducer:
    """Scene-wise determinantal selection with budgets by marginal gain: this library's default.

    Not conditioned on the question: raw prompt similarity in the language model's input space is known to be weak.
    """
    return Prune(keep, SceneCuts(), MarginalGain(), Flat(), ConditionalDPP())


def cdpruner(keep: float) -> Reducer:
    """CDPruner: question-conditioned DPP, here frame by frame and with the prompt in the language model's input space.

    Zhang et al., "Beyond attention or similarity: maximizing conditional diversity for token pruning in MLLMs",
    NeurIPS 2025, arXiv 2506.10967. The paper prunes images and scores relevance with CLIP's text tower.
    """
    return Prune(keep, PerFrame(), Proportional(), PromptSimilarity(), ConditionalDPP())


def divprune(keep: float) -> Reducer:
    """DivPrune: max-min diversity over the whole video.

    Alvar et al., "DivPrune: diversity-based visual token pruning for large multimodal models", CVPR 2025,
    arXiv 2503.02175.
    """
    return Prune(keep, Whole(), Proportional(), Flat(), MaxMin())


def uniform(keep: float) -> Reducer:
    """Every n-th token: the honest floor for any method that looks at the video."""
    return Prune(keep, Whole(), Proportional(), Flat(), EvenlySpaced())


def random(keep: float, seed: int = 0) -> Reducer:
    """A uniformly random subset: the other honest floor."""
    return Prune(keep, Whole(), Proportional(), Flat(), RandomSelector(seed))


METHODS: dict[str, Callable[[float], Reducer]] = {
    method.__name__: method for method in (vidsieve, cdpruner, divprune, uniform, random)
}
