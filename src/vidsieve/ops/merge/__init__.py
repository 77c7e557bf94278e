"""Who is merged with whom, and the means of what merged."""

from torch import Tensor

from vidsieve.ops.definitions import (
    FollowRunsProblem,
    MergeAmongProblem,
    MergeProblem,
    MergeRunsProblem,
    NearestKeptProblem,
    TemporalProblem,
)
from vidsieve.ops.dispatch import choose, plain
from vidsieve.ops.merge import eager


def nearest_kept(problem: NearestKeptProblem) -> Tensor:
    """The row of `kept` most similar to each token within its segment: int64 (N,), -1 where it kept none."""
    return choose(eager.nearest_kept, problem.x)(plain(problem, "x"))


def temporal(problem: TemporalProblem) -> tuple[Tensor, Tensor]:
    """Of each token, the one before it at its place in its segment: int64 (N,), -1 if none; method.md eq. 14.

    And the cosine of the two, float32 (N,), -2 if none. Two zero vectors are alike, and so are vectors within rounding
    of each other.
    """
    frames = problem.frames
    return choose(eager.temporal, problem.x, kernel=min(frames) == max(frames))(plain(problem, "x"))


def merge_runs(problem: MergeRunsProblem) -> tuple[Tensor, ...]:
    """Where runs of `before` begin, for `cosine` is below `threshold` there, and who belongs to them.

    The places in order, int64 (N,), of which as many as there are say something; how many they are, int64 (1,); each
    token's row among them or -1, int64 (N,); and what `follow_runs` makes of these rows.
    """
    return choose(eager.merge_runs, problem.cosine)(problem)


def follow_runs(problem: FollowRunsProblem) -> tuple[Tensor, Tensor]:
    """The first `row` that is not -1, going back from each token by `before`: int64 (N,), -1 if there is none.

    And the token that goes back to each on its way there, int64 (N,), -1 if none: no two go back to the same.
    """
    return choose(eager.follow_runs, problem.before)(problem)


def merge_mean(problem: MergeProblem) -> Tensor:
    """Mean over the rows of x (N, ...) assigned to one kept row: (K, ...), accumulated in float32, or better.

    method.md eq. 12 and 15.
    """
    # The torch version has a gradient.
    return choose(eager.merge_mean, problem.x, kernel=not problem.x.requires_grad)(problem)


def merge_among(problem: MergeAmongProblem) -> Tensor:
    """Those `rows` of x (L, D), where those that are kept of what merges become means as in `merge_mean`: (M, D)."""
    x = problem.merge.x
    return choose(eager.merge_among, x, kernel=not x.requires_grad)(problem)
