"""How many tokens each segment may keep. Budgets always sum to the total and never exceed a segment.

Every non-empty segment gets at least one token where the total allows.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from vidsieve import ops
from vidsieve.checks import check_number
from vidsieve.errors import BudgetError
from vidsieve.types.segments import Segments
from vidsieve.types.statistics import TokenStatistics
from vidsieve.types.tokens import VideoTokens


class Budget(Protocol):
    """Shares `total` kept tokens among the segments: int64 (S,)."""

    def __call__(self, tokens: VideoTokens, stats: TokenStatistics, segments: Segments, total: int) -> Tensor: ...


def _apportion(
    weights: Tensor | None, tokens: VideoTokens, segments: Segments, total: int, floor: float = 0.0
) -> Tensor:
    if not 0 <= total <= len(tokens):
        raise BudgetError(f"cannot keep {total} of {len(tokens)} tokens")
    return ops.apportion(ops.ApportionProblem(weights, segments.offsets, total, floor, tokens.videos))


@dataclass(frozen=True)
class Proportional:
    """A segment's share is its length."""

    batches: ClassVar[bool] = True
    captures: ClassVar[bool] = True
    chunks: ClassVar[bool] = True

    floor: ClassVar[float] = 0.0

    def gains(self, tokens: VideoTokens, stats: TokenStatistics, segments: Segments) -> None:
        """Nothing: lengths alone weigh."""

    def __call__(self, tokens: VideoTokens, stats: TokenStatistics, segments: Segments, total: int) -> Tensor:
        return _apportion(None, tokens, segments, total)


@dataclass(frozen=True)
class MarginalGain:
    """A segment's share is what it adds to the frames before it: the sum over its tokens of 1 - persistence.

    A still scene adds its first frame and little more, however long it lasts (method.md, eq. 2). The idea of a budget
    by marginal gain is that of MMG-Vid (Ma et al. 2025, arXiv 2508.21044); this measure of the gain is ours.

    floor: the part of its share by length, of what remains after one token for each, that a segment gets whatever
    changes in it, in [0, 1]: so what stands still is not starved by what moves; eq. 3.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"persistence"})
    batches: ClassVar[bool] = True
    captures: ClassVar[bool] = True
    chunks: ClassVar[bool] = True

    floor: float = 0.6

    def __post_init__(self) -> None:
        check_number("floor is a part of the share by length, in [0, 1]", self.floor, 0, 1)

    def gains(self, tokens: VideoTokens, stats: TokenStatistics, segments: Segments) -> Tensor:
        """Weigh each segment by what it adds to the frames before it: float32 (S,), eq. 2."""
        persistence = stats.required("persistence")
        return ops.novelty(ops.NoveltyProblem(persistence, segments.offsets, tokens.original_index))

    def __call__(self, tokens: VideoTokens, stats: TokenStatistics, segments: Segments, total: int) -> Tensor:
        return _apportion(self.gains(tokens, stats, segments), tokens, segments, total, self.floor)
