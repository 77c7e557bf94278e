"""What is measured of a video's tokens, in one pass, for every part of a method."""

from dataclasses import dataclass

from torch import Tensor

from vidsieve.errors import WrongArgument
from vidsieve.types.segments import Segments

QUANTITIES = frozenset({"norm", "persistence", "similarity", "products"})  # that a part may require,
ORIGINAL_QUANTITIES = frozenset({"norm", "persistence"})  # and a segmenter, which sees the video as it came


@dataclass(frozen=True, eq=False)
class TokenStatistics:
    """What one pass over the features of N tokens measured; None for what no part requires.

    norm: length of each feature vector, (N,), float32 or wider.
    nonfinite: int32 (N,), above 0 where a token holds NaN or inf or has a length out of range, or where the prompt does
    or has: `ops.definitions` has the bits. Measured in every pass.
    persistence: float32, the centred cosine of each token to the one at its place in the previous frame, 0 in the first
    frame; method.md, eq. 1. Always of the video as it came, for a reduction may have dropped that neighbour:
    `VideoTokens.from_original` takes it to the tokens that are left.
    similarity: float32 (N,), mean cosine to the tokens of the prompt.
    products: float32 (parts, N, longest), planes whose sum are the products within segments; None where the selection
    makes its own.
    """

    norm: Tensor | None = None
    nonfinite: Tensor | None = None
    persistence: Tensor | None = None
    similarity: Tensor | None = None
    products: Tensor | None = None

    def required(self, name: str) -> Tensor:
        """The quantity `name`, which must have been measured.

        Raises `WrongArgument` where it was not, because the part that reads it does not declare it.
        """
        value: Tensor | None = getattr(self, name)
        if value is None:
            raise WrongArgument(
                f"{name} was not measured; a part that reads it declares requires = frozenset({{{name!r}}}), and "
                "measure(tokens, {...}) measures it for a part that is called by hand"
            )
        return value


UNMEASURED = TokenStatistics()


@dataclass(frozen=True, eq=False)
class OriginalStatistics:
    """What is known of a video as it came. A reduction hands it on to later reductions of the tokens that it leaves.

    persistence: float32 (N,), None where nothing required it.
    segments: those that were cut, each after the segmenter that cut them.
    """

    persistence: Tensor | None = None
    segments: tuple[tuple[object, Segments], ...] = ()

    def segments_by(self, segmenter: object) -> Segments | None:
        """The segments that this segmenter, or an equal one, cut; None if none did."""
        return next((s for other, s in self.segments if other is segmenter or other == segmenter), None)
