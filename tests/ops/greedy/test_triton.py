"""Selections by kernels: in Triton's interpreter where there is no GPU, on the device where there is one."""

import pytest
import torch
from torch import Tensor

from tests.ops.inputs import DEVICE, KERNEL, degenerate, duplicated, factors, head_of, problem, regret
from tests.synthetic import independent, video_like
from vidsieve import Prompt, Prune, VideoTokens, ops
from vidsieve.errors import NonFiniteFeatures
from vidsieve.methods.budget import Proportional
from vidsieve.methods.relevance import PromptSimilarity
from vidsieve.methods.segment import PerFrame
from vidsieve.methods.selection import MMR, ConditionalDPP, MaxMin
from vidsieve.ops import ApportionProblem, GreedyProblem, Head, HybridProblem, MeasureProblem, MMRProblem
from vidsieve.ops.greedy import reference
from vidsieve.ops.partition.reference import apportion

triton = pytest.importorskip("vidsieve.ops.greedy.triton", reason="Triton is not installed")
measure = pytest.importorskip("vidsieve.ops.measurement.triton", reason="Triton is not installed").measure

REGRET = {torch.float32: 1e-5, torch.float16: 1e-5, torch.bfloat16: 1e-5}  # of a squared length, as in test_eager
# Bounds of the segments, picks of each.
LAYOUTS = {
    "one token": ((0, 1), (1,)),
    "63": ((0, 63), (9,)),
    "64": ((0, 64), (9,)),
    "65": ((0, 65), (9,)),
    "197, a prime": ((0, 197), (12,)),
    "ragged 1-63-130": ((0, 1, 64, 194), (1, 20, 7)),
    "all of a segment": ((0, 7, 27), (7, 20)),
    "segments without budget": ((0, 0, 30, 60, 60), (0, 0, 6, 0)),
}


def check(
    x: Tensor, offsets: Tensor, budget: Tensor, order: Tensor, relevance: Tensor, head: Head | None = None
) -> None:
    for begin, end, k in zip(offsets.tolist(), offsets.tolist()[1:], budget.tolist(), strict=False):
        steps = order[begin:end]
        assert sorted(steps[steps >= 0].tolist()) == list(range(k))
    on_host = None if head is None else Head(*(of.cpu() for of in head))
    assert regret(x.cpu(), relevance.cpu(), offsets.cpu(), order.cpu(), on_host) <= REGRET[x.dtype]


@pytest.mark.usefixtures("path", "poisoned")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_dpp_has_no_regret_beyond_rounding(layout: str) -> None:
    bounds, picks = LAYOUTS[layout]
    offsets, budget = torch.tensor(bounds, device=DEVICE), torch.tensor(picks, device=DEVICE)
    seed = int(torch.randint(1 << 30, ()))
    dtype = [torch.float32, torch.bfloat16, torch.float16][seed % 3]
    for x in (independent(bounds[-1], 40, seed, dtype), degenerate(bounds[-1], "video-like").to(dtype)):
        x = x.to(DEVICE)
        relevance = torch.rand(len(x), generator=torch.Generator().manual_seed(seed)).to(DEVICE)
        order = triton.conditional_dpp(problem(x, relevance, offsets, budget))
        check(x, offsets, budget, order, relevance)
        headed = problem(x, relevance, offsets, budget)._replace(head=head_of(budget, len(x), seed))
        check(x, offsets, budget, triton.conditional_dpp(headed), relevance, headed.head)


