"""The signatures of the operations, whichever implementation runs. The limits that they share: limits.py.

Every operation takes one tuple, its problem, in all of its implementations. Operations of the same fields share one,
and a tuple may hold another. `videos`: how many videos the tokens are of; only kernels take several.
"""

from typing import NamedTuple

from torch import Tensor


class MeasureProblem(NamedTuple):
    """What `ops.measure` is asked: lengths of the tokens of a video, and what else is wanted of the same pass.

    x: features (N, D).  frames: tokens of each frame.  prompt: embeddings (M, D), where the mean cosine to them is
    wanted.  persistence: whether that is wanted.  segments: (offsets, longest) of the segments that a greedy selection
    will run in, where it wants products.  prompt_lengths: of several videos of `frames` each, how many rows of `prompt`
    are of each.  centre: (T, D), what is subtracted from each frame and from the one before it; None for the mean of x.
    """

    x: Tensor
    frames: tuple[int, ...]
    prompt: Tensor | None = None
    persistence: bool = False
    segments: tuple[Tensor, int] | None = None
    prompt_lengths: tuple[int, ...] = ()
    centre: Tensor | None = None


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


class MinMaxProblem(NamedTuple):
    """What `ops.min_max` is asked.

    scores: (N,).  epsilon: what is added to the differences to the lowest score, above 0.  videos: at the top of this
    file; each has a scale of its own.
    """

    scores: Tensor
    epsilon: float
    videos: int = 1


class TransienceProblem(NamedTuple):
    """What `ops.transience` is asked.

    persistence: (N,), as in `Measures`.  frames: tokens of each frame of a video.  floor: the weight of what stays.
    first: the frames of the video before these.
    """

    persistence: Tensor
    frames: tuple[int, ...]
    floor: float
    first: int = 0


class ContrastProblem(NamedTuple):
    """What `ops.contrast` is asked.

    persistence: (N,), as in `Measures`.  frames: tokens of each frame of a video.  floor: the weight of what stays as
    its frame does.  knee: how many times as much as its frame a token stays that weighs `floor`, above 0.  spread: the
    part of `floor` by which it differs from place to place, in [0, 1].  first: the frames of the video before these.
    """

    persistence: Tensor
    frames: tuple[int, ...]
    floor: float
    knee: float
    spread: float
    first: int = 0


class SceneCutsProblem(NamedTuple):
    """What `ops.scene_cuts` is asked.

    persistence: (N,), as in `Measures`.  offsets: int64 (T + 1,), the bounds of the frames.  threshold: the mean
    persistence of a frame below which it begins a scene.  max_frames: the most in a scene, None for no bound.
    videos: at the top of this file.  even: whether a longer scene is split evenly; else into runs of `max_frames`, one
    after another, the last of what is left.
    """

    persistence: Tensor
    offsets: Tensor
    threshold: float
    max_frames: int | None
    videos: int = 1
    even: bool = True


class NoveltyProblem(NamedTuple):
    """What `ops.novelty` is asked.

    persistence: as in `Measures`, of the tokens of the whole video.  offsets: int64 (S + 1,), the bounds of the
    segments.  original_index: int64 (N,), which of `persistence` each of the N tokens has; all, in order, where None.
    """

    persistence: Tensor
    offsets: Tensor
    original_index: Tensor | None = None


class ApportionProblem(NamedTuple):
    """What `ops.apportion` is asked.

    weights: (S,), non-negative, None for a share by length.  offsets: int64 (S + 1,), the bounds of the segments.
    total: the picks to share, at most offsets[-1].  floor: in [0, 1], the part of its share by length that a segment
    gets whatever its weight is.  videos: at the top of this file; `total` is that of all of them.
    """

    weights: Tensor | None
    offsets: Tensor
    total: int
    floor: float = 0.0
    videos: int = 1


class Head(NamedTuple):
    """How the first picks of S segments are weighed: by `relevance` (N,) in [0, 1], so many of each, int64 (S,)."""

    relevance: Tensor
    picks: Tensor


class GreedyProblem(NamedTuple):
    """What a greedy selection is asked: of each of S segments, so many of its tokens.

    x: features (N, D).  relevance: (N,) in [0, 1], None for 1 everywhere; `max_min` reads none.  offsets: int64
    (S + 1,), the bounds of the segments.  budget: int64 (S,), the picks in each.  longest: a bound on their lengths.
    total: the sum of the budgets.  measures: what `ops.measure` found of x.  head: for the first picks of
    `conditional_dpp`, which alone reads it; method.md eq. 7b.
    """

    x: Tensor
    relevance: Tensor | None
    offsets: Tensor
    budget: Tensor
    longest: int
    total: int
    measures: Measures
    head: Head | None = None


class ElsewhereProblem(NamedTuple):
    """What `ops.alike_elsewhere` is asked: of each token, how alike the nearest of another segment is.

    x: features (N, D).  offsets: int64 (S + 1,), the bounds of the segments.  among: int64 (M,), the tokens that count
    as others, None for all.
    """

    x: Tensor
    offsets: Tensor
    among: Tensor | None = None


class MMRProblem(NamedTuple):
    """What `ops.mmr` is asked.

    greedy: the selection.  trade: the weight of relevance in [0, 1]; the rest is that of novelty.
    """

    greedy: GreedyProblem
    trade: float


