"""The base of reducers with exact counts that do not fit the four decisions of `Prune`."""

from abc import abstractmethod
from dataclasses import dataclass, replace

from vidsieve.methods.base import (
    Reducer,
    check_given,
    check_keep,
    kept_count,
    pending_nonfinite,
    raise_if_nonfinite,
    requires_of,
)
from vidsieve.methods.measure import identity, measure
from vidsieve.telemetry.timing import timed
from vidsieve.types.reduction import Reduction
from vidsieve.types.statistics import TokenStatistics
from vidsieve.types.tokens import Prompt, VideoTokens


@dataclass(frozen=True)
class FixedSize(Reducer):
    """Keeps exactly round(keep * N) tokens, and at least one. Raises `ValueError` for a keep outside (0, 1]."""

    keep: float

    def __post_init__(self) -> None:
        check_keep(self.keep)

    def reduce(self, tokens: VideoTokens, prompt: Prompt | None = None) -> Reduction:
        check_given(tokens, prompt)
        total = min(kept_count(self.keep, tokens.original_count), len(tokens))
        if total == len(tokens):
            return identity(tokens)
        stats = measure(tokens, requires_of(self), prompt)
        raise_if_nonfinite(stats, prompt)
        with timed("select"):
            return replace(
                self._reduce(tokens, stats, prompt, total), nonfinite=pending_nonfinite(stats.required("nonfinite"))
            )

    @abstractmethod
    def _reduce(self, tokens: VideoTokens, stats: TokenStatistics, prompt: Prompt | None, total: int) -> Reduction:
        """Reduce finite tokens to `total`, which is fewer than all."""
