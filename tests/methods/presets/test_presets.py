"""The published methods that reduce inside the model, each against its paper's rule on an example worked by hand."""

import pytest
import torch

import vidsieve
from tests.methods.kept import kept
from tests.synthetic import independent, video_like
from vidsieve import FrameFusion, Prune, Staged, VideoTokens, registry
from vidsieve.methods import presets
from vidsieve.methods.base import Reducer
from vidsieve.methods.budget import MarginalGain, Proportional
from vidsieve.methods.merge import TemporalMerge
from vidsieve.methods.relevance import Flat, PromptAttention
from vidsieve.methods.segment import SceneCuts, Whole, Within
from vidsieve.methods.selection import MMR, ConditionalDPP, Hybrid, TopRelevance


def attended_video(n: int, mass: list[float]) -> VideoTokens:
    x = torch.randn(n, 8, generator=torch.Generator().manual_seed(0))
    return VideoTokens(x, (n,), attended={"last": torch.tensor(mass)})


def test_the_expressions_with_every_default() -> None:
    merge = TemporalMerge(0.6, SceneCuts(0.5, max_tokens=None), least=0.1)
    select = Prune(1.0, SceneCuts(0.5), MarginalGain(), PromptAttention(), Hybrid(512, ConditionalDPP(), MMR()))
    assert FrameFusion().method == Staged({0: merge, 1: merge, 2: select}, 0.3)
    last = Prune(1.0, Whole(), Proportional(), PromptAttention("last"), TopRelevance())
    assert presets.framefusion() == Staged({0: merge, 1: merge, 2: last}, 0.3)

    def part(keep: float) -> Prune:
        return Prune(keep, SceneCuts(), MarginalGain(), PromptAttention(), ConditionalDPP())

    assert presets.hieravid() == Staged({0: TemporalMerge(0.8), 0.25: part(0.3), 0.5: part(0.15), 0.75: part(0.075)})


def test_moments_keeps_more_of_what_comes_and_goes_than_its_selector_alone() -> None:
    """Frames that stand still, in each of which another token is unlike all others."""
    frames, per_frame = 8, 12
    gone = torch.arange(frames) * per_frame + (5 * torch.arange(frames)) % per_frame

    def found(method: Reducer) -> int:
        total = 0
        for seed in range(20):
            x = independent(per_frame, 32, seed, torch.float32).repeat(frames, 1)
            x[gone] = independent(frames, 32, 100 + seed, torch.float32)
            kept = method.reduce(VideoTokens.from_grid(x, frames, 3, 4)).kept
            total += int(torch.isin(gone, kept).sum())
        return total

    alone = found(Prune(0.1, Within(), MarginalGain(0), Flat(), MMR(0.2)))
    assert found(presets.moments(0.1)) > 1.15 * alone > 60  # of 160


def test_fastv_keeps_the_half_that_the_last_token_attends_to_most() -> None:
    method = presets.fastv()
    assert list(method.stages) == [2]
    tokens = attended_video(6, [0.10, 0.02, 0.30, 0.01, 0.05, 0.20])
    assert kept(method.stages[2], tokens) == [0, 2, 5]
    assert list(presets.fastv(0.25, layer=5).stages) == [5]


def test_pyramiddrop_halves_at_every_quarter_of_the_depth() -> None:
    stages = presets.pyramiddrop().layers(32)
    assert list(stages) == [8, 16, 24]
    mass = [0.08, 0.01, 0.07, 0.02, 0.06, 0.03, 0.05, 0.04]
    tokens = attended_video(8, mass)
    assert kept(stages[8], tokens) == [0, 2, 4, 6]
    left = tokens.reduced(stages[8].reduce(tokens))
    assert left.original_count == 8
    later = VideoTokens.left_of(left.provenance, left.features, {"last": torch.tensor([1.0, 4.0, 2.0, 3.0])})  # type: ignore[arg-type]
    assert kept(stages[16], later) == [1, 3]  # a quarter of eight, by the attention of that layer
    assert kept(stages[24], later) == [1]


def still_but_for_one_place(frames: int = 4) -> VideoTokens:
    """Five places that point apart; the last one turns by 90 degrees, towards a sixth, at frame 2."""
    x = torch.eye(6)[:5].repeat(frames, 1, 1)
    x[2:, 4] = torch.eye(6)[5]
    x *= 1 + torch.arange(frames)[:, None, None]  # of different lengths: a mean and not a copy
    return VideoTokens.from_grid(x.reshape(-1, 6), frames, 1, 5)


