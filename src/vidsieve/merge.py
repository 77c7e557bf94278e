"""What becomes of the tokens that were not selected: dropped, or folded into one that was."""

from dataclasses import dataclass, replace
from typing import Protocol

from vidsieve import ops
from vidsieve.segment import Segments
from vidsieve.tokens import Reduction, VideoTokens


class Merger(Protocol):
    """Finds a kept token for tokens that a reduction dropped."""

    def __call__(self, tokens: VideoTokens, segments: Segments, reduction: Reduction) -> Reduction: ...


@dataclass(frozen=True)
class NearestKept:
    """Every token is folded into the most similar kept token of its segment; a kept token becomes the mean of all it
    absorbed, each with the same weight (method.md, eq. 11-12). A segment that kept none drops its tokens."""

    def __call__(self, tokens: VideoTokens, segments: Segments, reduction: Reduction) -> Reduction:
        source = ops.nearest_kept(tokens.features, segments.offsets, reduction.kept)
        return replace(reduction, source=source, merges=True)
