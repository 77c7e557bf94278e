"""Hand-worked cases of the parts, and what they refuse."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

import vidsieve
from tests.synthetic import independent, video_like
from vidsieve import Chain, FrameFusion, Prompt, Prune, Reduction, Staged, VideoTokens, ops, registry
from vidsieve.errors import KernelUnavailable, WrongArgument
from vidsieve.methods import presets
from vidsieve.methods.budget import Budget, MarginalGain, Proportional
from vidsieve.methods.measure import cut, measure
from vidsieve.methods.merge import NearestKept, TemporalMerge
from vidsieve.methods.relevance import Flat, Given, Novelty, PromptAttention, PromptSimilarity, Relevance, min_max
from vidsieve.methods.segment import PerFrame, SceneCuts, Segmenter, Uniform, Whole, Within
from vidsieve.methods.selection import (
    MMR,
    ConditionalDPP,
    EvenlySpaced,
    Hybrid,
    LowRankDPP,
    MaxMin,
    Selector,
    TopRelevance,
    sketch,
)
from vidsieve.types.segments import Segments
from vidsieve.types.statistics import UNMEASURED, TokenStatistics
from vidsieve.video.decode import read_video


def kept(method: vidsieve.Reducer, tokens: VideoTokens, prompt: Prompt | None = None) -> list[int]:
    return method.reduce(tokens, prompt).kept.tolist()


def test_in_a_chain_attention_follows_the_tokens_that_are_left() -> None:
    x = torch.tensor([[1.0, 0], [3, 0], [2, 0], [0, 4], [1, 0], [9, 0]])
    mass = torch.tensor([0.9, 0.1, 0.3, 0.2, 0.5, 0.2])
    tokens = VideoTokens(x, (2, 2, 2), attended={"question": mass})
    attended = Prune(1 / 3, Whole(), Proportional(), PromptAttention(), TopRelevance())
    loudest = Prune(2 / 3, Whole(), Proportional(), Given(x.norm(dim=1) / 9), TopRelevance())  # 1, 2, 3, 5
    assert kept(Chain(loudest, attended), tokens) == [2, 3]
    # The first place is alike in all frames: 0, 2 and 4 become one that received (0.9 + 0.3 + 0.5) / 3 = 0.57, not 0.9.
    merged = TemporalMerge(0.9, Whole()).reduce(tokens)
    left = tokens.reduced(merged)
    assert merged.kept.tolist() == [0, 1, 3, 5]
    assert left.attended is not None
    torch.testing.assert_close(left.attended["question"], torch.tensor([1.7 / 3, 0.1, 0.2, 0.2]))


# --- segments


def bounds(segments: Segments) -> list[int]:
    return sorted(set(segments.offsets.tolist()))


def test_scene_cuts_finds_cuts_and_splits_long_scenes_evenly() -> None:
    tokens = VideoTokens.from_grid(video_like(20, 8, 64, seed=0, cuts=(3, 12)), 20, 2, 4)
    stats = measure(tokens, {"persistence"})
    assert bounds(SceneCuts(max_frames=None)(tokens, stats)) == [0, 24, 96, 160]
    # 3 + 9 + 8 frames in parts of at most 4: 3, 3 + 3 + 3, 4 + 4
    assert bounds(SceneCuts(max_frames=4)(tokens, stats)) == [8 * t for t in (0, 3, 6, 9, 12, 16, 20)]


def test_uniform_segments_end_with_the_rest() -> None:
    tokens = VideoTokens(independent(14, 4, 0), (2,) * 7)
    assert bounds(Uniform(3)(tokens)) == [0, 6, 12, 14]
    assert bounds(Uniform(100)(tokens)) == [0, 14]


def test_frames_of_different_sizes() -> None:
    tokens = VideoTokens(independent(10, 4, 0), (2, 3, 5))
    assert bounds(PerFrame()(tokens)) == [0, 2, 5, 10]
    assert tokens.frame.tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 2, 2]
    assert not tokens.regular
    assert len(presets.vidsieve(0.5).reduce(tokens)) == 5


@pytest.mark.skipif("VIDSIEVE_CLIPS" not in os.environ, reason="VIDSIEVE_CLIPS names no folder of real clips")
def test_scene_cuts_finds_the_cuts_of_a_real_clip() -> None:
    frames = read_video(Path(os.environ["VIDSIEVE_CLIPS"]) / "cuts_60s_480p.mp4", num_frames=64, size=(224, 224))
    patches = frames.pixels.float().reshape(64, 14, 16, 14, 16, 3).permute(0, 1, 3, 2, 4, 5).reshape(64 * 196, -1)
    tokens = VideoTokens.from_grid(patches, 64, 14, 14)
    found = bounds(SceneCuts(max_frames=None)(tokens, measure(tokens, {"persistence"})))[1:-1]
    true = [5.0, 10.0, 25.04, 31.04, 43.04, 55.04]
    seconds = torch.tensor(frames.seconds)
    expected = [196 * int((seconds < cut - 1e-3).sum()) for cut in true]
    assert len(found) == len(expected)
    assert all(abs(a - b) <= 196 for a, b in zip(found, expected, strict=True))


# --- what is measured


@dataclass(frozen=True)
class Newest:
    """A selector of one's own."""

    requires: ClassVar[frozenset[str]] = frozenset({"persistence"})

    def __call__(
        self,
        tokens: VideoTokens,
        stats: TokenStatistics,
        segments: Segments,
        budget: Tensor,
        relevance: Tensor,
        total: int,
    ) -> Tensor:
        return ops.top(-tokens.from_original(stats.required("persistence")), segments.offsets, budget)


