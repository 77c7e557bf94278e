"""A method of this library for what is shown for a moment in footage that stands still."""

from vidsieve.methods.base import Reducer
from vidsieve.methods.budget import MarginalGain
from vidsieve.methods.prune import Prune
from vidsieve.methods.relevance import Novelty
from vidsieve.methods.segment import Within
from vidsieve.methods.selection import MMR
from vidsieve.registry import register_method


@register_method()
def moments(keep: float) -> Reducer:
    """What comes and goes first: for a camera that stands still, and questions about what is seen for a second.

    A trade (MMR) between novelty and distance to what is kept, in runs of frames that get tokens by what changes in
    them. Where a camera moves, or a question is about what stands still, the default keeps more of what is asked for
    (docs/choose.md). Chosen on the development half of the synthetic suite `needles`.
    """
    return Prune(keep, Within(), MarginalGain(0), Novelty(0.5), MMR(0.2))
