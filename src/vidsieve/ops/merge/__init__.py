"""Who is merged with whom, and the means of what merged."""

from torch import Tensor

from vidsieve.ops.definitions import MergeProblem, TemporalProblem
from vidsieve.ops.dispatch import choose, plain
from vidsieve.ops.merge import eager


def nearest_kept(x: Tensor, offsets: Tensor, kept: Tensor) -> Tensor:
    """The row of `kept` (K,) most similar to each token within its segment: int64 (N,), -1 where it kept none."""
    return choose(eager.nearest_kept, x)(plain(x), offsets, kept)


def temporal(problem: TemporalProblem) -> tuple[Tensor, Tensor]:
    """Of each token, the one before it at its place in its segment: int64 (N,), -1 if none; method.md eq. 14.

    And the cosine of the two, float32 (N,), -2 if none. Two zero vectors are alike, and so are vectors within rounding
    of each other.
    """
    x, frames = problem.x, problem.frames
    if x.requires_grad:
        problem = problem._replace(x=plain(x))
    return choose(eager.temporal, x, kernel=min(frames) == max(frames))(problem)


def merge_runs(cosine: Tensor, before: Tensor, threshold: float, longest: int) -> tuple[Tensor, ...]:
    """Where runs of `before` (N,) begin, for `cosine` (N,) is below `threshold` there, and who belongs to them.

    The places in order, int64 (N,), of which as many as there are say something; how many they are, int64 (1,); each
    token's row among them or -1, int64 (N,); and what `follow_runs` makes of these rows.
    """
    return choose(eager.merge_runs, cosine)(cosine, before, threshold, longest)


def follow_runs(row: Tensor, before: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """The first row (N,) that is not -1, going back from each token by `before` (N,): int64 (N,), -1 if there is none.

    And the token that goes back to each on its way there, int64 (N,), -1 if none: no two go back to the same.
    longest: a bound on the tokens of such a way.
    """
    return choose(eager.follow_runs, before)(row, before, longest)


def merge_mean(problem: MergeProblem) -> Tensor:
    """Mean over the rows of x (N, ...) that share a source: (K, ...), accumulated in float32, or better.

    method.md eq. 12 and 15.
    """
    # The torch version has a gradient.
    return choose(eager.merge_mean, problem.x, kernel=not problem.x.requires_grad)(problem)


def merge_among(problem: MergeProblem, index: Tensor, begin: int) -> Tensor:
    """Rows `index` (M,), ascending, of x (L, D), of which the N from `begin` on merge: (M, D).

    N is the length of `source`. Of those N, what `index` holds is `kept` (K,), counted from `begin`, and becomes means
    as in `merge_mean`.
    """
    return choose(eager.merge_among, problem.x, kernel=not problem.x.requires_grad)(problem, index, begin)