class Silent(Newest):
    requires: ClassVar[frozenset[str]] = frozenset()


class Misspelt(Newest):
    requires: ClassVar[frozenset[str]] = frozenset({"persistance"})


def measures(method: vidsieve.Reducer, tokens: VideoTokens) -> int:
    """How many passes over features it makes."""
    with ops.spy() as calls:
        method.reduce(tokens, Prompt(tokens.features[:3]))
    return [operation for operation, _ in calls].count("measure")


@pytest.mark.parametrize("relevance", [Flat(), Novelty(), PromptSimilarity()], ids=repr)
@pytest.mark.parametrize("budget", [Proportional(), MarginalGain()], ids=repr)
@pytest.mark.parametrize("segmenter", [Whole(), PerFrame(), Uniform(2), Within(30), SceneCuts()], ids=repr)
def test_features_are_read_once(segmenter: Segmenter, budget: Budget, relevance: Relevance) -> None:
    tokens = VideoTokens(video_like(6, 10, 16, seed=1, dtype=torch.float32, cuts=(2,)), (10,) * 6)
    first, later = Prune(0.5, segmenter, budget, relevance), Prune(0.2, segmenter, budget, relevance)
    assert measures(first, tokens) == 1
    left = tokens.reduced(first.reduce(tokens, Prompt(tokens.features[:3])))
    assert measures(later, left) == 1  # of what is left: what it needs of the video as it came was handed on
    assert measures(Chain(first, later, TemporalMerge(keep=0.1, segmenter=segmenter)), tokens) == 3


def test_what_nobody_handed_on_is_measured_of_the_video_as_it_came() -> None:
    tokens = VideoTokens(video_like(6, 10, 16, seed=1, dtype=torch.float32, cuts=(2,)), (10,) * 6)
    left = tokens.reduced(Reduction.select(torch.arange(0, 60, 2), 60))
    for method, passes in ((Prune(0.2, SceneCuts()), 2), (Prune(0.2, Whole(), Proportional(), Flat()), 1)):
        assert measures(method, left) == passes
    assert Prune(0.2, SceneCuts()).reduce(left).original_statistics is not None


def test_a_part_gets_what_it_declares_also_within_another() -> None:
    tokens = VideoTokens(video_like(6, 10, 16, seed=1, dtype=torch.float32, cuts=(2,)), (10,) * 6)
    plain = Prune(0.5, Whole(), Proportional(), Flat(), Newest())
    left = tokens.reduced(Prune(0.8, Whole()).reduce(tokens))
    for video in (tokens, left):
        inner = Prune(0.5, Whole(), Proportional(), Flat(), Hybrid(0, large=Newest()))
        assert kept(inner, video) == kept(plain, video)
    with pytest.raises(WrongArgument, match=r"not measured.* requires = frozenset\(\{'persistence'\}\)"):
        Prune(0.5, Whole(), Proportional(), Flat(), Silent()).reduce(tokens)