def test_framefusion_merges_what_is_alike_and_averages_it() -> None:
    method = presets.framefusion()
    assert method.cost == 0.3
    assert method.layers(28).keys() == {0, 1, 2}
    tokens = still_but_for_one_place()
    reduction = method.stages[0].reduce(tokens)
    assert reduction.kept.tolist() == [0, 1, 2, 3, 4, 14]
    merged = reduction.apply(tokens.features)
    torch.testing.assert_close(merged[:4], 2.5 * torch.eye(6)[:4])  # the mean of 1, 2, 3 and 4
    torch.testing.assert_close(merged[4:], torch.stack([1.5 * torch.eye(6)[4], 3.5 * torch.eye(6)[5]]))


def test_framefusion_stops_merging_where_too_little_is_alike() -> None:
    x = torch.eye(12).repeat(2, 1)
    x[13:] = x[13:].roll(1, 0)  # of twelve places one is alike: 1 of 24 tokens, below a tenth
    tokens = VideoTokens.from_grid(x, 2, 1, 12)
    assert len(presets.framefusion().stages[1].reduce(tokens)) == 24


def test_framefusion_then_prunes_by_attention() -> None:
    last = presets.framefusion().stages[2]
    assert isinstance(last, Prune)
    assert last.keep == 1.0  # the cost sets it
    tokens = attended_video(4, [0.1, 0.4, 0.2, 0.3])
    assert kept(Prune(0.5, last.segmenter, last.budget, last.relevance, last.selector), tokens) == [1, 3]


def test_hieravid_merges_first_and_keeps_less_and_less_by_segment() -> None:
    stages = presets.hieravid(0.4).layers(28)
    assert list(stages) == [0, 7, 14, 21]
    assert isinstance(stages[0], TemporalMerge)
    x = video_like(8, 10, 32, seed=0, dtype=torch.float32, cuts=(4,), motion=0.9)
    mass = torch.rand(80, generator=torch.Generator().manual_seed(0))
    tokens = VideoTokens(x, (10,) * 8, attended={"question": mass})
    for layer, count in ((7, 32), (14, 16), (21, 8)):
        stage = stages[layer]
        assert isinstance(stage, Prune)
        assert isinstance(stage.selector, ConditionalDPP)
        reduction = stage.reduce(tokens)
        assert len(reduction) == count
        assert reduction.offsets is not None
        assert {0, 40, 80} <= set(reduction.offsets.tolist())  # the cut is a border


@pytest.mark.parametrize("method", registry.methods(inside=True))
def test_what_is_kept_or_spent_is_a_fraction(method: str) -> None:
    for value in (0.0, -0.1, 1.1):
        with pytest.raises(ValueError, match=r"in \(0, 1\]"):
            registry.method(method)(value)


@pytest.mark.parametrize("method", registry.methods(inside=True))
def test_a_configuration_is_its_repr(method: str) -> None:
    staged = registry.method(method)(0.3)
    parts = [part for reducer in staged.stages.values() for part in vars(reducer).values()]
    names = {type(part).__name__: type(part) for part in (*parts, *staged.stages.values())}
    assert eval(repr(staged), vars(vidsieve) | names) == staged


def test_the_guides_class_stands_for_an_expression() -> None:
    quality, fast = FrameFusion(), FrameFusion(0.5, 0.7, 0.2, 0.4, use_ultra_fast_mode=True)
    assert isinstance(quality.method, Staged)
    assert quality.method.cost == 0.3
    last = quality.method.stages[2]
    assert isinstance(last, Prune)
    assert last.selector == Hybrid(512, ConditionalDPP(), MMR())
    assert last.relevance == PromptAttention()
    first, last = fast.method.stages[0], fast.method.stages[2]
    assert isinstance(first, TemporalMerge)
    assert isinstance(last, Prune)
    assert (fast.method.cost, first.threshold, first.least) == (0.5, 0.7, 0.2)
    assert last.selector == Hybrid(256, ConditionalDPP(), MMR())
    assert {stage.segmenter.threshold for stage in (first, last)} == {0.4}  # type: ignore[attr-defined]
    assert FrameFusion(greedy_threshold=64).method.stages[2].selector.threshold == 64  # type: ignore[attr-defined]
    assert "Hybrid(threshold=512" in repr(quality)
