"""Selectors: hand-worked picks, sketches, and which selector serves which segment."""

import weakref

import pytest
import torch

from tests.methods.kept import kept
from tests.synthetic import independent, video_like
from vidsieve import Prune, VideoTokens, ops
from vidsieve.methods.budget import Proportional
from vidsieve.methods.measure import measure
from vidsieve.methods.relevance import Flat, Given
from vidsieve.methods.segment import Whole
from vidsieve.methods.selection import (
    MMR,
    ConditionalDPP,
    DistinctFirst,
    EvenlySpaced,
    Hybrid,
    LowRankDPP,
    MaxMin,
    SelectionProblem,
    Selector,
    TopRelevance,
    sketch,
)
from vidsieve.types.segments import Segments


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


def scenes_with_a_backdrop(seed: int) -> tuple[VideoTokens, Segments, torch.Tensor]:
    """Three scenes of 20 tokens: 14 are of a backdrop that all share, 6 are of the scene alone; and which those are."""
    backdrop, own = independent(14, 64, seed), independent(18, 64, 50 + seed)
    x = torch.cat([torch.cat([backdrop + 0.1 * independent(14, 64, 90 + i), own[6 * i : 6 * i + 6]]) for i in range(3)])
    alone = torch.cat([torch.arange(14, 20) + 20 * i for i in range(3)])
    return VideoTokens(x, (10,) * 6), Segments(torch.tensor([0, 20, 40, 60]), 20), alone


@pytest.mark.parametrize("rank", [16, 128])  # compared by sketches, and as they are
def test_first_comes_what_no_other_scene_has_and_then_the_rest(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidsieve.methods.selection.ELSEWHERE_RANK", rank)
    found = {"first": 0, "by r": 0}
    for seed in range(10):
        tokens, segments, alone = scenes_with_a_backdrop(seed)
        budget = torch.tensor([3, 3, 3])
        problem = SelectionProblem(tokens, measure(tokens), segments, budget, torch.ones(60), 9)
        for name, selector in (("first", DistinctFirst(0.15)), ("by r", ConditionalDPP())):
            found[name] += int((selector(problem)[alone] >= 0).sum())
    assert found["first"] > 80  # of 90
    assert found["by r"] < 50
    assert torch.equal(DistinctFirst(0)(problem), ConditionalDPP()(problem))
    assert torch.equal(DistinctFirst(weight=0)(problem), ConditionalDPP()(problem))
    # The picks of a smaller budget are the first ones of a larger one, on both sides of the share.
    whole = DistinctFirst(0.15)(problem._replace(budget=torch.tensor([9, 9, 9]), total=27))
    for k in (2, 3, 5):
        some = DistinctFirst(0.15)(problem._replace(budget=torch.tensor([k, k, k]), total=3 * k))
        assert torch.equal(some, torch.where(whole < k, whole, -1))


def test_of_more_tokens_every_nth_frame_counts_as_others(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.Tensor | None] = []
    alike = ops.alike_elsewhere
    monkeypatch.setattr(ops, "alike_elsewhere", lambda problem: (asked.append(problem.among), alike(problem))[1])
    tokens, segments, _ = scenes_with_a_backdrop(0)
    problem = SelectionProblem(tokens, measure(tokens), segments, torch.tensor([3, 3, 3]), torch.ones(60), 9)
    for most in (60, 59, 20):
        monkeypatch.setattr("vidsieve.methods.selection.ELSEWHERE_TOKENS", most)
        DistinctFirst()(problem)
    assert asked[0] is None
    assert [some.tolist() for some in asked[1:] if some is not None] == [
        [*range(10), *range(20, 30), *range(40, 50)],
        [*range(10), *range(30, 40)],
    ]


def test_features_to_compare_are_sketched_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    parts: list[weakref.ref[torch.Tensor]] = []

    def noted(x: torch.Tensor, rank: int) -> torch.Tensor:
        parts.append(weakref.ref(x))
        assert [part() is None for part in parts] == [True] * (len(parts) - 1) + [False]
        return sketch(x, rank)

    monkeypatch.setattr("vidsieve.methods.selection.sketch", noted)
    monkeypatch.setattr("vidsieve.methods.selection.ELSEWHERE_RANK", 16)
    monkeypatch.setattr("vidsieve.methods.selection.ELSEWHERE_ROWS", 20)
    tokens, segments, _ = scenes_with_a_backdrop(0)
    problem = SelectionProblem(tokens, measure(tokens), segments, torch.tensor([3, 3, 3]), torch.ones(60), 9)
    in_parts = DistinctFirst()(problem)
    assert len(parts) == 3
    monkeypatch.undo()
    monkeypatch.setattr("vidsieve.methods.selection.ELSEWHERE_RANK", 16)
    assert torch.equal(in_parts, DistinctFirst()(problem))


def test_low_rank_is_for_segments_that_are_too_long_or_too_much() -> None:
    tokens = VideoTokens(video_like(6, 10, 64, seed=2), (10,) * 6)
    segments, budget, r = Segments(torch.tensor([0, 60]), 60), torch.tensor([12]), torch.rand(60)
    problem = SelectionProblem(tokens, measure(tokens), segments, budget, r, 12)
    exact = ConditionalDPP()(problem)
    needed = 4 * 60 * (12 + 60)
    for selector in (LowRankDPP(16, above=60), LowRankDPP(64, above=0), LowRankDPP(16, above=0, max_memory=needed)):
        assert torch.equal(selector(problem), exact)
    for selector in (LowRankDPP(16, above=59), LowRankDPP(16, above=0, max_memory=needed - 1)):
        order = selector(problem)
        assert not torch.equal(order, exact)
        assert sorted(order[order >= 0].tolist()) == list(range(12))


def test_hybrid_takes_each_segment_to_its_side() -> None:
    x, relevance = video_like(6, 10, 16, seed=2), torch.rand(60, generator=torch.Generator().manual_seed(0))
    segments = Segments(torch.tensor([0, 10, 50, 60]), 40)
    tokens, budget = VideoTokens(x, (10,) * 6), torch.tensor([3, 9, 4])
    problem = SelectionProblem(tokens, measure(tokens), segments, budget, relevance, 16)
    order, exact, greedy = Hybrid(threshold=20)(problem), ConditionalDPP()(problem), MMR()(problem)
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
        problem = SelectionProblem(tokens, measure(tokens), segments, budget, relevance, 18)
        end = bounds[1]
        first, large = small(problem)[:end], MMR()(problem)[:end]
        assert not torch.equal(first, large)
        assert torch.equal(Hybrid(end, small)(problem)[:end], first)
        assert torch.equal(Hybrid(end - 1, small)(problem)[:end], large)
