"""Groups of pixels that repeat the last one that was kept at their place: run-length coding along time."""

from torch import Tensor

from vidsieve.errors import NonFiniteFeatures
from vidsieve.ops.definitions import HoldHighestProblem, RunLengthProblem
from vidsieve.ops.dispatch import choose, plain
from vidsieve.ops.limits import MOST
from vidsieve.ops.run_length import eager


def run_length(problem: RunLengthProblem) -> tuple[Tensor, Tensor, Tensor]:
    """Keep the groups that differ from the last one kept at their place, all of the first frame. method.md, eq. 18-20.

    kept: int64 (K,), sorted, group p of frame t as t * P + p.  source: int64 (T * P,), for each group the row of `kept`
    of the one it repeats: its own, or that of the last kept one at its place.  nonfinite: int32 (T * P,), above 0 where
    a group holds NaN, inf or a value beyond 1e18. With a total, which it keeps exactly, it asks the device nothing;
    without, how many there are. Holds 4 P T^2 bytes, fewer than bf16 pixels take as long as T < C / 2.
    """
    return choose(eager.run_length, problem.x)(plain(problem, "x"))


def hold_highest(problem: HoldHighestProblem) -> tuple[Tensor, Tensor]:
    """Keep the `total` highest of scores (T, P), the earlier of equals, or all that are inf if None.

    kept: int64 (K,) and source: int64 (T * P,), as in `run_length`.
    """
    return choose(eager.hold_highest, problem.score)(problem)


def raise_if_nonfinite_pixels(nonfinite: Tensor) -> None:
    """Raise `NonFiniteFeatures`, saying how many groups, if `nonfinite` (T * P,) marks any. Waits for the device."""
    if count := int(nonfinite.count_nonzero()):
        raise NonFiniteFeatures(
            f"{count} of {len(nonfinite)} groups of pixels hold NaN, inf or a value beyond {MOST:g}; a selection among "
            "them would be arbitrary. Check the video processor and the input frames."
        )
