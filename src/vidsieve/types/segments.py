"""Segments: contiguous runs of a video's tokens."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Segments:
    """S contiguous runs of tokens.

    offsets: int64 (S + 1,), segment s is the tokens offsets[s] .. offsets[s + 1] - 1; equal neighbours, empty segment.
    longest: a bound on the tokens of one segment, known on the host.
    """

    offsets: Tensor
    longest: int

    def __len__(self) -> int:
        return self.offsets.shape[0] - 1

    @property
    def lengths(self) -> Tensor:
        """Tokens in each segment: int64 (S,)."""
        return self.offsets.diff()
