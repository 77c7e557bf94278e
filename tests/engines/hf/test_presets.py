"""The published methods and the guide's class on real model classes."""

import os
from pathlib import Path

import pytest
import torch

from tests.engines.hf import tiny
from tests.telemetry.test_flops import deep
from vidsieve import FrameFusion, registry
from vidsieve.engines.hf import load, prepare, verify
from vidsieve.evaluation.needles.tiny import BUNDLED
from vidsieve.video import read_video


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


@pytest.mark.skipif("VIDSIEVE_CLIPS" not in os.environ, reason="VIDSIEVE_CLIPS names no folder of real clips")
def test_every_shot_of_a_real_clip_keeps_tokens() -> None:
    processor, model = load(str(BUNDLED), "cpu")
    frames = read_video(Path(os.environ["VIDSIEVE_CLIPS"]) / "cuts_60s_480p.mp4", num_frames=32)
    inputs = prepare(processor, frames, "How many scenes are there?").to(model.device, model.dtype)
    with registry.method("vidsieve")(0.1)(model) as trace:
        model.generate(**inputs, max_new_tokens=1)
    video = trace.videos[0]
    step = torch.tensor(video.frames).cumsum(0).tolist()
    kept = torch.bincount(torch.bucketize(torch.tensor(video.kept), torch.tensor(step), right=True), minlength=16)
    middle = torch.tensor(frames.seconds).view(len(step), -1).mean(1)  # of each step
    cuts = torch.tensor([0, 5.0, 10.0, 25.04, 31.04, 43.04, 55.04])
    shot = torch.bucketize(middle, cuts, right=True) - 1
    assert sorted(set(shot.tolist())) == list(range(7))
    for s in range(7):  # no more than half of its share may go, nor all
        of = shot == s
        assert int(kept[of].sum()) >= max(1, 0.5 * float(of.float().mean()) * int(kept.sum()) - 1)


@pytest.mark.gpu
@pytest.mark.parametrize("method", registry.methods(inside=True))
def test_a_preset_verifies_on_a_gpu(method: str) -> None:
    inputs = tiny.batch(*[tiny.prompt("qwen2_5_vl", seed=n, text=6 + 5 * n, frames=24) for n in range(2)])
    given = {name: x.to("cuda") for name, x in inputs.items()}
    report = verify(deep(8).to("cuda"), given, registry.method(method)(0.5), tolerance=1e-3)
    assert report.ok, report