def test_a_part_can_only_require_what_is_measured() -> None:
    with pytest.raises(WrongArgument, match=r"the selector can require norm, .* got \['persistance'\]"):
        Prune(0.5, selector=Misspelt())
    like_the_question = type("LikeTheQuestion", (SceneCuts,), {"requires": frozenset({"similarity"})})()
    for make in (lambda: Prune(0.5, like_the_question), lambda: TemporalMerge(0.5, like_the_question)):
        with pytest.raises(WrongArgument, match=r"the segmenter can require norm, persistence of the features"):
            make()


# --- budgets


def test_a_still_scene_gets_little_more_than_its_first_frame() -> None:
    tokens = VideoTokens.from_grid(video_like(20, 8, 64, seed=0, cuts=(10,), motion=0.0), 20, 2, 4)
    moving = tokens.features.clone()
    moving[80:] = video_like(10, 8, 64, seed=1, cuts=tuple(range(10)))
    tokens = VideoTokens.from_grid(moving, 20, 2, 4)
    segments = Segments(torch.tensor([0, 80, 160]), 80)
    stats = measure(tokens, {"persistence"})
    still, busy = MarginalGain()(tokens, stats, segments, 40).tolist()
    assert still + busy == 40
    assert busy > 4 * still
    assert Proportional()(tokens, stats, segments, 40).tolist() == [20, 20]


def test_after_a_merge_a_segment_adds_what_its_tokens_added_to_the_video_as_it_came() -> None:
    """By what is left, all that is left is new to its place: the still scene would count as much as the other."""
    x = video_like(20, 8, 64, seed=0, cuts=(10,), motion=0.0)
    x[80:] = video_like(10, 8, 64, seed=1, motion=0.8)
    tokens = VideoTokens.from_grid(x, 20, 2, 4)
    left = tokens.reduced(TemporalMerge(keep=0.4, segmenter=Whole()).reduce(tokens))
    assert left.original_index is not None
    segments, _ = cut(left, Uniform(10))
    persistence = measure(tokens, {"persistence"}).required("persistence")
    kept = [int(n) for n in segments.offsets]
    gain = [float((1 - persistence[left.original_index[a:b]]).sum()) for a, b in pairwise(kept)]
    expected = ops.apportion(torch.tensor(gain), segments.offsets, 25).tolist()
    assert MarginalGain()(left, measure(left, {"persistence"}), segments, 25).tolist() == expected
    anew = measure(VideoTokens(left.features, (len(left),)), {"persistence"}).required("persistence")
    for wrong in (anew, persistence[: len(left)], torch.zeros(len(left))):
        assert ops.apportion(ops.novelty(wrong, segments.offsets), segments.offsets, 25).tolist() != expected


# --- relevance


def test_prompt_similarity_prefers_tokens_along_the_question() -> None:
    question = independent(3, 16, 0, torch.float32)
    x = independent(10, 16, 1, torch.float32)
    x[4] = question.mean(0)
    tokens, prompt = VideoTokens(x, (10,)), Prompt(question)
    weights = PromptSimilarity()(tokens, measure(tokens, {"similarity"}, prompt), prompt)
    assert int(weights.argmax()) == 4
    assert float(weights[4]) == 1.0


def test_constant_scores_say_nothing() -> None:
    assert min_max(torch.full((5,), 0.3)).tolist() == [1.0] * 5


def test_relevance_refuses_what_it_cannot_use() -> None:
    tokens = VideoTokens(independent(4, 8, 0), (4,))
    with pytest.raises(ValueError, match="pass a Prompt, or use Flat"):
        PromptSimilarity()(tokens, UNMEASURED, None)
    with pytest.raises(ValueError, match="5 features in the prompt, 8 in the video"):
        PromptSimilarity()(tokens, UNMEASURED, Prompt(torch.ones(2, 5)))
    with pytest.raises(ValueError, match=r"expected one score a token, \(4,\), got \(3,\)"):
        Given(torch.ones(3))(tokens, UNMEASURED, None)
    for bad in (2.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match=r"expected scores in \[0, 1\]"):
            Given(torch.tensor([0.1, 0.2, bad, 0.3]))(tokens, UNMEASURED, None)


# --- selections


