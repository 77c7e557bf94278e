"""Whole reductions on kernels: in Triton's interpreter where there is no GPU, on the device where there is one."""

import pytest
import torch

from tests.ops.inputs import DEVICE, degenerate
from tests.synthetic import independent, never_waiting, video_like
from vidsieve import Prompt, Prune, VideoTokens, ops
from vidsieve.errors import KernelUnavailable, NonFiniteFeatures
from vidsieve.methods.budget import MarginalGain, Proportional
from vidsieve.methods.merge import NearestKept
from vidsieve.methods.relevance import Flat, Novelty, PromptSimilarity
from vidsieve.methods.segment import PerFrame, SceneCuts, Uniform, Whole, Within
from vidsieve.methods.selection import (
    MMR,
    ConditionalDPP,
    EvenlySpaced,
    Hybrid,
    LowRankDPP,
    MaxMin,
    Random,
    TopRelevance,
)
from vidsieve.types.reduction import Reduction

pytest.importorskip("triton", reason="Triton is not installed")


def test_a_reducer_runs_on_kernels_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDSIEVE_OPS", "triton")
    tokens = VideoTokens(video_like(4, 5, 24, seed=0, dtype=torch.float32).to(DEVICE), (5,) * 4)
    prompt = Prompt(independent(3, 24, 1, torch.float32).to(DEVICE))
    method = Prune(0.25, SceneCuts(), MarginalGain(), PromptSimilarity(), ConditionalDPP(), NearestKept())
    with ops.spy() as calls:
        reduction = method.reduce(tokens, prompt)
    assert {name for _, name in calls} == {"triton"}
    monkeypatch.setenv("VIDSIEVE_OPS", "reference")
    expected = method.reduce(VideoTokens(tokens.features, tokens.frames), prompt)
    assert torch.equal(reduction.kept, expected.kept)
    assert torch.equal(reduction.assigned_to, expected.assigned_to)
    monkeypatch.setenv("VIDSIEVE_OPS", "triton")
    with pytest.raises(KernelUnavailable, match="float64"):
        method.reduce(VideoTokens(tokens.features.double(), tokens.frames), prompt)


@pytest.mark.gpu
@pytest.mark.parametrize("selector", [ConditionalDPP(), MMR()], ids=repr)
@pytest.mark.parametrize("segmenter", [PerFrame(), SceneCuts(), SceneCuts(max_frames=None)], ids=repr)
def test_a_captured_graph_reduces_new_data(segmenter: object, selector: object) -> None:
    method = Prune(0.2, segmenter, MarginalGain(), PromptSimilarity(), selector)  # type: ignore[arg-type]
    videos = [video_like(8, 196, 256, seed=s, dtype=torch.bfloat16, cuts=(3, 5)).to(DEVICE) for s in range(3)]
    prompt = Prompt(independent(6, 256, 9, torch.bfloat16).to(DEVICE))
    static = videos[0].clone()
    run = lambda x: method.reduce(VideoTokens.from_grid(x, 8, 14, 14), prompt).apply(x)  # noqa: E731
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(2):
            run(static)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(static)
    for x in videos:
        static.copy_(x)
        graph.replay()
        assert torch.equal(out, run(x))


@pytest.mark.gpu
def test_a_reduction_never_waits_for_the_device() -> None:
    method = Prune(0.2, SceneCuts(), MarginalGain(), PromptSimilarity(), ConditionalDPP(), NearestKept())
    tokens = video_like(8, 196, 256, seed=0, dtype=torch.bfloat16).to(DEVICE)
    prompt = Prompt(independent(6, 256, 9, torch.bfloat16).to(DEVICE))
    method.reduce(VideoTokens.from_grid(tokens, 8, 14, 14), prompt).apply(tokens)
    with never_waiting():
        method.reduce(VideoTokens.from_grid(tokens, 8, 14, 14), prompt).apply(tokens)


