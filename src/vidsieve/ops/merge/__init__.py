"""Who is merged with whom, and the means of what merged."""

from torch import Tensor

from vidsieve.ops.dispatch import choose, plain
from vidsieve.ops.merge import eager


def nearest_kept(x: Tensor, offsets: Tensor, kept: Tensor) -> Tensor:
    """The row of `kept` (K,) most similar to each token within its segment: int64 (N,), -1 where it kept none."""
    return choose(eager.nearest_kept, x)(plain(x), offsets, kept)


def temporal(
    x: Tensor, norm: Tensor, offsets: Tensor, frames: tuple[int, ...], at: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Of each token, the one before it at its place in its segment: int64 (N,), -1 if none; method.md eq. 14.

    And the cosine of the two, float32 (N,), -2 if none. Two zero vectors are alike, and so are vectors within rounding
    of each other. frames: of the whole video, of which x are the tokens `at` (N,), or all where that is None.
    """
    return choose(eager.temporal, x, kernel=min(frames) == max(frames))(plain(x), norm, offsets, frames, at)


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


def merge_mean(
    x: Tensor,
    source: Tensor,
    kept: Tensor,
    weight: Tensor | None = None,
    link: Tensor | None = None,
) -> Tensor:
    """Mean over the rows of x (N, ...) that share a source, each with one of the rows `kept` (K,): (K, ...).

    source: k for row kept[k] and what it absorbed, -1 for rows that are left out.  weight: (N,) of each row, 1 if None.
    link: (N,) the way from each kept row through what it absorbed, -1 at its end, where that is known.
    Accumulated in float32, or better. method.md eq. 12 and 15.
    """
    run = choose(eager.merge_mean, x, kernel=not x.requires_grad)  # the torch version has a gradient
    return run(x, source, kept, weight, link)


def merge_among(
    x: Tensor,
    index: Tensor,
    begin: int,
    source: Tensor,
    kept: Tensor,
    weight: Tensor | None = None,
    link: Tensor | None = None,
) -> Tensor:
    """Rows `index` (M,), ascending, of x (L, D), of which the N from `begin` on merge: (M, D).

    Of those N, what `index` holds is `kept` (K,), counted from `begin`, and becomes means as in `merge_mean`.
    """
    return choose(eager.merge_among, x, kernel=not x.requires_grad)(x, index, begin, source, kept, weight, link)