@pytest.mark.usefixtures("path", "poisoned")
@pytest.mark.parametrize(("k", "expected"), [(1, [1]), (3, [1, 0, 3])])
def test_a_kernel_worked_out_by_its_determinants(k: int, expected: list[int]) -> None:
    x, relevance = (of.float().to(DEVICE) for of in factors(KERNEL))
    offsets, budget = torch.tensor([0, 4], device=DEVICE), torch.tensor([k], device=DEVICE)
    order = triton.conditional_dpp(problem(x, relevance, offsets, budget))
    assert [int((order == step).nonzero()) for step in range(k)] == expected


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("kind", ["video-like", "zero rows"])
def test_a_selection_from_products_is_the_one_from_cosines(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDSIEVE_OPS", "triton")
    x = degenerate(120, kind).float().to(DEVICE)
    prompt = Prompt(independent(3, 24, 1, torch.float32).to(DEVICE))
    for selector in (ConditionalDPP(), MMR(), MaxMin()):
        method = Prune(0.4, PerFrame(), Proportional(), PromptSimilarity(), selector)
        monkeypatch.setattr("vidsieve.ops.measurement.triton.multiprocessors", lambda x: 4)
        with ops.spy() as calls:
            ours = method.reduce(VideoTokens(x, (40,) * 3), prompt)
        assert [name for name, _ in calls].count("measure") == 1
        monkeypatch.setattr("vidsieve.ops.measurement.triton.multiprocessors", lambda x: 1000)
        assert torch.equal(ours.kept, method.reduce(VideoTokens(x, (40,) * 3), prompt).kept)


@pytest.mark.usefixtures("path", "poisoned")
@pytest.mark.parametrize("kind", ["equal tokens", "zero rows", "rank 3"])
def test_degenerate_features_still_give_the_picks_of_the_reference(kind: str) -> None:
    x = degenerate(60, kind).float().to(DEVICE)
    offsets, budget = torch.tensor([0, 20, 60], device=DEVICE), torch.tensor([6, 14], device=DEVICE)
    relevance = torch.rand(60, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    asked = problem(x, relevance, offsets, budget)
    order = triton.conditional_dpp(asked)
    # Which is picked, not when: what comes after the rank is exhausted adds nothing in any order.
    assert torch.equal(order >= 0, reference.conditional_dpp(asked) >= 0)
    for picks in ((3, 9), (6, 0), (0, 20)):
        headed = asked._replace(head=Head(1 - relevance, torch.tensor(picks, device=DEVICE)))
        assert torch.equal(triton.conditional_dpp(headed) >= 0, reference.conditional_dpp(headed) >= 0)


@pytest.mark.usefixtures("path", "poisoned")
@pytest.mark.parametrize("dtype", REGRET)
def test_duplicates_wait_for_all_that_is_new(dtype: torch.dtype) -> None:
    n = 40
    x, relevance = duplicated(n, 1024, 0, dtype)
    offsets, budget = torch.tensor([0, n], device=DEVICE), torch.tensor([n // 2], device=DEVICE)
    x, relevance = x.to(DEVICE), relevance.to(DEVICE)
    order = triton.conditional_dpp(problem(x, relevance, offsets, budget))
    assert (order >= 0).nonzero()[:, 0].tolist() == list(range(n // 2))


@pytest.mark.usefixtures("path", "poisoned")
@pytest.mark.parametrize(
    ("layout", "thresholds"),  # of which some segments are longer, none is, or one is as long
    [("65", (64, 65)), ("ragged 1-63-130", (20, 63, 200)), ("segments without budget", (20, 30))],
)
def test_mmr_and_max_min_equal_the_reference(layout: str, thresholds: tuple[int, ...]) -> None:
    bounds, picks = LAYOUTS[layout]
    offsets, budget = torch.tensor(bounds, device=DEVICE), torch.tensor(picks, device=DEVICE)
    x = degenerate(bounds[-1], "video-like").float().to(DEVICE)
    relevance = torch.rand(len(x), generator=torch.Generator().manual_seed(1)).to(DEVICE)
    asked = problem(x, relevance, offsets, budget)
    traded = MMRProblem(asked, 0.5)
    assert torch.equal(triton.mmr(traded), reference.mmr(traded))
    assert torch.equal(triton.max_min(asked), reference.max_min(asked))
    for threshold in thresholds:
        order, true = (m.hybrid(HybridProblem(asked, 0.5, threshold)) for m in (triton, reference))
        assert torch.equal(order >= 0, true >= 0)
        is_long = (offsets.diff() > threshold).repeat_interleave(offsets.diff())
        assert torch.equal(order[is_long], true[is_long])


@pytest.mark.usefixtures("path", "poisoned")
def test_max_min_of_short_and_long_halves_equals_the_reference() -> None:
    """The reciprocal of a length need not be a float16."""
    offsets, budget = torch.tensor([0, 65], device=DEVICE), torch.tensor([9], device=DEVICE)
    whole = (8 * independent(65, 24, 0)).round()
    for power in (-23, 0, 10):
        x = (whole * 2.0**power).half().to(DEVICE)
        asked = problem(x, None, offsets, budget)
        assert torch.equal(triton.max_min(asked), reference.max_min(asked))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy, in the interpreter
def test_nan_breaks_no_kernel_and_is_reported(path: str) -> None:
    x = independent(40, 24, 0, torch.float32).to(DEVICE)
    x[7, 3] = float("nan")
    offsets, budget = torch.tensor([0, 40], device=DEVICE), torch.tensor([9], device=DEVICE)
    measures = measure(MeasureProblem(x, (40,)))
    relevance = torch.full((40,), float("nan"), device=DEVICE)
    order = triton.conditional_dpp(GreedyProblem(x, relevance, offsets, budget, 40, 9, measures))
    assert int((order >= 0).sum()) == 9
    with pytest.raises(NonFiniteFeatures, match="1 of 40 video tokens"):
        Prune(0.5, PerFrame()).reduce(VideoTokens(x, (10,) * 4)).check()


@pytest.mark.gpu
def test_two_hundred_repeats_are_bit_identical() -> None:
    x = video_like(8, 98, 512, seed=0, dtype=torch.bfloat16, motion=0.5).to(DEVICE)
    relevance = torch.rand(784, device=DEVICE)
    for bounds in ((0, 196, 392, 588, 784), (0, 784), (0, 600, 784)):
        offsets = torch.tensor(bounds, device=DEVICE)
        budget = apportion(ApportionProblem(None, offsets, 120))
        asked = problem(x, relevance, offsets, budget)
        first = triton.conditional_dpp(asked)
        for _ in range(200):
            assert torch.equal(triton.conditional_dpp(asked), first)


@pytest.mark.gpu
def test_a_whole_video_as_one_segment_has_no_regret() -> None:
    x = video_like(16, 196, 512, seed=0, dtype=torch.bfloat16, cuts=(5, 11), motion=0.5).to(DEVICE)
    for relevance in (torch.rand(len(x), device=DEVICE), torch.ones(len(x), device=DEVICE)):
        offsets, budget = torch.tensor([0, len(x)], device=DEVICE), torch.tensor([160], device=DEVICE)
        order = triton.conditional_dpp(problem(x, relevance, offsets, budget))
        check(x, offsets, budget, order, relevance)