def test_dpp_skips_a_duplicate_and_top_relevance_does_not() -> None:
    x = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    relevance = Given(torch.tensor([1.0, 0.99, 0.5, 0.4]))
    tokens = VideoTokens(x, (4,))
    assert kept(Prune(0.5, Whole(), Proportional(), relevance, ConditionalDPP()), tokens) == [0, 2]
    assert kept(Prune(0.5, Whole(), Proportional(), relevance, MMR()), tokens) == [0, 2]
    assert kept(Prune(0.5, Whole(), Proportional(), relevance, TopRelevance()), tokens) == [0, 1]


def test_max_min_starts_far_from_everything() -> None:
    x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.8, 0.2]])
    assert kept(Prune(0.25, Whole(), Proportional(), Flat(), MaxMin()), VideoTokens(x, (4,))) == [2]


def test_evenly_spaced_is_even() -> None:
    tokens = VideoTokens(independent(12, 4, 0), (12,))
    assert kept(Prune(0.25, Whole(), Proportional(), Flat(), EvenlySpaced()), tokens) == [1, 5, 9]


def test_a_sketch_keeps_angles_and_is_the_same_every_time() -> None:
    x = independent(40, 512, 0)
    for rank, most in ((64, 0.6), (256, 0.3)):
        z = sketch(x, rank)
        assert z.shape == (40, rank)
        assert torch.equal(z, sketch(x, rank))
        a, b = (torch.nn.functional.normalize(y, dim=1) for y in (x, z))
        assert (a @ a.mT - b @ b.mT).abs().max() < most  # five standard deviations, 5 / sqrt(rank)
    assert sketch(x[:, :8].bfloat16(), 4).dtype == torch.bfloat16


def test_a_sketch_of_halves_is_of_their_directions() -> None:
    """Sums of what float16 holds need not be held by it."""
    x = (independent(60, 256, 0) * 2**13).half()
    tokens, small = VideoTokens(x, (60,)), VideoTokens(x / 2**12, (60,))
    method = Prune(0.1, Whole(), Proportional(), Flat(), LowRankDPP(16, above=0))
    assert sketch(x, 16).isinf().any()
    assert kept(method, tokens) == kept(method, small)


def test_low_rank_is_for_segments_that_are_too_long_or_too_much() -> None:
    tokens = VideoTokens(video_like(6, 10, 64, seed=2), (10,) * 6)
    segments, budget, r = Segments(torch.tensor([0, 60]), 60), torch.tensor([12]), torch.rand(60)
    given = tokens, measure(tokens), segments, budget, r, 12
    exact = ConditionalDPP()(*given)
    needed = 4 * 60 * (12 + 60)
    for selector in (LowRankDPP(16, above=60), LowRankDPP(64, above=0), LowRankDPP(16, above=0, max_memory=needed)):
        assert torch.equal(selector(*given), exact)
    for selector in (LowRankDPP(16, above=59), LowRankDPP(16, above=0, max_memory=needed - 1)):
        order = selector(*given)
        assert not torch.equal(order, exact)
        assert sorted(order[order >= 0].tolist()) == list(range(12))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Prune("a"), "keep is the fraction"),  # type: ignore[arg-type]
        (lambda: Prune(0.1, selector=ConditionalDPP), r"write ConditionalDPP\(\)"),  # type: ignore[arg-type]
        (lambda: Prune(0.1, budget="even"), "expected a budget"),  # type: ignore[arg-type]
        (lambda: Prune(True), "keep is the fraction"),
        (lambda: Prune(0.1, merger=NearestKept), r"write NearestKept\(\)"),  # type: ignore[arg-type]
        (lambda: LowRankDPP(1.5), "whole number"),  # type: ignore[arg-type]
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


def test_hybrid_takes_each_segment_to_its_side() -> None:
    x, relevance = video_like(6, 10, 16, seed=2), torch.rand(60, generator=torch.Generator().manual_seed(0))
    segments = Segments(torch.tensor([0, 10, 50, 60]), 40)
    tokens, budget = VideoTokens(x, (10,) * 6), torch.tensor([3, 9, 4])
    given = tokens, measure(tokens), segments, budget, relevance, 16
    order, exact, greedy = Hybrid(threshold=20)(*given), ConditionalDPP()(*given), MMR()(*given)
    assert torch.equal(order[:10], exact[:10])
    assert torch.equal(order[10:50], greedy[10:50])
    assert torch.equal(order[50:], exact[50:])