class HybridProblem(NamedTuple):
    """What `ops.hybrid` is asked.

    greedy: the selection.  trade: of `ops.mmr` in long segments.  threshold: tokens; longer segments are long.
    """

    greedy: GreedyProblem
    trade: float
    threshold: int


class TopProblem(NamedTuple):
    """What `ops.top` is asked.

    score: (N,), high is picked.  offsets: int64 (S + 1,), the bounds of the segments.  budget: int64 (S,), the picks in
    each.
    """

    score: Tensor
    offsets: Tensor
    budget: Tensor


class TemporalProblem(NamedTuple):
    """What `ops.temporal` is asked: of each token, the one before it at its place in its segment.

    x: features (N, D).  norm: their lengths (N,).  offsets: int64 (S + 1,), the bounds of the segments.  frames: tokens
    of each frame of the whole video.  original_index: int64 (N,), which of its tokens x are, None for all.
    """

    x: Tensor
    norm: Tensor
    offsets: Tensor
    frames: tuple[int, ...]
    original_index: Tensor | None = None


class MergeProblem(NamedTuple):
    """Which rows become one mean: those assigned to one kept row, at its place.

    x: rows (N, ...).  assigned_to: int64 (N,), k for row kept[k] and what it absorbed, -1 for rows that are left out.
    kept: int64 (K,), ascending.  weight: (N,) of each row, 1 if None.  next_member: int64 (N,), the way from each kept
    row through what it absorbed, -1 at its end, where that is known.
    """

    x: Tensor
    assigned_to: Tensor
    kept: Tensor
    weight: Tensor | None = None
    next_member: Tensor | None = None


class MergeAmongProblem(NamedTuple):
    """What `ops.merge_among` is asked.

    merge: what merges; its x are (L, D), of which those from `begin` on are the N rows that merge.  rows: int64 (M,),
    ascending, the rows of x that are wanted; of those N they are `kept`.  begin: the row of x that is the first of the
    N.
    """

    merge: MergeProblem
    rows: Tensor
    begin: int


class NearestKeptProblem(NamedTuple):
    """What `ops.nearest_kept` is asked.

    x: features (N, D).  offsets: int64 (S + 1,), the bounds of the segments.  kept: int64 (K,), ascending.
    """

    x: Tensor
    offsets: Tensor
    kept: Tensor


class MergeRunsProblem(NamedTuple):
    """What `ops.merge_runs` is asked, of what `ops.temporal` found.

    cosine: (N,), of each token to the one before it.  before: int64 (N,), that one, -1 if none.  threshold: the least
    cosine at which a token joins a run.  longest: a bound on the tokens of a run.
    """

    cosine: Tensor
    before: Tensor
    threshold: float
    longest: int


class FollowRunsProblem(NamedTuple):
    """What `ops.follow_runs` is asked.

    row: int64 (N,), of each token, -1 where it goes by the one before it.  before: int64 (N,), that one, -1 if none.
    longest: a bound on the tokens of such a way back.
    """

    row: Tensor
    before: Tensor
    longest: int


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

    query: (N, H, d).  key: (M, H, d).  value: (M, H, d).  bounds: int32 (S + 1,), of the queries of each segment.
    longest: a bound on the lengths of segments.  scale: of the scores.  key_bounds: int32 (S + 1,), of the keys, where
    those are not the rows of the queries.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    bounds: Tensor
    longest: int
    scale: float
    key_bounds: Tensor | None = None


class RotaryProblem(NamedTuple):
    """What is rotated, and by which angles.

    qkv: (N, 3, H, d), contiguous, of which queries and keys are rotated.  cos: float32 (N, d).  sin: float32 (N, d).
    """

    qkv: Tensor
    cos: Tensor
    sin: Tensor


class GateProblem(NamedTuple):
    """What is gated.

    x: (N, 2 * columns), two halves a row.  width: how many of the first columns of each half are used.
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


class KCenterProblem(NamedTuple):
    """Which groups of pixels stand for the others of their block.

    x: values (T, P, C) of the P groups of each of T frames.  total: how many are kept, from one of each block to T * P.
    """

    x: Tensor
    total: int


class HoldHighestProblem(NamedTuple):
    """Which groups of pixels are kept by their scores.

    score: (T, P), inf in all of the first frame.  total: how many are kept; None for those whose score is inf.
    """

    score: Tensor
    total: int | None


class CompactProblem(NamedTuple):
    """What `ops.compact` is asked.

    order: int32 (N,), below 0 where a token was not picked.  offsets: int64 (S + 1,), the bounds of the segments.
    budget: int64 (S,), the picks in each, all of which were made.  longest: a bound on their lengths.  total: the sum
    of the budgets.  videos: at the top of this file.
    """

    order: Tensor
    offsets: Tensor
    budget: Tensor
    longest: int
    total: int
    videos: int = 1


class CompactRowsProblem(NamedTuple):
    """What `ops.compact_rows` is asked, of B rows of L columns.

    kept_row: int64 (B, N), below 0 where a column goes, of those from `begin` on; all other columns stay.  longest: the
    most columns that stay in a row, known to the host.  begin: a column.  length: L.
    """

    kept_row: Tensor
    longest: int
    begin: int
    length: int
