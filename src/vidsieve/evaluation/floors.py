"""What is in every table of an evaluation, whatever else is asked for: the floors, and the usual keep ratios."""

from collections.abc import Callable
from typing import Any

from vidsieve import registry
from vidsieve.methods.base import check_keep

Method = Callable[[float], Any]  # of keep: a `Reducer`, or anything else that can be attached by calling it
KEEPS = (0.05, 0.1, 0.25, 0.5)
FLOORS: dict[str, Method] = {name: registry.method(name) for name in ("uniform", "random", "fewer_frames")}
LOW = "lower_resolution"  # the floor that needs frames, and is made where they are


def check_keeps(keeps: tuple[float, ...]) -> None:
    """Raise unless these are fractions in (0, 1)."""
    for keep in keeps:
        check_keep(keep)
        if keep == 1:
            raise ValueError("keep = 1 is the unreduced model, which is always in the table; expected less")