@pytest.mark.parametrize("implementation", ["reference", "eager", "triton"])
@pytest.mark.parametrize("small", [ConditionalDPP(), TopRelevance()], ids=repr)  # in one operation, and in two
def test_a_segment_of_exactly_the_threshold_is_a_short_one(
    small: Selector, implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if why := ops.available()[implementation]:
        pytest.skip(why)
    monkeypatch.setenv("VIDSIEVE_OPS", implementation)
    device = "cuda" if implementation == "triton" and torch.cuda.is_available() else "cpu"
    relevance = torch.rand(60, generator=torch.Generator().manual_seed(0)).to(device)
    budget = torch.tensor([9, 9], device=device)
    for bounds in ([0, 20, 60], [0, 30, 60]):  # with a longer one beside it, and alone
        tokens = VideoTokens(video_like(6, 10, 16, seed=2).float().to(device), (10,) * 6)
        segments = Segments(torch.tensor(bounds, device=device), bounds[2] - bounds[1])
        given = tokens, measure(tokens), segments, budget, relevance, 18
        end = bounds[1]
        first, large = small(*given)[:end], MMR()(*given)[:end]
        assert not torch.equal(first, large)
        assert torch.equal(Hybrid(end, small)(*given)[:end], first)
        assert torch.equal(Hybrid(end - 1, small)(*given)[:end], large)


def test_a_reduction_inside_a_compiled_function_is_right() -> None:
    """Dynamo breaks its graph at the parts that decide by Python; what comes out must not change."""
    x, method = video_like(6, 10, 16, seed=2).float(), presets.vidsieve(0.25)
    double = lambda x: 2 * method.reduce(VideoTokens(x, (10,) * 6)).apply(x)  # noqa: E731
    assert torch.equal(torch.compile(double, backend="eager")(x), double(x))
    torch._dynamo.reset()


# --- merging and composition


def test_merging_takes_the_true_mean() -> None:
    x = torch.tensor([[2.0, 0.0], [4.0, 0.1], [0.0, 1.0], [6.0, -0.1]])
    reduction = NearestKept()(
        VideoTokens(x, (4,)), Segments(torch.tensor([0, 4]), 4), Reduction.select(torch.tensor([0, 2]), 4)
    )
    assert reduction.assigned_to.tolist() == [0, 0, 1, 0]
    torch.testing.assert_close(reduction.apply(x), torch.tensor([[4.0, 0.0], [0.0, 1.0]]))
    assert reduction.gather(x).tolist() == [[2.0, 0.0], [0.0, 1.0]]


def test_a_fraction_of_the_depth_is_inside_the_model() -> None:
    method = Prune(0.3)
    for place, depth, layer in ((0.01, 28, 1), (1e-9, 80, 1), (0.5, 28, 14), (0.99, 28, 27), (0.0, 28, 0), (0, 28, 0)):
        assert Staged({place: method}).layers(depth) == {layer: method}
    with pytest.raises(ValueError, match=r"two stages at layer 1 of 28, the later one at 0.02"):
        Staged({0.01: method, 0.02: method}).layers(28)
    with pytest.raises(ValueError, match=r"two stages at layer 1 of 28, the later one at 0.01"):
        Staged({1: method, 0.01: method}).layers(28)
    with pytest.raises(ValueError, match="no layer 1 to stage at: this model has 1"):
        Staged({0.5: method}).layers(1)


def test_a_later_stage_counts_from_the_original_video() -> None:
    tokens = VideoTokens(video_like(4, 25, 16, seed=0), (25,) * 4)
    assert len(Chain(Prune(0.5, PerFrame()), Prune(0.1)).reduce(tokens)) == 10


# --- what is refused


def test_nouns_are_validated_at_birth() -> None:
    with pytest.raises(ValueError, match=r"floating-point features \(N, D\), got int64\(4, 2\)"):
        VideoTokens(torch.ones(4, 2, dtype=torch.int64), (4,))
    with pytest.raises(ValueError, match="summing to N = 4"):
        VideoTokens(torch.ones(4, 2), (3,))
    with pytest.raises(ValueError, match="2 x 2 tokens in each frame"):
        VideoTokens(torch.ones(6, 2), (3, 3), grid=(2, 2))
    with pytest.raises(ValueError, match="sorted, unique"):
        Reduction.select(torch.tensor([2, 1]), 4)
    with pytest.raises(ValueError, match="its own source"):
        Reduction(torch.tensor([0, 1]), torch.tensor([1, 1, 0]))
    with pytest.raises(ValueError, match="at least one token"):
        Prompt(torch.ones(0, 4))


@pytest.mark.parametrize("keep", [0.0, -0.1, 1.1, float("nan")])
@pytest.mark.parametrize("method", registry.methods(inside=False))
def test_keep_is_a_fraction(method: str, keep: float) -> None:
    with pytest.raises(ValueError, match=r"in \(0, 1\]"):
        registry.method(method)(keep)


def test_asking_for_what_cannot_run_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = VideoTokens(independent(12, 4, 0), (12,))
    monkeypatch.setenv("VIDSIEVE_OPS", "nonsense")
    with pytest.raises(KernelUnavailable, match="VIDSIEVE_OPS=nonsense"):
        presets.vidsieve(0.5).reduce(tokens)


def test_a_spy_sees_which_implementation_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = VideoTokens(independent(12, 4, 0), (12,))
    for name in ("reference", "eager"):
        monkeypatch.setenv("VIDSIEVE_OPS", name)
        with ops.spy() as calls:
            presets.vidsieve(0.5).reduce(tokens)
        assert ("conditional_dpp", name) in calls
        assert {implementation for _, implementation in calls} == {name}


def test_exported_names_are_sorted_and_exist() -> None:
    assert vidsieve.__all__ == sorted(vidsieve.__all__)
    assert all(hasattr(vidsieve, name) for name in vidsieve.__all__)


def test_a_configuration_is_its_repr() -> None:
    method = presets.cdpruner(0.2)
    assert eval(repr(method), vars(vidsieve) | {type(p).__name__: type(p) for p in vars(method).values()}) == method


def test_what_is_shown_for_a_moment_weighs_most() -> None:
    still, moment, lasts = independent(3, 8, 0, torch.float32)
    place = torch.stack([still] * 6)  # (T, D) at each of three places
    blink, begins = place.clone(), place.clone()
    blink[2], begins[3:] = moment, lasts
    x = torch.stack([place, blink, begins], dim=1)  # (T, 3, D)
    tokens = VideoTokens(x.flatten(0, 1), (3,) * 6)
    weight = Novelty(0.3)(tokens, measure(tokens, {"persistence"}), None).view(6, 3)
    seen = torch.zeros(6, 3, dtype=torch.bool)
    seen[range(6), [0, 1, 2, 0, 1, 2]] = True  # one token of every frame, whatever it shows
    assert (weight[seen] == 1).all()
    assert weight[2, 1] > 0.9
    rest = ~seen
    rest[2, 1] = False
    torch.testing.assert_close(weight[rest], torch.full_like(weight[rest], 0.3), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match=r"in \(0, 1\]"):
        Novelty(0)


def test_novelty_of_frames_of_different_sizes_looks_ahead_where_it_can() -> None:
    x = independent(11, 8, 1, torch.float32)
    x[5:8] = x[2:5]  # frames of 2, 3, 3 and 3 tokens; the second and third are alike
    tokens = VideoTokens(x, (2, 3, 3, 3))
    weight = Novelty(0.3)(tokens, measure(tokens, {"persistence"}), None)
    assert weight[[0, 3, 7, 8]].tolist() == [1, 1, 1, 1]  # one of each frame
    torch.testing.assert_close(weight[[2, 4, 5, 6]], torch.full((4,), 0.3), atol=1e-4, rtol=0)


def test_runs_of_frames_within_a_bound_of_tokens() -> None:
    video = VideoTokens(independent(130, 8, 0, torch.float32), (10,) * 13)
    for bound, frames in ((1000, 13), (130, 13), (129, 7), (50, 5), (9, 1)):
        segments = Within(bound)(video)
        assert segments.longest == 10 * frames
        assert int(segments.lengths.max()) == 10 * frames
        assert int(segments.lengths.sum()) == 130
    with pytest.raises(ValueError, match="at least 1 a segment"):
        Within(0)
