"""Which tokens of each segment stay. Mathematics and equation numbers: docs/method.md.

A selector gets a `SelectionProblem` and returns the order of its picks: int32 (N,), the step at which a token was
picked in its segment, -1 where it was not. Each segment gets exactly its budget, whatever the features are: zero
vectors, equal tokens and budgets above the rank included.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from vidsieve import ops
from vidsieve.checks import check_number, check_part
from vidsieve.types.segments import Segments
from vidsieve.types.statistics import TokenStatistics
from vidsieve.types.tokens import VideoTokens

ELSEWHERE_TOKENS = 16_384  # of more tokens, those of every n-th frame alone count as others
ELSEWHERE_RANK = 128  # dimensions to compare them in: a cosine c comes out as c +- (1 - c^2) / 11
ELSEWHERE_ROWS = 8192  # that are sketched at a time


class SelectionProblem(NamedTuple):
    """What a selector is asked: so many of the tokens of each of S segments.

    tokens: N of them.  stats: what was measured of them, all that the selector `requires`.  budget: int64 (S,), the
    picks in each segment.  relevance: float32 (N,) in [0, 1], high is kept.  total: the sum of the budgets.
    """

    tokens: VideoTokens
    stats: TokenStatistics
    segments: Segments
    budget: Tensor
    relevance: Tensor
    total: int

    def greedy(self) -> ops.GreedyProblem:
        """The problem as the greedy operations take it, for a selector that requires "products"."""
        stats, segments = self.stats, self.segments
        measures = ops.Measures(stats.required("norm"), stats.required("nonfinite"), products=stats.products)
        return ops.GreedyProblem(
            self.tokens.features, self.relevance, segments.offsets, self.budget, segments.longest, self.total, measures
        )


class Selector(Protocol):
    """Picks each segment's budget of tokens."""

    def __call__(self, problem: SelectionProblem) -> Tensor: ...


@dataclass(frozen=True)
class ConditionalDPP:
    """Exact greedy MAP of the determinantal point process with kernel L = diag(r) S diag(r), S the cosines.

    Chen, Zhang & Zhou, "Fast greedy MAP inference for determinantal point process", NeurIPS 2018, algorithm 1;
    conditioned on relevance as in CDPruner (Zhang et al., NeurIPS 2025). O(k^2 n + k n D) for k of n tokens.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"products"})
    batches: ClassVar[bool] = True
    captures: ClassVar[bool] = True
    chunks: ClassVar[bool] = True

    def __call__(self, problem: SelectionProblem) -> Tensor:
        return ops.conditional_dpp(problem.greedy())


@dataclass(frozen=True)
class LowRankDPP:
    """`ConditionalDPP` on features sketched to `rank` dimensions where the exact one would take too long or too much.

    Long segments are those of more than `above` tokens. With `max_memory` they too are selected exactly as long as
    what that holds fits: 4 K n bytes for the rows c of eq. 6, at K picks and n tokens of the longest segment, and 4 N n
    for S where n is up to 2 048. A sketch takes N x rank numbers instead of S, and each product of features rank / D of
    the time; the rows c stay.

    rank: dimensions of the sketch. Up to here picks are chosen for what they add; a segment that keeps more fills up by
    relevance, so keep it above the picks of a segment.  above: tokens.  max_memory: bytes.

    The sketch is x G with random signs G (Achlioptas 2003, "Database-friendly random projections"): a cosine c comes
    out as c +- (1 - c^2) / sqrt(rank). The signs depend on position only: the same on every device and run.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"products"})
    batches: ClassVar[bool] = True
    captures: ClassVar[bool] = False  # a matrix product of torch's keeps memory of the graph's for good

    rank: int = 512
    above: int = 2048
    max_memory: int | None = None

    def __post_init__(self) -> None:
        check_number("rank is a whole number of dimensions, at least 1", self.rank, 1, integer=True)
        check_number("above is a whole number of tokens, at least 0", self.above, 0, integer=True)
        if self.max_memory is not None:
            check_number("max_memory is a number of bytes, at least 0, or None", self.max_memory, 0)

    def __call__(self, problem: SelectionProblem) -> Tensor:
        x, segments, stats = problem.tokens.features, problem.segments, problem.stats
        longest = segments.longest
        if longest > self.above and self.rank < x.shape[1]:
            exact = 4 * longest * (problem.total + (len(x) if longest <= ops.GRAM_LIMIT else 0))
            if self.max_memory is None or exact > self.max_memory:
                if x.dtype == torch.float16:  # which need not hold sums of what it holds
                    norm = stats.required("norm")
                    x = x * torch.where(norm > 0, norm.reciprocal(), 0)[:, None]
                x = sketch(x, self.rank)
                within = segments.offsets, longest
                norm, nonfinite, *_, products = ops.measure(
                    ops.MeasureProblem(x, (problem.tokens.tokens_per_video,), segments=within)
                )
                stats = TokenStatistics(norm, nonfinite, products=products)
        return ops.conditional_dpp(problem._replace(stats=stats).greedy()._replace(x=x))


