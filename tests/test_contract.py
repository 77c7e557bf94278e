"""What every method and part promises. A new method is one line in METHODS, a new part one line in its list."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.synthetic import independent, video_like
from vidsieve import Chain, Prompt, Prune, Reducer, VideoTokens, ops, registry
from vidsieve.errors import BudgetError, NonFiniteFeatures
from vidsieve.methods import presets
from vidsieve.methods.base import requires_of
from vidsieve.methods.budget import Budget, MarginalGain, Proportional
from vidsieve.methods.measure import measure
from vidsieve.methods.merge import NearestKept, TemporalMerge
from vidsieve.methods.relevance import Contrast, Flat, Given, Novelty, PromptSimilarity, Relevance
from vidsieve.methods.segment import PerFrame, SceneCuts, SceneRuns, Segmenter, Uniform, Whole, Within
from vidsieve.methods.selection import (
    MMR,
    ConditionalDPP,
    DistinctFirst,
    EvenlySpaced,
    Hybrid,
    LowRankDPP,
    MaxMin,
    Random,
    Selector,
    TopRelevance,
)
from vidsieve.ops.limits import LEAST, MOST

SELECTORS: list[Selector] = [
    ConditionalDPP(),
    DistinctFirst(share=0.1),
    LowRankDPP(rank=8, above=15),
    MMR(),
    MMR(trade=0.0),
    Hybrid(threshold=15),
    MaxMin(),
    TopRelevance(),
    EvenlySpaced(),
    Random(7),
]
SEGMENTERS: list[Segmenter] = [
    *(Whole(), PerFrame(), Uniform(2), Within(30), SceneCuts(), SceneCuts(max_tokens=30), SceneRuns(max_tokens=30)),
]
BUDGETS: list[Budget] = [Proportional(), MarginalGain()]
RELEVANCES: list[Relevance] = [Flat(), Contrast(), Novelty(), PromptSimilarity()]

METHODS: dict[str, Callable[[float], Reducer]] = {
    **registry.methods(inside=False),
    **{repr(s): lambda keep, s=s: Prune(keep, SceneCuts(), MarginalGain(), PromptSimilarity(), s) for s in SELECTORS},
    "with merging": lambda keep: Prune(keep, PerFrame(), Proportional(), merger=NearestKept()),
    "merging in time": lambda keep: TemporalMerge(keep=keep),
    "merging in time, then pruning": lambda keep: Chain(TemporalMerge(keep=min(1.0, 2 * keep)), Prune(keep)),
    "chained": lambda keep: Chain(
        Prune(min(1.0, 2 * keep), PerFrame()), Prune(keep, SceneCuts(), merger=NearestKept())
    ),
}

DIM = 16
VIDEOS: dict[str, tuple[int, int, Callable[[], Tensor]]] = {
    "independent": (6, 10, lambda: independent(60, DIM, 0, torch.float32)),
    "video-like": (6, 10, lambda: video_like(6, 10, DIM, 1, torch.float32, cuts=(2,))),
    "one frame": (1, 10, lambda: independent(10, DIM, 2, torch.float32)),
    "one token a frame": (12, 1, lambda: video_like(12, 1, DIM, 3, torch.float32, cuts=(5,))),
    "one token": (1, 1, lambda: independent(1, DIM, 4, torch.float32)),
    "all zero": (4, 6, lambda: torch.zeros(24, DIM)),
    "all equal": (4, 6, lambda: torch.full((24, DIM), 0.3)),
    "some zero": (4, 6, lambda: independent(24, DIM, 5, torch.float32) * (torch.arange(24) % 3 > 0)[:, None]),
    "rank below k": (4, 12, lambda: (independent(48, 2, 6) @ independent(2, DIM, 7)).float()),
    "bf16": (6, 10, lambda: video_like(6, 10, DIM, 8, torch.bfloat16, cuts=(3,))),
    "fp16": (6, 10, lambda: video_like(6, 10, DIM, 9, torch.float16, cuts=(3,))),
}
PROMPT = Prompt(independent(5, DIM, 99, torch.float32))


DEVICES = ["cpu", *([pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else [])]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """Every device that is there: on each, the implementation that a user gets there."""
    return str(request.param)


def video(name: str, device: str) -> VideoTokens:
    frames, tokens, make = VIDEOS[name]
    return VideoTokens.from_grid(make().to(device), frames, 1, tokens)


def prompt(device: str | torch.device) -> Prompt:
    return Prompt(PROMPT.embeddings.to(device))


@pytest.mark.parametrize("name", VIDEOS)
@pytest.mark.parametrize("method", METHODS)
def test_a_reduction_keeps_exactly_what_was_asked(method: str, name: str, device: str) -> None:
    tokens = video(name, device)
    n = len(tokens)
    for keep in (0.04, 0.1, 0.25, 0.5, 0.99):
        reduction = METHODS[method](keep).reduce(tokens, prompt(device))
        assert len(reduction.kept) == max(1, round(keep * n))
        assert reduction.kept.dtype == torch.int64
        assert (reduction.kept.diff() > 0).all()
        assert 0 <= int(reduction.kept[0]) <= int(reduction.kept[-1]) < n
        assert reduction.assigned_to.shape == (n,)
        reduced = reduction.apply(tokens.features)
        assert reduced.dtype == tokens.features.dtype
        assert reduced.device == tokens.features.device
        assert reduced.shape == (len(reduction), DIM)
        assert torch.isfinite(reduced).all()
        if reduction.budget is not None:
            assert reduction.offsets is not None
            assert reduction.budget.sum() == len(reduction)
            assert (reduction.budget <= reduction.offsets.diff()).all()
            counts = torch.bincount(torch.searchsorted(reduction.offsets[1:], reduction.kept, right=True))
            assert torch.equal(counts, reduction.budget[: len(counts)])


@pytest.mark.parametrize("method", METHODS)
def test_keeping_everything_is_the_identity(method: str, device: str) -> None:
    tokens = video("video-like", device)
    reduction = METHODS[method](1.0).reduce(tokens, prompt(device))
    assert torch.equal(reduction.apply(tokens.features), tokens.features)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_input_gives_the_same_output(method: str, device: str) -> None:
    for name in ("video-like", "all equal", "bf16"):
        first, second = (METHODS[method](0.3).reduce(video(name, device), prompt(device)) for _ in range(2))
        assert torch.equal(first.kept, second.kept)
        assert torch.equal(first.assigned_to, second.assigned_to)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_features_are_counted_and_refused(method: str, value: float, device: str) -> None:
    tokens = video("independent", device)
    tokens.features[3, 2] = tokens.features[8, 1] = value
    with pytest.raises(NonFiniteFeatures, match="2 of 60 video tokens"):
        METHODS[method](0.5).reduce(tokens, prompt(device)).check()


# Powers of two, which scale every float exactly.
SCALES = {
    "1e-30": -100,
    "1e-20": -66,
    "1e-9": -30,
    "1e-5": -17,
    "1e5": 17,
    "1e15": 50,
    "1e19": 63,
    "3e19": 65,
    "1e25": 83,
}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def scaled(power: int, dtype: torch.dtype, device: str) -> VideoTokens:
    """A video at a power of two of the scale at which it was drawn, whole numbers up to 100."""
    x = (20 * video_like(6, 10, DIM, 8, cuts=(3,))).round().clamp(-100, 100)
    return VideoTokens.from_grid((x * 2.0**power).to(device, dtype), 6, 1, 10)


def check_the_scale(method: str, tokens: VideoTokens, same: VideoTokens) -> None:
    """Picks are the same at every scale, or refused; the features must be representable exactly."""
    lengths, asked = tokens.features.double().norm(dim=1), prompt(tokens.features.device)
    if lengths.min() >= LEAST and lengths.max() <= MOST:
        found, expected = (METHODS[method](0.3).reduce(x, asked) for x in (tokens, same))
        assert torch.equal(found.kept, expected.kept)
        assert torch.equal(found.assigned_to, expected.assigned_to)
    else:
        with pytest.raises(NonFiniteFeatures, match=r"60 of 60 video tokens have a length .* 1e-12 to 1e\+18"):
            METHODS[method](0.3).reduce(tokens, asked).check()


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("method", METHODS)
def test_the_scale_of_features_says_nothing(method: str, scale: str, device: str) -> None:
    for dtype in DTYPES[:2]:
        check_the_scale(method, scaled(SCALES[scale], dtype, device), scaled(0, dtype, device))


@pytest.mark.parametrize("method", METHODS)
def test_the_smallest_and_the_largest_numbers_of_a_type_are_as_good_as_any_or_refused(method: str, device: str) -> None:
    for dtype in DTYPES:
        kind = torch.finfo(dtype)
        smallest = round(math.log2(kind.smallest_normal * kind.eps))
        if method == "merging in time, then pruning":  # what is pruned are means, which need digits of their own
            smallest += 16
        for power in (smallest, round(math.log2(kind.max)) - 7):
            check_the_scale(method, scaled(power, dtype, device), scaled(0, dtype, device))


@pytest.mark.parametrize("implementation", ["reference", "triton"])
@pytest.mark.parametrize("method", ["vidsieve", "cdpruner", "divprune", "MMR(trade=0.5)", "with merging", "chained"])
def test_the_scale_says_nothing_to_any_implementation(
    method: str, implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if why := ops.available()[implementation]:
        pytest.skip(why)
    monkeypatch.setenv("VIDSIEVE_OPS", implementation)
    device = "cuda" if implementation == "triton" and torch.cuda.is_available() else "cpu"
    for dtype, powers in ((torch.float32, (-30, 0, 50)), (torch.float16, (-24, 0, 9))):
        videos = [scaled(power, dtype, device) for power in powers]
        first, *others = (METHODS[method](0.3).reduce(tokens, prompt(device)).kept for tokens in videos)
        assert all(torch.equal(first, kept) for kept in others)


@pytest.mark.parametrize("method", METHODS)
def test_one_token_out_of_range_is_counted(method: str, device: str) -> None:
    for scale in (1e-30, 1e25):
        tokens = video("independent", device)
        tokens.features[7] *= scale
        with pytest.raises(NonFiniteFeatures, match="1 of 60 video tokens have a length"):
            METHODS[method](0.5).reduce(tokens, prompt(device)).check()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_prompt_that_is_not_finite_is_called_the_prompt(value: float, device: str) -> None:
    embeddings = prompt(device).embeddings.clone()
    embeddings[1, 2] = embeddings[4, 0] = value
    tokens = video("independent", device)
    # An accelerator is not waited for to count them.
    infinite, lengths = "2 of 5 prompt tokens hold NaN or inf", "5 of 5 prompt tokens have a length"
    if device != "cpu":
        infinite = lengths = "some prompt tokens hold NaN or inf, or have a length"
    with pytest.raises(NonFiniteFeatures, match=infinite):
        presets.cdpruner(0.5).reduce(tokens, Prompt(embeddings)).check()
    for scale in (1e-30, 1e25):
        with pytest.raises(NonFiniteFeatures, match=lengths):
            presets.cdpruner(0.5).reduce(tokens, Prompt(prompt(device).embeddings * scale)).check()
    assert len(presets.cdpruner(0.5).reduce(tokens, prompt(device))) == 30  # the same tokens, another prompt
    assert len(presets.vidsieve(0.5).reduce(tokens, Prompt(embeddings))) == 30  # which does not look at it


@pytest.mark.parametrize("method", METHODS)
def test_features_and_prompts_in_training_are_reduced_like_any(method: str, device: str) -> None:
    expected = METHODS[method](0.3).reduce(video("video-like", device), prompt(device))
    tokens = video("video-like", device)
    tokens.features.requires_grad_()
    found = METHODS[method](0.3).reduce(tokens, Prompt(prompt(device).embeddings.clone().requires_grad_()))
    assert torch.equal(found.kept, expected.kept)
    assert torch.equal(found.assigned_to, expected.assigned_to)
    found.apply(tokens.features).sum().backward()
    assert tokens.features.grad is not None
    assert bool(tokens.features.grad.any())


@pytest.mark.parametrize("method", METHODS)
def test_only_layout_matters_not_strides(method: str, device: str) -> None:
    tokens = video("video-like", device)
    wide = torch.zeros(len(tokens), 2 * DIM, device=device)
    wide[:, ::2] = tokens.features
    strided = VideoTokens(wide[:, ::2], tokens.frames)
    reduction = METHODS[method](0.3)
    assert torch.equal(reduction.reduce(strided, prompt(device)).kept, reduction.reduce(tokens, prompt(device)).kept)


@pytest.mark.parametrize("selector", SELECTORS, ids=repr)
def test_raising_a_relevance_never_drops_the_token(selector: Selector, device: str) -> None:
    for seed in range(8):
        tokens = VideoTokens(video_like(4, 10, DIM, seed, cuts=(2,)).to(device), (10,) * 4)
        scores = 0.05 + 0.7 * torch.rand(40, generator=torch.Generator().manual_seed(seed)).to(device)
        method = lambda r: Prune(0.3, Uniform(2), Proportional(), Given(r), selector)  # noqa: E731
        for token in method(scores).reduce(tokens).kept.tolist():
            raised = scores.clone()
            raised[token] += 0.2
            assert token in method(raised).reduce(tokens).kept


@pytest.mark.parametrize("selector", [s for s in SELECTORS if not isinstance(s, Random)], ids=repr)
def test_permuting_segments_permutes_the_answer(selector: Selector, device: str) -> None:
    x = independent(30, DIM, 1).to(device)
    relevance = torch.rand(30, generator=torch.Generator().manual_seed(1)).to(device)
    swap = torch.cat([torch.arange(20, 30), torch.arange(20)]).to(device)  # the last of three segments comes first
    here = Prune(0.4, PerFrame(), Proportional(), Given(relevance), selector)
    there = Prune(0.4, PerFrame(), Proportional(), Given(relevance[swap]), selector)
    kept = torch.zeros(30, dtype=torch.bool, device=device)
    kept[here.reduce(VideoTokens(x, (10,) * 3)).kept] = True
    assert torch.equal(there.reduce(VideoTokens(x[swap], (10,) * 3)).kept, kept[swap].nonzero()[:, 0])


@pytest.mark.parametrize("name", VIDEOS)
@pytest.mark.parametrize("segmenter", SEGMENTERS, ids=repr)
def test_segments_cover_the_video_with_whole_frames(segmenter: Segmenter, name: str, device: str) -> None:
    tokens = video(name, device)
    stats = measure(tokens, {"persistence"})
    segments = segmenter(tokens, stats)
    assert segments.offsets[0] == 0
    assert segments.offsets[-1] == len(tokens)
    assert (segments.lengths >= 0).all()
    assert segments.lengths.max() <= segments.longest
    assert set(segments.offsets.tolist()) <= set(tokens.offsets.tolist())


@pytest.mark.parametrize("name", VIDEOS)
@pytest.mark.parametrize("budget", BUDGETS, ids=repr)
@pytest.mark.parametrize("segmenter", SEGMENTERS, ids=repr)
def test_budgets_sum_to_the_total_within_each_segment(
    segmenter: Segmenter, budget: Budget, name: str, device: str
) -> None:
    tokens = video(name, device)
    stats = measure(tokens, {"persistence"})
    segments = segmenter(tokens, stats)
    occupied = int((segments.lengths > 0).sum())
    for total in {0, 1, len(tokens) // 3, len(tokens)}:
        shares = budget(tokens, stats, segments, total)
        assert int(shares.sum()) == total
        assert ((shares >= 0) & (shares <= segments.lengths)).all()
        if total >= occupied:
            assert (shares[segments.lengths > 0] >= 1).all()
    with pytest.raises(BudgetError, match=f"cannot keep {len(tokens) + 1} of {len(tokens)}"):
        budget(tokens, stats, segments, len(tokens) + 1)


@pytest.mark.parametrize("name", VIDEOS)
@pytest.mark.parametrize("relevance", RELEVANCES, ids=repr)
def test_relevance_is_in_the_unit_interval(relevance: Relevance, name: str, device: str) -> None:
    tokens, question = video(name, device), prompt(device)
    weights = relevance(tokens, measure(tokens, requires_of(relevance), question), question)
    assert weights.dtype == torch.float32
    assert ((weights > 0) & (weights <= 1)).all()
