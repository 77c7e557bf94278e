"""What belongs to the meaning of the operations, whichever implementation runs: limits, and tuples of tensors."""

from typing import NamedTuple

from torch import Tensor

# A token whose squared distance to the span of the picks is below this share of its squared length adds nothing that
# bf16 features could tell from rounding: it is exhausted, and ranks behind every token that is not.
EXHAUSTED = 1e-5
# Scores within this share of the best are a tie, and a tie goes to the earlier token: so rounding cannot decide between
# duplicates. A share, because relevance may be small everywhere and enters squared.
TIE = 1e-6
# What keeps a ratio of two means of persistence from being one of rounding, where a whole frame is new.
STAYS = 0.05
# What centring leaves of a token that equals the mean is rounding, not a direction: below this share of the mean's
# length it counts as zero.
NOISE = 1e-5
# A token is zero or of a length in between: float32 then holds its square, that of a difference of two, and that of
# what NOISE leaves of it, features wide as they are. `Measures.nonfinite` says which are not, and which are NaN or inf.
LEAST, MOST = 1e-12, 1e18
NON_FINITE, OUT_OF_RANGE, NONFINITE_PROMPT = 1, 2, 4  # its bits; the last where the cosine to the prompt is not finite

# The threshold that leaves a count is sought among the bits of float32, which are in the order of the numbers: SECTIONS
# at a time, so many bits apart in each sweep. The first sweep has 0, every power of two and inf; the last leaves 2^-16.
SECTIONS, WIDTHS = 256, (1 << 23, 1 << 15, 1 << 7)


class MeasureProblem(NamedTuple):
    """What `ops.measure` is asked: lengths of the tokens of a video, and what else is wanted of the same pass.

    x: features (N, D).  frames: tokens of each frame.  prompt: embeddings (M, D), where the mean cosine to them is
    wanted.  persistence: whether that is wanted.  segments: (offsets, longest) of the segments that a greedy selection
    will run in, where it wants products.  prompt_lengths: of several videos of `frames` each, how many rows of `prompt`
    are of each.
    """

    x: Tensor
    frames: tuple[int, ...]
    prompt: Tensor | None = None
    persistence: bool = False
    segments: tuple[Tensor, int] | None = None
    prompt_lengths: tuple[int, ...] = ()


class Measures(NamedTuple):
    """What one pass over the features measures of each token.

    norm: lengths (N,).  nonfinite: int32 (N,), above 0 where a token holds NaN or inf, or its length is out of range,
    or the prompt does or is.  persistence: the centred cosine of each token to the one at its place in the previous
    frame (N,), 0 in the first frame; where two neighbouring frames differ in size, to the mean of the previous frame;
    method.md, eq. 1.  cosine: the mean cosine to the prompt's vectors (N,).  products: what the chosen implementation
    of a greedy selection would otherwise have to read the features again for.
    """

    norm: Tensor
    nonfinite: Tensor
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


class TemporalProblem(NamedTuple):
    """What `ops.temporal` is asked: of each token, the one before it at its place in its segment.

    x: features (N, D).  norm: their lengths (N,).  offsets: int64 (S + 1,), the bounds of the segments.  frames: tokens
    of each frame of the whole video, of which x are the tokens `original_index` (N,), or all where that is None.
    """

    x: Tensor
    norm: Tensor
    offsets: Tensor
    frames: tuple[int, ...]
    original_index: Tensor | None = None


class MergeProblem(NamedTuple):
    """Which rows become one mean: those of a source, at the place of the row that is kept of them.

    x: rows (N, ...).  source: int64 (N,), k for row kept[k] and what it absorbed, -1 for rows that are left out.
    kept: int64 (K,), ascending.  weight: (N,) of each row, 1 if None.  link: int64 (N,), the way from each kept row
    through what it absorbed, -1 at its end, where that is known.
    """

    x: Tensor
    source: Tensor
    kept: Tensor
    weight: Tensor | None = None
    link: Tensor | None = None


class AttentionProblem(NamedTuple):
    """Whose attention is wanted: that of M queries, of H heads in G groups that share keys.

    query: (H, L, d) and key: (G, past + L, d), rotated.  columns: int64 (M,), of the queries.  visible: bool (past +
    L,), false on padding; None where there is none.  scaling: of the scores, 1 / sqrt(d) if None.  softcap: s becomes
    softcap * tanh(s / softcap) where given.
    """

    query: Tensor
    key: Tensor
    columns: Tensor
    visible: Tensor | None = None
    scaling: float | None = None
    softcap: float | None = None

    @property
    def scale(self) -> float:
        """Of the scores."""
        return self.query.shape[-1] ** -0.5 if self.scaling is None else self.scaling


class SegmentAttentionProblem(NamedTuple):
    """Whose attention is wanted: that of N queries to the keys of their segment, S of them one after another.

    query: (N, H, d).  key, value: (M, H, d).  bounds: int32 (S + 1,), of the queries of each segment.  longest: a bound
    on the lengths of segments.  scale: of the scores.  key_bounds: int32 (S + 1,), of the keys, where those are not the
    rows of the queries.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    bounds: Tensor
    longest: int
    scale: float
    key_bounds: Tensor | None = None


class RotaryProblem(NamedTuple):
    """What is rotated: the queries and the keys of qkv (N, 3, H, d), contiguous, by cos, sin float32 (N, d)."""

    qkv: Tensor
    cos: Tensor
    sin: Tensor


class GateProblem(NamedTuple):
    """What is gated: the halves of each row of x (N, 2 * columns), of which the first `width` columns are used.

    bias: (width,) of the first halves and of the second, where they are still to be added.
    """

    x: Tensor
    width: int
    bias: tuple[Tensor, Tensor] | None = None


class RunLengthProblem(NamedTuple):
    """Which groups of pixels repeat the last one that was kept at their place: of all but `total`, or by `threshold`.

    x: values (T, P, C) of the P groups of each of T frames.  total: how many are kept, P to T * P; None where that is
    for the threshold to say.  threshold: the mean absolute difference above which a group is kept; read without total.
    """

    x: Tensor
    total: int | None = None
    threshold: float = 0.0
