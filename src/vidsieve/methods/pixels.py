"""Which groups of pixels the vision tower computes at all, decided before it. Mathematics: docs/method.md.

A group is what becomes one token: the patches that are merged, in one temporal patch. A pixel selector gets the values
of all groups of a video, (T, P, C), and returns a `PixelSelection`: which are computed, and which of these each of the
others repeats.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vidsieve import ops
from vidsieve.checks import check_number, describe, show
from vidsieve.errors import WrongArgument
from vidsieve.methods.base import check_keep, own_precision, pending_nonfinite
from vidsieve.types.pixels import PixelSelection


class PixelSelector(Protocol):
    """Chooses the groups of pixels of a video that are computed.

    holds_keys: whether computed groups attend to the others too, by the keys and values of the groups that they repeat.
    """

    @property
    def holds_keys(self) -> bool: ...

    def select(self, groups: Tensor) -> PixelSelection: ...


def kept_groups(keep: float, frames: int, places: int) -> int:
    """How many of `frames` x `places` groups a fraction `keep` leaves: as rounded, and never less than a frame."""
    return max(places, round(keep * frames * places))


def selection_of(selector: PixelSelector, groups: Tensor) -> PixelSelection:
    """Ask `selector` to choose among `groups` (T, P, C). Raises `WrongArgument` or `ValueError` for other groups."""
    with own_precision(groups.device):
        selection = selector.select(groups)
    frames, places, _ = groups.shape
    name = f"{type(selector).__name__}.select"
    if not isinstance(selection, PixelSelection) or len(selection.source) != frames * places:
        raise WrongArgument(
            f"expected {name} to return a PixelSelection of {frames * places} groups, "
            f"got {selection if isinstance(selection, PixelSelection) else describe(selection)}"
        )
    if selection.source.device.type == "cpu":
        row = selection.source
        if row.min() < 0 or row.max() >= len(selection):
            raise ValueError(f"{name}: expected source within [0, {len(selection)}), got {row}")
    return selection


def _check_groups(groups: object) -> None:
    if not isinstance(groups, Tensor):
        raise WrongArgument(f"expected a tensor of pixel values (T, P, C), got {describe(groups)}")
    if groups.ndim != 3 or not groups.is_floating_point() or not groups.numel():
        raise ValueError(
            "expected floating-point pixel values (T, P, C) of P groups in each of T frames, none of them 0; "
            f"got {show(groups)}"
        )


def _every_group(groups: Tensor) -> PixelSelection:
    every = torch.arange(groups.shape[0] * groups.shape[1], device=groups.device)
    return PixelSelection(every, every)


def _checked(selection: tuple[Tensor, Tensor, Tensor]) -> PixelSelection:
    """Make what an operation returned, (kept, source, nonfinite), a selection: on CPU, of finite pixels."""
    kept, source, nonfinite = selection
    pending = pending_nonfinite(nonfinite)
    if pending is None:
        ops.raise_if_nonfinite_pixels(nonfinite)
    return PixelSelection(kept, source, pending)


@dataclass(frozen=True)
class KCenter:
    """Computes the groups that stand for all others best, wherever in the picture these are. method.md, eq. 24-26.

    In each block of 8 frames by up to 256 neighbouring places, groups are picked by farthest-first traversal (Gonzalez,
    "Clustering to minimize the maximum intercluster distance", 1985): each is the one whose pixels are farthest from
    all picked before. Of all blocks together, the picks of the largest distances are computed, and every other group
    repeats the nearest of its block. So what is there once is computed, a plain wall or a texture only here and there,
    and no group repeats one that is more than 7 token frames away.

    keep: the fraction of the groups that is computed, in (0, 1]; exactly round(keep * T * P), but at least P, as many
    as one frame has, and one of each block; no block more than twice its share. All of them with 1, and then nothing is
    measured.
    holds_keys: whether computed groups attend to the others too, by the keys and values of the groups that they repeat;
    without, the others are as if they had never been there, which is a little sooner and much less exact.
    Raises `ValueError` for a keep out of range.

    A smaller keep computes groups that a larger one does too, unless it is the twofold share that stops a block.
    """

    keep: float
    holds_keys: bool = True

    def __post_init__(self) -> None:
        check_keep(self.keep)

    def select(self, groups: Tensor) -> PixelSelection:
        """Choose among `groups` (T, P, C).

        Raises `NonFiniteFeatures` for NaN, inf and values beyond 1e18: on CPU here, on an accelerator from
        `PixelSelection.check`, for which nothing here waits.
        """
        _check_groups(groups)
        frames, places, _ = groups.shape
        total = max(kept_groups(self.keep, frames, places), ops.Blocks(frames, places).count)
        if total == frames * places:
            return _every_group(groups)
        return _checked(ops.k_center(ops.KCenterProblem(groups, total)))


@dataclass(frozen=True)
class RunLength:
    """Computes a group if its pixels differ from the last computed group at its place. method.md, eq. 18-20.

    The first frame is computed as a whole, so every other group has one at its place that it can repeat. Run-length
    coding in time, after RLT (Choudhury et al., "Don't Look Twice: Faster Video Transformers with Run-Length
    Tokenization", NeurIPS 2024). What differs: RLT compares a patch with the frame before it, which misses slow drift;
    it adds a learned embedding of how long a run is; and it has a threshold only.

    keep: the fraction of the groups that is computed, in (0, 1]; exactly max(P, round(keep * T * P)), by a threshold
    that the video itself gives, without a wait for the device. All of them with 1, and then nothing is measured.
    threshold: instead of keep, the mean absolute difference, in normalised pixel values, above which a group is
    computed. How many are depends on the video, and is asked of the device.
    holds_keys: whether computed groups attend to the others too, by the keys and values of the groups that they repeat;
    without, the others are as if they had never been there, which is a little sooner and much less exact.
    Raises `ValueError` for both or neither, and for values out of range.

    A larger keep need not compute all that a smaller one does: other groups come before others then.
    """

    keep: float | None = None
    threshold: float | None = None
    holds_keys: bool = True

    def __post_init__(self) -> None:
        if (self.keep is None) == (self.threshold is None):
            raise ValueError(
                "keep and threshold each say how many groups are computed; give one of the two, as "
                f"RunLength(keep=0.5) or RunLength(threshold=0.1); got {self!r}"
            )
        if self.keep is not None:
            check_keep(self.keep)
        else:
            requirement = "threshold is a mean absolute difference of normalised pixel values, at least 0"
            check_number(requirement, self.threshold, 0)

    def select(self, groups: Tensor) -> PixelSelection:
        """Choose among `groups` (T, P, C).

        Raises `NonFiniteFeatures` for NaN, inf and values beyond 1e18: on CPU here, on an accelerator from
        `PixelSelection.check`, for which nothing here waits.
        """
        _check_groups(groups)
        frames, places, _ = groups.shape
        total = None if self.keep is None else kept_groups(self.keep, frames, places)
        if total == frames * places:
            return _every_group(groups)
        return _checked(ops.run_length(ops.RunLengthProblem(groups, total, self.threshold or 0.0)))


@dataclass(frozen=True)
class RandomGroups:
    """Computes the first frame and a random choice of the other groups: what the others have to beat.

    As many groups as `RunLength(keep)`, the same ones for the same seed and shape on every device.
    """

    keep: float
    seed: int = 0
    holds_keys: bool = True

    def __post_init__(self) -> None:
        check_keep(self.keep)
        check_number("seed is a whole number, at least 0", self.seed, 0, integer=True)

    def select(self, groups: Tensor) -> PixelSelection:
        """Choose among `groups` (T, P, C), of which only the shape is read."""
        _check_groups(groups)
        frames, places, _ = groups.shape
        total = kept_groups(self.keep, frames, places)
        if total == frames * places:
            return _every_group(groups)
        generator = torch.Generator().manual_seed(self.seed)
        score = torch.rand(frames, places, generator=generator)
        score[0] = torch.inf
        return PixelSelection(
            *(rows.to(groups.device) for rows in ops.hold_highest(ops.HoldHighestProblem(score, total)))
        )
