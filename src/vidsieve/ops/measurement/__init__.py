"""What is measured of each token: lengths, persistence, cosines to the prompt, and scores made of them."""

from torch import Tensor

from vidsieve.errors import NonFiniteFeatures
from vidsieve.ops.definitions import LEAST, MOST, NON_FINITE, OUT_OF_RANGE, Measures
from vidsieve.ops.dispatch import choose, plain, several
from vidsieve.ops.measurement import eager


def measure(
    x: Tensor,
    frames: tuple[int, ...],
    y: Tensor | None,
    persistence: bool,
    segments: tuple[Tensor, int] | None = None,
    questions: tuple[int, ...] = (),
) -> Measures:
    """What the later stages need to know of the tokens x (N, D), in one pass where there is a kernel.

    norm: lengths (N,).  bad: above 0 where a token holds NaN or inf, or its length is out of range, or y does or is:
    `definitions` has the bits (N,).  persistence, if asked for: the centred cosine of each token to the one at its
    place in the previous frame (N,), 0 in the first frame; where two neighbouring frames differ in size, to the mean of
    the previous frame; method.md, eq. 1.
    cosine, given y (M, D): the mean cosine to its vectors (N,).
    products, given (offsets, longest) of the segments that a greedy selection will run in: what that implementation
    would have to read the features again for, where it can be had from the same pass.
    questions: of several videos of `frames` each, how many rows of y are of each.
    """
    regular = min(frames) == max(frames)
    run = choose(eager.measure, x, kernel=regular or not persistence)
    more = (questions,) if len(questions) > 1 else ()
    y = None if y is None else plain(y)
    return run(plain(x), frames, y, persistence, segments, *more)


def raise_if_bad(bad: Tensor, whose: str = "video") -> None:
    """Raise `NonFiniteFeatures`, saying how many of how many, if any token is bad (N,). Waits for the device."""
    if not bad.count_nonzero():
        return
    found = bad.cpu()
    non_finite, out_of_range = (int((found & what).count_nonzero()) for what in (NON_FINITE, OUT_OF_RANGE))
    if non_finite:
        maker = "vision tower's dtype (fp16 overflows) and the input frames" if whose == "video" else "embeddings"
        raise NonFiniteFeatures(
            f"{non_finite} of {len(bad)} {whose} tokens hold NaN or inf; a selection among them would be arbitrary. "
            f"Check the {maker}."
        )
    if out_of_range:
        raise NonFiniteFeatures(
            f"{out_of_range} of {len(bad)} {whose} tokens have a length that float32 cannot square; expected 0, or "
            f"{LEAST:g} to {MOST:g}. Multiply all of them by one number: what is kept does not depend on it."
        )
    raise NonFiniteFeatures(
        "some prompt tokens hold NaN or inf, or have a length that float32 cannot square; relevance to them would be "
        "arbitrary. Check the embeddings."
    )


def min_max(scores: Tensor, epsilon: float, videos: int = 1) -> Tensor:
    """Scores (N,) brought to (0, 1], the highest to 1; constant scores all to 1: float32 (N,). method.md, eq. 4."""
    return choose(eager.min_max, scores)(scores, epsilon, **several(videos))


def transience(persistence: Tensor, frames: tuple[int, ...], floor: float) -> Tensor:
    """1 for tokens that nothing before or after resembles, `floor` for those that stay: float32 (N,). Eq. 4b."""
    return choose(eager.transience, persistence, kernel=min(frames) == max(frames))(persistence, frames, floor)
