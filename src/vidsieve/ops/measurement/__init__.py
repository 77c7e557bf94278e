"""What is measured of each token: lengths, persistence, cosines to the prompt, and scores made of them."""

from torch import Tensor

from vidsieve.errors import NonFiniteFeatures
from vidsieve.ops.definitions import ContrastProblem, MeasureProblem, Measures, MinMaxProblem, TransienceProblem
from vidsieve.ops.dispatch import choose, plain
from vidsieve.ops.limits import LEAST, MOST, NON_FINITE, OUT_OF_RANGE
from vidsieve.ops.measurement import eager


def measure(problem: MeasureProblem) -> Measures:
    """Measure what the later stages need to know of the tokens, in one pass where there is a kernel."""
    kernel = not problem.persistence or min(problem.frames) == max(problem.frames)
    return choose(eager.measure, problem.x, kernel)(plain(problem, "x", "prompt"))


def raise_if_nonfinite(nonfinite: Tensor, whose: str = "video") -> None:
    """Raise `NonFiniteFeatures`, saying how many of how many, if `nonfinite` (N,) marks any. Waits for the device."""
    if not nonfinite.count_nonzero():
        return
    found = nonfinite.cpu()
    non_finite, out_of_range = (int((found & what).count_nonzero()) for what in (NON_FINITE, OUT_OF_RANGE))
    if non_finite:
        maker = "vision tower's dtype (fp16 overflows) and the input frames" if whose == "video" else "embeddings"
        raise NonFiniteFeatures(
            f"{non_finite} of {len(found)} {whose} tokens hold NaN or inf; a selection among them would be arbitrary. "
            f"Check the {maker}."
        )
    if out_of_range:
        raise NonFiniteFeatures(
            f"{out_of_range} of {len(found)} {whose} tokens have a length that float32 cannot square; expected 0, or "
            f"{LEAST:g} to {MOST:g}. Multiply all of them by one number: what is kept does not depend on it."
        )
    raise NonFiniteFeatures(
        "some prompt tokens hold NaN or inf, or have a length that float32 cannot square; relevance to them would be "
        "arbitrary. Check the embeddings."
    )


def min_max(problem: MinMaxProblem) -> Tensor:
    """Scores brought to (0, 1], the highest to 1; constant scores all to 1: float32 (N,). method.md, eq. 4."""
    return choose(eager.min_max, problem.scores, videos=problem.videos)(problem)


def transience(problem: TransienceProblem) -> Tensor:
    """1 for tokens that nothing before or after resembles, `floor` for those that stay: float32 (N,). Eq. 4b."""
    frames = problem.frames
    return choose(eager.transience, problem.persistence, kernel=min(frames) == max(frames))(problem)


def contrast(problem: ContrastProblem) -> Tensor:
    """1 for tokens that change and whose frame does not, `floor` for those that stay as it does: float32 (N,). Eq. 4c.

    A token that stays `knee` times as much as its frame does on average weighs `floor`, and what stays more does too.
    """
    frames = problem.frames
    return choose(eager.contrast, problem.persistence, kernel=min(frames) == max(frames))(problem)
