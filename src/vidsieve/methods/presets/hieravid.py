"""HieraVid: merge along time, then select by segment at three depths."""

from vidsieve.methods.base import Reducer, check_keep
from vidsieve.methods.budget import MarginalGain
from vidsieve.methods.compose import Staged
from vidsieve.methods.merge import TemporalMerge
from vidsieve.methods.prune import Prune
from vidsieve.methods.relevance import PromptAttention
from vidsieve.methods.segment import SceneCuts
from vidsieve.methods.selection import ConditionalDPP
from vidsieve.registry import register_method


@register_method(default_keep=0.3, inside=True)
def hieravid(keep: float = 0.3, similarity: float = 0.8) -> Staged:
    """HieraVid: merge along time, then select by segment: `keep` at 1/4 of the depth, half of it at 1/2, 1/4 at 3/4.

    Guo et al., "HieraVid: hierarchical token pruning for fast video large language models", arXiv 2604.01881. Its
    hierarchy of segment, frame and layer in the parts of this library: merges within segments at 0, and at 1/4, 1/2 and
    3/4 of the depth a determinantal selection by segment, weighted by the question's attention, of `keep`, half and a
    quarter of it. Schedule and thresholds are this library's, and merges are along time only.
    """
    check_keep(keep)
    stages: dict[int | float, Reducer] = {0: TemporalMerge(similarity)}
    for i, depth in enumerate((0.25, 0.5, 0.75)):
        stages[depth] = Prune(keep / 2**i, SceneCuts(), MarginalGain(), PromptAttention(), ConditionalDPP())
    return Staged(stages)
