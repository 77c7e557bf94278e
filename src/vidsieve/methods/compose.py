"""Combine reducers: one after another before the language model (`Chain`), or at its layers (`Staged`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from vidsieve.checks import check_number
from vidsieve.methods.base import Attachable, Reducer, check_cost, check_given
from vidsieve.methods.pixels import KCenter, PixelSelector
from vidsieve.types.reduction import Reduction
from vidsieve.types.tokens import Prompt, VideoTokens


@dataclass(frozen=True, init=False)
class Chain(Reducer):
    """Applies reducers one after another, each to the remaining tokens; every `keep` counts from the original video.

    Raises `ValueError` without a reducer, or for an argument that is not one.
    """

    reducers: tuple[Reducer, ...]

    def __init__(self, *reducers: Reducer) -> None:
        if not reducers:
            raise ValueError("Chain needs at least one reducer")
        if strangers := [r for r in reducers if not isinstance(r, Reducer)]:
            place = "Pixels()" if hasattr(strangers[0], "select") else "0"
            raise ValueError(
                f"a Chain is of reducers, got {strangers[0]!r}; to combine it, make it the stage at {place} of a Staged"
            )
        object.__setattr__(self, "reducers", reducers)

    def reduce(self, tokens: VideoTokens, prompt: Prompt | None = None) -> Reduction:
        check_given(tokens, prompt)
        reduction = self.reducers[0].reduce(tokens, prompt)
        for reducer in self.reducers[1:]:
            reduction = reduction.then(reducer.reduce(tokens.reduced(reduction), prompt))
        return reduction


@dataclass(frozen=True)
class Pixels:
    """The place before the vision tower: `Staged({Pixels(): KCenter(0.5), 0: Prune(0.1)})`."""


def with_pixels(method: Attachable, keep: float | None) -> Attachable:
    """Make `method` act on a video of which the vision tower computes this share of the groups of pixels; None: all."""
    if keep is None:
        return method
    made: Any = getattr(method, "method", method)  # of what only stands for one, as `FrameFusion`
    if isinstance(made, Staged):
        return Staged({**made.stages, Pixels(): KCenter(keep)}, made.cost)
    return Staged({Pixels(): KCenter(keep), 0: made})


@dataclass(frozen=True, init=False)
class Staged(Attachable):
    """Reduces at several layers of the language model: `Staged({0: TemporalMerge(0.6), 0.5: Prune(0.3)})`.

    stages: a reducer for each layer, applied to the remaining tokens as they enter the layer; and at `Pixels()`, a
    pixel selector that says which groups of pixels the vision tower computes. The others have the features of the group
    that they repeat, so all later stages see the video that an untouched tower makes. A layer is a number or a
    fraction of the depth, so that one configuration serves 28, 36 and 80 layers. A fraction is rounded to the nearest
    layer, but at least to 1, because only 0 is before the language model.
    Every `keep` counts from the original video.
    cost: the share of the decoder's prefill FLOPs to spend, counted from its real layers (telemetry/flops.py). It sets
    the keep of the last stage, to at most its own; fewer FLOPs are spent if that is below `cost`. `BudgetError` is
    raised in the call if `cost` cannot be met.
    Raises `ValueError` for stages that are not reducers at layers.
    """

    stages: Mapping[Any, Reducer | PixelSelector]
    cost: float | None = None

    def __init__(self, stages: Mapping[Any, Reducer | PixelSelector], cost: float | None = None) -> None:
        if not isinstance(stages, Mapping):
            raise ValueError(f"expected stages as {{layer: reducer}}, got {stages!r}")
        if not stages:
            raise ValueError("Staged needs at least one stage, as {layer: reducer}")
        for layer, reducer in stages.items():
            if isinstance(layer, Pixels):
                if not callable(getattr(reducer, "select", None)):
                    raise ValueError(f"expected a pixel selector at Pixels(), as KCenter(0.5), got {reducer!r}")
                continue
            end = math.nextafter(1, 0) if isinstance(layer, float) else math.inf
            requirement = "a stage is at a layer, 0 or more, or at a fraction of the depth in [0, 1)"
            check_number(requirement, layer, 0, end)
            if not isinstance(reducer, Reducer):
                hint = "; it acts before the vision tower, at Pixels()" if hasattr(reducer, "select") else ""
                raise ValueError(f"expected a reducer at layer {layer}, got {reducer!r}{hint}")
        if cost is not None:
            check_cost(cost)
        object.__setattr__(self, "stages", dict(stages))
        object.__setattr__(self, "cost", cost)

    @property
    def pixels(self) -> PixelSelector | None:
        """The selector before the vision tower, None without one."""
        return cast("PixelSelector | None", self.stages.get(Pixels()))

    @property
    def inside(self) -> bool:
        """Whether it acts inside the language model alone, at layers from 1 on."""
        return all(place and not isinstance(place, Pixels) for place in self.stages)

    @property
    def after_pixels(self) -> Attachable | None:
        """The same without the selector before the vision tower; None if there is nothing else."""
        rest = {place: reducer for place, reducer in self.stages.items() if not isinstance(place, Pixels)}
        if list(rest) == [0] and self.cost is None and isinstance(only := rest[0], Reducer):
            return only
        return Staged(rest, self.cost) if rest else None

    def layers(self, depth: int) -> dict[int, Reducer]:
        """Get the stages of a model of `depth` layers, by layer, first to last.

        Raises `ValueError` for a layer that the model lacks, two stages at one layer, and a `cost` that the last stage
        cannot meet.
        """
        found: dict[int, Reducer] = {}
        for place, reducer in self.stages.items():
            if isinstance(place, Pixels) or not isinstance(reducer, Reducer):
                continue
            layer = max(1, min(round(place * depth), depth - 1)) if isinstance(place, float) and place else int(place)
            if layer >= depth:
                raise ValueError(f"no layer {layer} to stage at: this model has {depth}, 0 to {depth - 1}")
            if layer in found:
                raise ValueError(
                    f"two stages at layer {layer} of {depth}, the later one at {place}; give them layers of their own, "
                    "or combine them: Chain(first, second)"
                )
            found[layer] = reducer
        last = max(found, default=0)
        if self.cost is not None and not found:
            raise ValueError("cost is met by a stage at layer 1 or later; there is none")
        if self.cost is not None and getattr(found[last], "keep", None) is None:
            raise ValueError(f"cost sets the keep of the last stage, and {found[last]!r} has none; end with a Prune")
        if self.cost is not None and last == 0:
            raise ValueError("cost is met by a stage at layer 1 or later; before the language model, set keep itself")
        return dict(sorted(found.items()))