@dataclass(frozen=True)
class DistinctFirst:
    """`ConditionalDPP` whose first picks of a segment prefer what no other segment has. method.md eq. 7b, 7c.

    Those weigh by r (1 - weight o); o is 0 for what is no more alike to any token elsewhere than `gate`, and 1 for what
    is there again. The others weigh by r, and take note of the first. So few tokens tell segments apart, and more cover
    them evenly. The rule is this library's own. Time grows with N^2 up to 16 384 tokens and with N beyond.

    share: of a segment's tokens are first picks, rounded up.  weight: in [0, 1].  gate: a centred cosine, in [0, .99].
    """

    requires: ClassVar[frozenset[str]] = frozenset({"products"})

    share: float = 0.025
    weight: float = 0.5
    gate: float = 0.5

    def __post_init__(self) -> None:
        check_number("share is of a segment's tokens, in [0, 1]", self.share, 0, 1)
        check_number("weight is how much less counts what is elsewhere too, in [0, 1]", self.weight, 0, 1)
        check_number("gate is a cosine, in [0, 0.99]", self.gate, 0, 0.99)

    def __call__(self, problem: SelectionProblem) -> Tensor:
        tokens, segments = problem.tokens, problem.segments
        every = -(-len(tokens) // ELSEWHERE_TOKENS)
        among = None if every == 1 else (tokens.frame % every == 0).nonzero()[:, 0]
        alike = ops.alike_elsewhere(ops.ElsewhereProblem(_sketched(problem), segments.offsets, among))
        elsewhere = ((alike - self.gate) / (1 - self.gate)).clamp(0, 1).to(problem.relevance.dtype)  # (N,), o
        first = (self.share * segments.lengths.double()).ceil().long()  # (S,)
        head = ops.Head(problem.relevance * (1 - self.weight * elsewhere), first)
        return ops.conditional_dpp(problem.greedy()._replace(head=head))


def _sketched(problem: SelectionProblem) -> Tensor:
    """The features in units of the longest: float32 or better (N, D), or (N, ELSEWHERE_RANK) where those are fewer."""
    x, norm = problem.tokens.features, problem.stats.required("norm")
    scale = norm.max().clamp(min=1e-30).reciprocal()  # squares of what is scaled can be added up
    parts = (some.to(norm.dtype) * scale for some in torch.split(x, ELSEWHERE_ROWS))  # made one by one, not held
    return torch.cat([sketch(one, ELSEWHERE_RANK) if one.shape[1] > ELSEWHERE_RANK else one for one in parts])


def sketch(x: Tensor, rank: int) -> Tensor:
    """x (N, D) projected on `rank` fixed directions of random signs: (N, rank), lengths and angles nearly kept."""
    at = torch.arange(1, x.shape[1] * rank + 1, device=x.device)  # int64, whose products wrap
    for factor, shift in ((-7046029254386353131, 29), (-4658895280553007687, 32)):  # the mixer of splitmix64
        at = at * factor
        at = at ^ (at >> shift)
    signs = (1 - 2 * ((at >> 40) & 1)).to(x.dtype).view(x.shape[1], rank)
    z: Tensor = x @ (signs / rank**0.5)
    return z


@dataclass(frozen=True)
class MMR:
    """Maximal marginal relevance: a greedy trade between relevance and distance to the nearest pick. O(k n D).

    trade: weight of relevance; the rest is on novelty. Carbonell & Goldstein, SIGIR 1998.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"products"})
    batches: ClassVar[bool] = True
    captures: ClassVar[bool] = True
    chunks: ClassVar[bool] = True

    trade: float = 0.5

    def __post_init__(self) -> None:
        check_number("trade is the weight of relevance, in [0, 1]", self.trade, 0, 1)

    def __call__(self, problem: SelectionProblem) -> Tensor:
        return ops.mmr(ops.MMRProblem(problem.greedy(), self.trade))


@dataclass(frozen=True)
class Hybrid:
    """`small` for segments of up to `threshold` tokens, `large` for longer ones."""

    requires: ClassVar[frozenset[str]] = frozenset({"products"})
    batches: ClassVar[bool] = True
    captures: ClassVar[bool] = True
    chunks: ClassVar[bool] = True
    part_fields: ClassVar[tuple[str, ...]] = ("small", "large")

    threshold: int = 512
    small: Selector = ConditionalDPP()
    large: Selector = MMR()

    def __post_init__(self) -> None:
        check_number("threshold is a whole number of tokens, at least 0", self.threshold, 0, integer=True)
        check_part("selector for short segments", self.small)
        check_part("selector for long segments", self.large)

    def __call__(self, problem: SelectionProblem) -> Tensor:
        segments, budget = problem.segments, problem.budget
        if segments.longest <= self.threshold:
            return self.small(problem)
        if isinstance(self.small, ConditionalDPP) and isinstance(self.large, MMR):
            return ops.hybrid(ops.HybridProblem(problem.greedy(), self.large.trade, self.threshold))
        is_small = segments.lengths <= self.threshold  # (S,)
        return torch.maximum(
            self.small(problem._replace(budget=budget.where(is_small, 0))),
            self.large(problem._replace(budget=budget.where(~is_small, 0))),
        )


@dataclass(frozen=True)
class MaxMin:
    """Farthest-first: each pick is the token whose nearest pick is farthest away, whatever its relevance.

    Max-min diversity by cosine distance, DivPrune (Alvar et al., CVPR 2025, arXiv 2503.02175).
    """

    requires: ClassVar[frozenset[str]] = frozenset({"products"})
    batches: ClassVar[bool] = True
    captures: ClassVar[bool] = False  # a matrix product of torch's keeps memory of the graph's for good
    chunks: ClassVar[bool] = True

    def __call__(self, problem: SelectionProblem) -> Tensor:
        return ops.max_min(problem.greedy()._replace(relevance=None))


@dataclass(frozen=True)
class TopRelevance:
    """The most relevant tokens, however alike they are."""

    batches: ClassVar[bool] = True
    captures: ClassVar[bool] = True
    chunks: ClassVar[bool] = True

    def __call__(self, problem: SelectionProblem) -> Tensor:
        return ops.top(ops.TopProblem(problem.relevance, problem.segments.offsets, problem.budget))


@dataclass(frozen=True)
class EvenlySpaced:
    """Tokens at even distances in raster order, whatever they show."""

    batches: ClassVar[bool] = True
    captures: ClassVar[bool] = True

    def __call__(self, problem: SelectionProblem) -> Tensor:
        segments, budget = problem.segments, problem.budget
        position = torch.arange(len(problem.tokens), device=budget.device)
        segment = torch.searchsorted(segments.offsets[1:], position, right=True)
        within = position - segments.offsets[segment]
        n, k = segments.lengths[segment], budget[segment]
        # The running count of picks after `within` tokens is within * k / n, rounded: it steps at exactly k of n.
        step = (within * k + n // 2) // n
        return torch.where((((within + 1) * k + n // 2) // n) > step, step, -1).int()


@dataclass(frozen=True)
class Random:
    """A uniformly random subset, the same for the same seed and number of tokens on every device."""

    seed: int = 0

    def __call__(self, problem: SelectionProblem) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        score = torch.rand(len(problem.tokens), generator=generator, dtype=torch.float64)
        score = score.to(problem.budget.device)
        return ops.top(ops.TopProblem(score, problem.segments.offsets, problem.budget))
