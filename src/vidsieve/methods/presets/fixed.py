"""What the reducers of a fixed size share, that do not fit the four decisions of `Prune`."""

from abc import abstractmethod
from dataclasses import dataclass, replace

from vidsieve.methods.base import Reducer, check_given, check_keep, kept_count, refuse_non_finite, unseen
from vidsieve.methods.prune import Prune
from vidsieve.telemetry.timing import stage
from vidsieve.types.reduction import Reduction
from vidsieve.types.tokens import Prompt, VideoTokens


@dataclass(frozen=True)
class FixedSize(Reducer):
    """Exactly round(keep * N) tokens stay."""

    keep: float

    def __post_init__(self) -> None:
        check_keep(self.keep)

    def reduce(self, tokens: VideoTokens, prompt: Prompt | None = None) -> Reduction:
        check_given(tokens, prompt)
        total = min(kept_count(self.keep, tokens.produced), len(tokens))
        if total == len(tokens):
            return Prune(self.keep).reduce(tokens, prompt)  # the identity, and the look for NaN
        refuse_non_finite(tokens)
        with stage("select"):
            return replace(self._reduce(tokens, prompt, total), bad=unseen(tokens))

    @abstractmethod
    def _reduce(self, tokens: VideoTokens, prompt: Prompt | None, total: int) -> Reduction:
        """`reduce`, of finite tokens of which `total`, fewer than all, stay."""