TOGETHER = {
    "per frame": Prune(0.3, PerFrame(), Proportional(), PromptSimilarity(), ConditionalDPP()),
    "scenes": Prune(0.3, SceneCuts(), MarginalGain(), PromptSimilarity(), ConditionalDPP()),
    "the default": Prune(0.2),
    "uneven last segment": Prune(0.3, Uniform(4), MarginalGain(), Novelty(), MMR()),
    "whole": Prune(0.1, Whole(), Proportional(), Flat(), MaxMin(), NearestKept()),
    "sketched": Prune(0.2, Whole(), Proportional(), PromptSimilarity(), LowRankDPP(8, above=12)),
    "evenly": Prune(0.3, Within(11), MarginalGain(), Novelty(), EvenlySpaced()),
    "most relevant": Prune(0.3, Whole(), Proportional(), PromptSimilarity(), TopRelevance()),
    "hybrid": Prune(0.3, SceneCuts(), MarginalGain(), PromptSimilarity(), Hybrid(7)),
    "hybrid of others": Prune(0.3, SceneCuts(), MarginalGain(), Novelty(), Hybrid(7, MaxMin(), ConditionalDPP())),
}
# With and without a question, with and without persistence. Only what is measured reads features where they lay: once
# videos are stacked, they lie together.
MEASURED = ("per frame", "scenes", "whole", "the default")


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    ("method", "apart", "questions"),
    [*((name, False, (3, 3)) for name in TOGETHER), *((name, True, (1, 4)) for name in MEASURED)],
    ids=[*(f"{name}-neighbours" for name in TOGETHER), *(f"{name}-apart, other questions" for name in MEASURED)],
)
def test_videos_of_one_layout_go_together_and_each_is_what_it_is_alone(
    method: str, apart: bool, questions: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDSIEVE_OPS", "triton")
    reducer = TOGETHER[method]
    features = torch.stack([video_like(5, 5, 24, seed=s, dtype=torch.float32, cuts=(2 + s,)) for s in range(2)])
    features = features.to(DEVICE).repeat(1, 1 + apart, 1)[:, :25]
    prompts = [Prompt(independent(m, 24, 90 + m, torch.float32).to(DEVICE)) for m in questions]
    videos = [VideoTokens.from_grid(x, 5, 1, 5) for x in features]
    with ops.spy() as calls:
        found = reducer.reduce_each(videos, prompts)
    assert calls.count(("compact", "triton")) == 1
    for ours, x, prompt in zip(found, features, prompts, strict=True):
        true = reducer.reduce(VideoTokens.from_grid(x, 5, 1, 5), prompt)
        assert torch.equal(ours.kept, true.kept)
        assert torch.equal(ours.assigned_to, true.assigned_to)
        assert torch.equal(ours.offsets, true.offsets)  # type: ignore[arg-type]
        assert torch.equal(ours.budget, true.budget)  # type: ignore[arg-type]
        assert torch.equal(ours.apply(x), true.apply(x))


def test_videos_that_cannot_go_together_go_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDSIEVE_OPS", "triton")
    x = video_like(4, 3, 24, seed=0, dtype=torch.float32).to(DEVICE)
    prompt = Prompt(independent(3, 24, 9, torch.float32).to(DEVICE))
    longer, shorter = VideoTokens(x, (3,) * 4), VideoTokens(x[:6], (3,) * 2)
    alone: dict[tuple[Prune, int], Reduction] = {}
    cases: list[tuple[Prune, list[VideoTokens], list[Prompt | None] | None]] = [
        (Prune(0.2), [longer, shorter], None),
        (Prune(0.2), [longer, longer], [prompt, None]),
        (Prune(0.2), [longer], None),
        (Prune(1.0), [longer, longer], None),
        (Prune(0.2, selector=Random(1)), [longer, longer], None),
        (Prune(0.2), [longer, longer], [prompt, Prompt(torch.zeros(1, 8, device=DEVICE))]),
    ]
    for method, videos, prompts in cases:
        for video, found in zip(videos, method.reduce_each(videos, prompts), strict=True):
            if (method, len(video)) not in alone:
                alone[method, len(video)] = method.reduce(VideoTokens(video.features, video.frames))
            assert torch.equal(found.kept, alone[method, len(video)].kept)
    assert Prune(0.2).reduce_each([]) == []
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        Prune(0.2).reduce_each([longer, longer], [prompt])


def test_many_videos_go_together_in_groups_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDSIEVE_OPS", "triton")
    features = [video_like(4, 3, 24, seed=s, dtype=torch.float32).to(DEVICE) for s in range(5)]
    prompts = [Prompt(independent(1 + s, 24, 90 + s, torch.float32).to(DEVICE)) for s in range(5)]
    method = Prune(0.2, PerFrame(), Proportional(), PromptSimilarity(), TopRelevance())
    alone = [method.reduce(VideoTokens(x, (3,) * 4), p).kept for x, p in zip(features, prompts, strict=True)]
    for most, groups in ((2, 3), (5, 1), (0, 5)):
        monkeypatch.setattr("vidsieve.methods.prune.TOGETHER_BYTES", most * features[0].nbytes)
        with ops.spy() as calls:
            found = method.reduce_each([VideoTokens(x, (3,) * 4) for x in features], prompts)
        assert calls.count(("compact", "triton")) == groups
        assert all(torch.equal(a.kept, b) for a, b in zip(found, alone, strict=True))


@pytest.mark.skipif(DEVICE == "cuda", reason="there `Reduction.check` says so, see the captured graph below")
def test_one_bad_video_of_several_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDSIEVE_OPS", "triton")
    good, bad = (video_like(4, 3, 24, seed=s, dtype=torch.float32) for s in range(2))
    bad[7, 3] = float("nan")
    with pytest.raises(NonFiniteFeatures, match="1 of 24"):
        Prune(0.2).reduce_each([VideoTokens(good, (3,) * 4), VideoTokens(bad, (3,) * 4)])


@pytest.mark.gpu
def test_a_captured_graph_reduces_several_videos_and_knows_the_bad_one() -> None:
    method = Prune(0.2, PerFrame(), Proportional(), PromptSimilarity(), ConditionalDPP())
    static = torch.stack([video_like(8, 196, 256, seed=s, dtype=torch.bfloat16) for s in range(3)]).to(DEVICE)
    prompts = [Prompt(independent(6, 256, 9, torch.bfloat16).to(DEVICE))] * 3
    run = lambda: method.reduce_each([VideoTokens(x, (196,) * 8) for x in static], prompts)  # noqa: E731
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    static.copy_(static.flip(0))
    static[1, 5, 5] = float("inf")
    graph.replay()
    true = [method.reduce(VideoTokens(x, (196,) * 8), prompts[0]) for x in static]
    for i in (0, 2):
        assert torch.equal(out[i].kept, true[i].kept)
        out[i].check()
    with pytest.raises(NonFiniteFeatures):
        out[1].check()


def test_inputs_need_not_be_contiguous(monkeypatch: pytest.MonkeyPatch) -> None:
    x = degenerate(45, "video-like").float().to(DEVICE)
    layouts = {
        "rows apart": torch.stack([x, x.flip(0)], 1)[:, 0],
        "columns apart": torch.stack([x, -x], 2)[:, :, 0],
        "transposed": x.mT.contiguous().mT,
    }
    method = Prune(0.3, SceneCuts(), MarginalGain(), PromptSimilarity(), ConditionalDPP(), NearestKept())
    frames, prompt = (5,) * 9, Prompt(independent(3, 24, 1, torch.float32).to(DEVICE))
    monkeypatch.setenv("VIDSIEVE_OPS", "triton")
    true = method.reduce(VideoTokens(x, frames), prompt)
    for name, other in layouts.items():
        assert not other.is_contiguous(), name
        ours = method.reduce(VideoTokens(other, frames), prompt)
        assert torch.equal(ours.kept, true.kept), name
        assert torch.equal(ours.assigned_to, true.assigned_to), name
        assert torch.equal(ours.apply(other), true.apply(x)), name


@pytest.mark.gpu
def test_streams_do_not_wait_for_or_disturb_one_another() -> None:
    method = Prune(0.2, SceneCuts(), MarginalGain(), PromptSimilarity(), ConditionalDPP())
    videos = [video_like(8, 196, 256, seed=s, dtype=torch.bfloat16, cuts=(3, 5)).to(DEVICE) for s in range(4)]
    prompt = Prompt(independent(6, 256, 9, torch.bfloat16).to(DEVICE))
    run = lambda x: method.reduce(VideoTokens.from_grid(x, 8, 14, 14), prompt).apply(x)  # noqa: E731
    alone = [run(x) for x in videos]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in videos]
    for _ in range(10):
        together = []
        for x, stream in zip(videos, streams, strict=True):
            with torch.cuda.stream(stream):
                together.append(run(x))
        torch.cuda.synchronize()
        for ours, true in zip(together, alone, strict=True):
            assert torch.equal(ours, true)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_device_of_the_features_is_used() -> None:
    x, method = video_like(8, 196, 256, seed=0, dtype=torch.bfloat16, cuts=(3, 5)), Prune(0.2)
    first, second = (method.reduce(VideoTokens(x.to(f"cuda:{i}"), (196,) * 8)).kept for i in (0, 1))
    assert second.device.index == 1
    assert torch.equal(first.cpu(), second.cpu())
