"""Methods and parts refuse a wrong argument where it is given."""

from collections.abc import Callable

import pytest

from vidsieve import FrameFusion, Prune, Staged, registry
from vidsieve.methods import presets
from vidsieve.methods.merge import NearestKept, TemporalMerge
from vidsieve.methods.relevance import Novelty
from vidsieve.methods.segment import SceneCuts, Uniform, Whole
from vidsieve.methods.selection import (
    MMR,
    ConditionalDPP,
    DistinctFirst,
    Hybrid,
    LowRankDPP,
)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Prune("a"), "keep is the fraction"),  # type: ignore[arg-type]
        (lambda: Prune(0.1, selector=ConditionalDPP), r"write ConditionalDPP\(\)"),  # type: ignore[arg-type]
        (lambda: Prune(0.1, budget="even"), "expected a budget"),  # type: ignore[arg-type]
        (lambda: Prune(True), "keep is the fraction"),
        (lambda: Prune(0.1, merger=NearestKept), r"write NearestKept\(\)"),  # type: ignore[arg-type]
        (lambda: LowRankDPP(1.5), "whole number"),  # type: ignore[arg-type]
        (lambda: DistinctFirst(2), "share is of a segment's tokens"),
        (lambda: DistinctFirst(weight=-0.1), "weight is how much less"),
        (lambda: DistinctFirst(gate=1), "gate is a cosine"),
        (lambda: Hybrid(-1), "whole number"),
        (lambda: Hybrid(5, ConditionalDPP), r"short segments, .* write ConditionalDPP\(\)"),  # type: ignore[arg-type]
        (lambda: MMR("x"), "trade is"),  # type: ignore[arg-type]
        (lambda: Novelty(0), "floor is"),
        (lambda: Uniform(1.5), "whole number"),  # type: ignore[arg-type]
        (lambda: SceneCuts("a"), "threshold is"),  # type: ignore[arg-type]
        (lambda: SceneCuts(5), "threshold is"),
        (lambda: TemporalMerge(0.6, keep=0.3), "one of the two"),
        (lambda: TemporalMerge("a"), "is a cosine"),  # type: ignore[arg-type]
        (lambda: TemporalMerge(keep=0.5, least=0.3), "least goes with a threshold"),
        (lambda: TemporalMerge(segmenter=Whole), r"write Whole\(\)"),  # type: ignore[arg-type]
        (lambda: Staged([Prune(0.3)]), "layer: reducer"),  # type: ignore[arg-type]
        (lambda: Staged({float("nan"): Prune(0.3)}), "a stage is at a layer"),
        (lambda: Staged({1: Prune(0.3)}, cost="0.3"), "cost is the share"),  # type: ignore[arg-type]
        (lambda: presets.hieravid("x"), "keep is the fraction"),  # type: ignore[arg-type]
        (lambda: presets.framefusion(None), "cost is the share"),  # type: ignore[arg-type]
        (lambda: FrameFusion(cost=None), "cost is the share"),  # type: ignore[arg-type]
        (lambda: FrameFusion(use_ultra_fast_mode="no"), "True or False"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_argument_is_refused_where_it_is_given(make: Callable[[], object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        make()


@pytest.mark.parametrize("keep", [0.0, -0.1, 1.1, float("nan")])
@pytest.mark.parametrize("method", registry.methods(inside=False))
def test_keep_is_a_fraction(method: str, keep: float) -> None:
    with pytest.raises(ValueError, match=r"in \(0, 1\]"):
        registry.method(method)(keep)
