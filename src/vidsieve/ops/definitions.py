"""What belongs to the meaning of the operations, whichever implementation runs: limits, and tuples of tensors."""

from typing import NamedTuple

from torch import Tensor

# A token whose squared distance to the span of the picks is below this share of its squared length adds nothing that
# bf16 features could tell from rounding: it is exhausted, and ranks behind every token that is not.
EXHAUSTED = 1e-5
# Scores within this share of the best are a tie, and a tie goes to the earlier token: so rounding cannot decide between
# duplicates. A share, because relevance may be small everywhere and enters squared.
TIE = 1e-6
# What centring leaves of a token that equals the mean is rounding, not a direction: below this share of the mean's
# length it counts as zero.
NOISE = 1e-5
# A token is zero or of a length in between: float32 then holds its square, that of a difference of two, and that of
# what NOISE leaves of it, features wide as they are. `bad` says which are not, and which hold NaN or inf.
LEAST, MOST = 1e-12, 1e18
NON_FINITE, OUT_OF_RANGE, BAD_PROMPT = (
    1,
    2,
    4,
)  # in `bad`; the last where the cosine to the prompt is what is not finite


class Measures(NamedTuple):
    """What one pass over the features finds out: see `ops.measure`."""

    norm: Tensor
    bad: Tensor
    persistence: Tensor | None = None
    cosine: Tensor | None = None
    products: Tensor | None = None


class GreedyProblem(NamedTuple):
    """What a greedy selection is asked: of each of S segments, so many of its tokens.

    x: features (N, D).  relevance: (N,) in [0, 1], None for 1 everywhere; `max_min` reads none.  offsets: int64
    (S + 1,), the bounds of the segments.  budget: int64 (S,), the picks in each.  longest: a bound on their lengths.
    total: the sum of the budgets.  measures: what `ops.measure` found of x.
    """

    x: Tensor
    relevance: Tensor | None
    offsets: Tensor
    budget: Tensor
    longest: int
    total: int
    measures: Measures
