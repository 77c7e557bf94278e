"""The published methods and the guide's class on real model classes."""

import pytest
import torch

from tests.engines.hf import tiny
from tests.telemetry.test_flops import deep
from vidsieve import FrameFusion, registry
from vidsieve.engines.hf import verify


@pytest.mark.parametrize("method", registry.methods(inside=True))
def test_a_preset_verifies(method: str) -> None:
    inputs = tiny.batch(*[tiny.prompt("qwen2_5_vl", seed=n, text=6 + 5 * n, frames=24) for n in range(2)])
    report = verify(deep(8), inputs, registry.method(method)(0.5))
    assert report.ok, report
    for video in report.trace.videos:
        assert video.after <= 0.5 * video.before


@pytest.mark.parametrize("fast", [False, True])
def test_the_guides_class_attaches_and_meets_its_cost(fast: bool) -> None:
    model, inputs = deep(28), tiny.prompt("qwen2_5_vl", frames=64)
    with FrameFusion(cost=0.3, use_ultra_fast_mode=fast)(model) as trace, torch.no_grad():
        model(**inputs)
    assert trace.cost == pytest.approx(0.3, rel=0.01)
    assert [stage.layer for stage in trace.videos[0].stages] == [0, 1, 2]


def test_where_merging_alone_goes_below_the_cost_less_is_spent() -> None:
    model, method = deep(28), FrameFusion(cost=0.3, similarity_lower_bound=-1, segment_threshold=-1)
    with method(model) as trace, torch.no_grad():
        model(**tiny.prompt("qwen2_5_vl", frames=64))
    merged, _, pruned = trace.videos[0].stages
    assert trace.cost is not None
    assert trace.cost < 0.9 * 0.3
    assert merged.after < 0.3 * merged.before
    assert pruned.before == pruned.after


@pytest.mark.gpu
@pytest.mark.parametrize("method", registry.methods(inside=True))
def test_a_preset_verifies_on_a_gpu(method: str) -> None:
    inputs = tiny.batch(*[tiny.prompt("qwen2_5_vl", seed=n, text=6 + 5 * n, frames=24) for n in range(2)])
    given = {name: x.to("cuda") for name, x in inputs.items()}
    report = verify(deep(8).to("cuda"), given, registry.method(method)(0.5), tolerance=1e-3)
    assert report.ok, report
