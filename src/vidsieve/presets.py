"""Published methods, each as one expression of the same parts.

`METHODS` lists by name those that reduce before the language model, `STAGED` those that reduce inside it.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from vidsieve.budget import MarginalGain, Proportional
from vidsieve.merge import TemporalMerge
from vidsieve.reducer import Prune, Reducer, Staged, check_cost, check_keep
from vidsieve.relevance import Flat, Novelty, PromptAttention, PromptSimilarity
from vidsieve.segment import PerFrame, SceneCuts, Whole, Within
from vidsieve.selection import ConditionalDPP, EvenlySpaced, MaxMin, TopRelevance
from vidsieve.selection import Random as RandomSelector


def vidsieve(keep: float) -> Reducer:
    """Determinantal selection weighted by what is new at its place, budgets by marginal gain: this library's default.

    Not conditioned on the question: raw prompt similarity in the language model's input space is known to be weak.
    Chosen on the development split of the synthetic needle suite (docs/evaluation.md).
    """
    return Prune(keep, Within(), MarginalGain(), Novelty(), ConditionalDPP())


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


def framefusion(cost: float = 0.3, similarity: float = 0.6, ratio: float = 0.1) -> Staged:
    """FrameFusion: merge along time in the first layers, then prune by attention to meet a share of the FLOPs.

    Fu et al., "FrameFusion: combining similarity and importance for video token reduction on large vision language
    models", ICCV 2025, arXiv 2501.01986. There, layers merge until one finds less than `ratio` to merge, and the layer
    after that prunes; here layers 0 and 1 merge, if they find as much, and layer 2 prunes. Merges do not cross cuts,
    and `cost` is in FLOPs of the real layers rather than in tokens times 28.
    """
    check_cost(cost)  # a Staged may do without
    merge = TemporalMerge(similarity, least=ratio)
    return Staged({0: merge, 1: merge, 2: _attended(1.0)}, cost)


def hieravid(keep: float = 0.3, similarity: float = 0.8) -> Staged:
    """HieraVid: merge along time, then select by segment: `keep` at 1/4 of the depth, half of it at 1/2, 1/4 at 3/4.

    Guo et al., "HieraVid: hierarchical token pruning for fast video large language models", arXiv 2604.01881. Its
    hierarchy of segment, frame and layer in the parts of this library: merges within segments at 0, and at 1/4, 1/2 and
    3/4 of the depth a determinantal selection by segment, weighted by the question's attention, of `keep`, half and a
    quarter of it. Schedule and thresholds are ours, and merges are along time only.
    """
    check_keep(keep)
    stages: dict[int | float, Reducer] = {0: TemporalMerge(similarity)}
    for i, depth in enumerate((0.25, 0.5, 0.75)):
        stages[depth] = Prune(keep / 2**i, SceneCuts(), MarginalGain(), PromptAttention(), ConditionalDPP())
    return Staged(stages)


def fastv(keep: float = 0.5, layer: int = 2) -> Staged:
    """FastV: after an early layer, keep the tokens that the last token of the prompt attends to most.

    Chen et al., "An image is worth 1/2 tokens after layer 2: plug-and-play inference acceleration for large
    vision-language models", ECCV 2024, arXiv 2403.06764.
    """
    return Staged({layer: _attended(keep)})


def pyramiddrop(keep: float = 0.5) -> Staged:
    """PyramidDrop: at each quarter of the depth, keep the share `keep` that the last token attends to most.

    Xing et al., "PyramidDrop: accelerating your large vision-language models via pyramid visual redundancy reduction",
    CVPR 2025, arXiv 2410.17247.
    """
    return Staged({0.25: _attended(keep), 0.5: _attended(keep**2), 0.75: _attended(keep**3)})


def _attended(keep: float) -> Prune:
    return Prune(keep, Whole(), Proportional(), PromptAttention("last"), TopRelevance())


METHODS: dict[str, Callable[[float], Reducer]] = {
    method.__name__: method for method in (vidsieve, cdpruner, divprune, uniform, random)
}
STAGED: dict[str, Callable[[float], Staged]] = {
    method.__name__: method for method in (framefusion, hieravid, fastv, pyramiddrop)
}

if not TYPE_CHECKING:  # or a name that is not here would be no error to a type checker

    def __getattr__(name: str) -> NoReturn:
        from vidsieve import _methods, peers

        where = "vidsieve.peers" if name in peers.METHODS else getattr(_methods.ALL.get(name), "__module__", None)
        hint = f"; it is {where}.{name}" if where else ""
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")
