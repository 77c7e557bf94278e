"""The kernels against reference: in Triton's interpreter where there is no GPU, on the device where there is one."""

import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.ops.test_eager import attention, bounds_of, duplicated, regret
from tests.synthetic import independent, never_waiting, video_like
from vidsieve import Prompt, Prune, VideoTokens, ops
from vidsieve.budget import MarginalGain, Proportional
from vidsieve.errors import KernelUnavailable, NonFiniteFeatures
from vidsieve.merge import NearestKept
from vidsieve.ops import eager, reference
from vidsieve.relevance import Flat, Novelty, PromptSimilarity
from vidsieve.segment import PerFrame, SceneCuts, Uniform, Whole, Within
from vidsieve.selection import MMR, ConditionalDPP, EvenlySpaced, Hybrid, LowRankDPP, MaxMin, Random, TopRelevance

triton_launch = pytest.importorskip("vidsieve.ops.triton_launch", reason="Triton is not installed")
triton_select = pytest.importorskip("vidsieve.ops.triton_select", reason="Triton is not installed")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
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
PATHS = {"short": (512, 2048), "lazy, S held": (0, 2048), "lazy, from features": (0, 16)}


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    short, held = PATHS[request.param]
    monkeypatch.setattr(triton_select, "SHORT", short)
    monkeypatch.setattr(triton_select, "HELD", held)
    return request.param


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Memory that nobody wrote reads as NaN or as a huge integer."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def degenerate(n: int, kind: str) -> Tensor:
    x = video_like(1, n, 24, seed=n) if n < 8 else video_like(max(1, n // 8), 8, 24, seed=n)
    x = torch.cat([x, independent(n, 24, n + 1)])[:n]
    if kind == "equal tokens":
        x[n // 3 :] = x[n // 3]
    elif kind == "zero rows":
        x[::3] = 0
    elif kind == "rank 3":
        x = x[:, :3] @ independent(3, 24, 5)
    return x


def check(x: Tensor, offsets: Tensor, budget: Tensor, order: Tensor, relevance: Tensor) -> None:
    for begin, end, k in zip(offsets.tolist(), offsets.tolist()[1:], budget.tolist(), strict=False):
        steps = order[begin:end]
        assert sorted(steps[steps >= 0].tolist()) == list(range(k))
    assert regret(x.cpu(), relevance.cpu(), offsets.cpu(), order.cpu()) <= REGRET[x.dtype]


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
        order = triton_launch.conditional_dpp(x, relevance, offsets, budget, *bounds_of(x, offsets, budget))
        check(x, offsets, budget, order, relevance)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.skipif(DEVICE == "cuda" and torch.cuda.get_device_capability() < (9, 0), reason="tiles are used there")
@pytest.mark.parametrize("longest", [9, 64, 100, 130, 197])
def test_programs_that_share_the_features_of_a_segment_find_its_cosines(
    longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_select, "multiprocessors", lambda x: 4)
    for dtype, dim in ((torch.float32, 72), (torch.float16, 200)):
        more = min(11, longest)
        n = longest + more
        x = independent(n, dim, longest, dtype).to(DEVICE)
        y = independent(3, dim, 1, dtype).to(DEVICE)
        offsets = torch.tensor([0, longest, n], device=DEVICE)
        found = triton_launch.measure(x, (n,), y, False, (offsets, longest))
        true = reference.measure(x, (n,), y, False)
        torch.testing.assert_close(found.norm, true.norm, atol=0, rtol=1e-5)
        torch.testing.assert_close(found.cosine, true.cosine, atol=2e-5, rtol=0)
        assert not found.bad.any()
        assert len(found.products) == 2
        for begin, end in pairwise(offsets.tolist()):
            ours = found.products[:, begin:end, : end - begin].double().sum(0)
            some = x[begin:end].double()
            torch.testing.assert_close(ours, some @ some.T, atol=2e-5 * dim, rtol=2e-6)
        x[3, 2] = float("nan")
        assert triton_launch.measure(x, (n,), y, False, (offsets, longest)).bad.nonzero().tolist() == [[3]]


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("kind", ["video-like", "zero rows"])
def test_a_selection_from_products_is_the_one_from_cosines(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDSIEVE_OPS", "triton")
    x = degenerate(120, kind).float().to(DEVICE)
    prompt = Prompt(independent(3, 24, 1, torch.float32).to(DEVICE))
    for selector in (ConditionalDPP(), MMR(), MaxMin()):
        method = Prune(0.4, PerFrame(), Proportional(), PromptSimilarity(), selector)
        monkeypatch.setattr(triton_select, "multiprocessors", lambda x: 4)
        with ops.spy() as calls:
            ours = method.reduce(VideoTokens(x, (40,) * 3), prompt)
        assert [name for name, _ in calls].count("measure") == 1
        monkeypatch.setattr(triton_select, "multiprocessors", lambda x: 1000)
        assert torch.equal(ours.kept, method.reduce(VideoTokens(x, (40,) * 3), prompt).kept)


@pytest.mark.usefixtures("path", "poisoned")
@pytest.mark.parametrize("kind", ["equal tokens", "zero rows", "rank 3"])
def test_degenerate_features_still_give_the_picks_of_the_reference(kind: str) -> None:
    x = degenerate(60, kind).float().to(DEVICE)
    offsets, budget = torch.tensor([0, 20, 60], device=DEVICE), torch.tensor([6, 14], device=DEVICE)
    relevance = torch.rand(60, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    bounds = bounds_of(x, offsets, budget)
    order = triton_launch.conditional_dpp(x, relevance, offsets, budget, *bounds)
    # Which is picked, not when: what comes after the rank is exhausted adds nothing in any order.
    assert torch.equal(order >= 0, reference.conditional_dpp(x, relevance, offsets, budget) >= 0)


@pytest.mark.usefixtures("path", "poisoned")
@pytest.mark.parametrize("dtype", REGRET)
def test_duplicates_wait_for_all_that_is_new(dtype: torch.dtype) -> None:
    n = 40
    x, relevance = duplicated(n, 1024, 0, dtype)
    offsets, budget = torch.tensor([0, n], device=DEVICE), torch.tensor([n // 2], device=DEVICE)
    x, relevance = x.to(DEVICE), relevance.to(DEVICE)
    order = triton_launch.conditional_dpp(x, relevance, offsets, budget, *bounds_of(x, offsets, budget))
    assert (order >= 0).nonzero()[:, 0].tolist() == list(range(n // 2))


@pytest.mark.usefixtures("path", "poisoned")
@pytest.mark.parametrize("layout", ["65", "ragged 1-63-130", "segments without budget"])
def test_mmr_and_max_min_equal_the_reference(layout: str) -> None:
    bounds, picks = LAYOUTS[layout]
    offsets, budget = torch.tensor(bounds, device=DEVICE), torch.tensor(picks, device=DEVICE)
    x = degenerate(bounds[-1], "video-like").float().to(DEVICE)
    relevance = torch.rand(len(x), generator=torch.Generator().manual_seed(1)).to(DEVICE)
    told = bounds_of(x, offsets, budget)
    order = triton_launch.mmr(x, relevance, offsets, budget, *told, 0.5)
    assert torch.equal(order, reference.mmr(x, relevance, offsets, budget, *told, 0.5))
    assert torch.equal(triton_launch.max_min(x, offsets, budget, *told), reference.max_min(x, offsets, budget))
    for threshold in (20, 63, 64, 200):  # some segments are short, one as long as that, or all
        order = triton_launch.hybrid(x, relevance, offsets, budget, *told, 0.5, threshold)
        true = reference.hybrid(x, relevance, offsets, budget, *told, 0.5, threshold)
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
        given = x, offsets, budget, *bounds_of(x, offsets, budget)
        assert torch.equal(triton_launch.max_min(*given), reference.max_min(*given))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dim", [8, 24, 600])
def test_measures(dim: int) -> None:
    x = video_like(5, 7, dim, seed=dim).to(DEVICE, torch.bfloat16)
    x[14:21] = x[7:14]
    y = independent(3, dim, 1, torch.float32).to(DEVICE)
    ours, true = (m.measure(x, (7,) * 5, y, True) for m in (triton_launch, reference))
    for name in ("norm", "persistence", "cosine"):
        torch.testing.assert_close(getattr(ours, name), getattr(true, name), atol=2e-5, rtol=2e-5)
    assert not ours.bad.any()
    x[3, 2], x[3, 5], x[9, 0] = float("nan"), float("inf"), -float("inf")
    assert torch.equal(triton_launch.measure(x, (7,) * 5, None, False).bad, reference.measure(x, (7,), None, False).bad)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", REGRET)
@pytest.mark.parametrize("shared", [False, True])  # whether programs share the features of a segment
def test_what_no_square_of_float32_holds_is_bad_and_so_is_such_a_prompt(
    dtype: torch.dtype, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_select, "multiprocessors", lambda x: 4)
    offsets = torch.tensor([0, 9, 18], device=DEVICE)
    x, y = independent(18, 40, 0, dtype), independent(3, 40, 1, dtype)
    tiny = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    x[1], x[2], x[5], x[6], x[7] = 0, tiny, 1e-6, 65504, float("nan")
    if dtype != torch.float16:
        x[8], x[9], x[10], x[11] = 1e-30, 1e-20, 1e19, 1e25
    x[17, 3] = float("inf")
    for prompt in (None, y, y * 0, torch.cat([y, y * float("inf")]), torch.cat([y, 0 * y + tiny]), y * 6e4):
        given = x.to(DEVICE), (18,), None if prompt is None else prompt.to(DEVICE), False
        with np.errstate(over="ignore", invalid="ignore"):  # of the interpreter
            ours = triton_launch.measure(*given, (offsets, 9) if shared else None)
        assert (ours.products is not None) == shared
        for other in (reference, eager):
            found = other.measure(*given)
            unfit = found.bad & ~reference.BAD_PROMPT
            assert torch.equal(ours.bad & ~reference.BAD_PROMPT, unfit)
            assert torch.equal(ours.bad[unfit == 0], found.bad[unfit == 0])
    with np.errstate(over="ignore", invalid="ignore"):
        assert torch.equal(triton_launch.measure(x.to(DEVICE), (9, 9), None, True).bad, unfit)


def test_apportion_equals_the_reference() -> None:
    generator = torch.Generator().manual_seed(0)
    for count in (1, 2, 9, 33):
        lengths = torch.randint(0, 20, (count,), generator=generator)
        lengths[0] += 1
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        weights = torch.rand(count, generator=generator).double() ** 3
        for total in {1, int(lengths.sum()) // 3, int(lengths.sum())}:
            for w in (weights, None):
                budget = triton_launch.apportion(None if w is None else w.to(DEVICE), offsets.to(DEVICE), total)
                assert torch.equal(budget.cpu(), reference.apportion(w, offsets, total))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("n", [1, 63, 4096, 5001])
def test_small_steps_equal_the_reference(n: int) -> None:
    scores = torch.randn(n, generator=torch.Generator().manual_seed(n)).to(DEVICE)
    torch.testing.assert_close(triton_launch.min_max(scores, 1e-6), reference.min_max(scores, 1e-6), atol=1e-6, rtol=0)
    order = torch.where(scores > 0, torch.arange(n, device=DEVICE), -1).int()
    total = int((order >= 0).sum())
    offsets = torch.tensor([0, n // 3, n // 3, n], device=DEVICE)
    budget = torch.stack([(order[a:b] >= 0).sum() for a, b in pairwise(offsets.tolist())])
    ours = triton_launch.compact(order, offsets, budget, n, total)
    for one, true in zip(ours, reference.compact(order), strict=True):
        assert torch.equal(one, true)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("frames", [1, 2, 9, 63, 64, 100])
def test_cuts_and_gains_equal_the_reference(frames: int) -> None:
    generator = torch.Generator().manual_seed(frames)
    lengths = torch.randint(1, 40, (frames,), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).to(DEVICE)
    persistence = (torch.rand(int(lengths.sum()), generator=generator) * 2 - 1).to(DEVICE)
    shuffled = torch.randperm(len(persistence), generator=generator).to(DEVICE)
    for at in (None, shuffled, torch.stack([shuffled, -shuffled], 1)[:, 0]):
        ours, true = (m.novelty(persistence, offsets, at) for m in (triton_launch, reference))
        torch.testing.assert_close(ours, true, atol=1e-5, rtol=1e-5)
    for threshold, most in ((0.0, 8), (0.0, None), (0.2, 1), (-1.0, 7), (2.0, 3)):
        arguments = persistence, offsets, threshold, most
        assert torch.equal(triton_launch.scene_cuts(*arguments), reference.scene_cuts(*arguments))


@pytest.mark.usefixtures("poisoned")
def test_nearest_kept_equals_the_reference() -> None:
    x = degenerate(150, "video-like").float().to(DEVICE)
    offsets = torch.tensor([0, 20, 20, 130, 150], device=DEVICE)
    kept = torch.tensor([0, 5, 19, 40, 41, 77, 100, 129], device=DEVICE)
    assert torch.equal(triton_launch.nearest_kept(x, offsets, kept), reference.nearest_kept(x, offsets, kept))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("left", [None, 0.1, 0.9])
def test_the_token_before_and_runs_equal_the_reference(left: float | None) -> None:
    generator = torch.Generator().manual_seed(7)
    frames = (2,) * 70
    x = video_like(70, 2, 24, seed=4, dtype=torch.bfloat16, motion=0.6)
    x[40], x[42], x[44] = 0, 0, x[46]
    at = None if left is None else (torch.rand(140, generator=generator) < left).nonzero()[:, 0]
    if at is not None:
        at = torch.cat([torch.zeros(1, dtype=torch.int64), at[at >= 130]]) if left == 0.1 else at  # a long way back
    x = x if at is None else x[at]
    n = len(x)
    offsets = torch.tensor([0, n // 5, n // 5, n // 2, n])
    x, offsets, at = x.to(DEVICE), offsets.to(DEVICE), None if at is None else at.to(DEVICE)
    norm = triton_launch.measure(x, (n,), None, False).norm
    arguments = x, norm, offsets, frames, at
    (before, cosine), (true, cosine_true) = (m.temporal(*arguments) for m in (triton_launch, reference))
    assert torch.equal(before, true)
    torch.testing.assert_close(cosine, cosine_true, atol=2e-5, rtol=0)
    ours, right = (m.runs(cosine_true, before, 0.5, 70) for m in (triton_launch, reference))
    assert torch.equal(ours[0][: int(ours[1])], right[0][: int(right[1])])
    assert all(torch.equal(*pair) for pair in zip(ours[2:], right[2:], strict=True))
    begins = torch.rand(n, generator=generator).to(DEVICE) < 0.2  # some are before all that begin
    row = torch.where(begins, begins.cumsum(0) - 1, -1)
    (source, link), right = (m.absorbed(row, before, 70) for m in (triton_launch, reference))
    assert torch.equal(source, right[0])
    assert torch.equal(link, right[1])
    if begins.any():
        kept = begins.nonzero()[:, 0]
        means = (m.merge_mean(x, source, kept, None, link) for m in (triton_launch, reference))
        torch.testing.assert_close(*means, atol=2e-2, rtol=2e-2)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kept", [1, 40, 33_000])
def test_means_of_what_merged_equal_the_reference(kept: int, weighted: bool) -> None:
    generator = torch.Generator().manual_seed(kept)
    source = torch.cat([torch.arange(kept), torch.randint(-1, kept, (150,), generator=generator)])
    if kept > 40 and DEVICE == "cpu":
        pytest.skip("too long for the interpreter")
    order = torch.randperm(len(source), generator=generator)
    source, of = source[order].to(DEVICE), order.argsort()[:kept].to(DEVICE)
    x = independent(len(source), 24, 1, torch.float16).to(DEVICE)
    weight = torch.randint(1, 9, (len(source),), generator=generator).to(DEVICE) if weighted else None
    for y in (x, x.unflatten(1, (2, 12)), x[:, :1]):
        ours, true = (m.merge_mean(y, source, of, weight) for m in (triton_launch, reference))
        torch.testing.assert_close(ours, true, atol=2e-3, rtol=2e-3)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("before", "after"), [(0, 0), (7, 3)])
def test_means_amid_what_stays_equal_the_reference(before: int, after: int, weighted: bool) -> None:
    kept = torch.tensor([0, 1, 4, 7, 8])
    source = torch.tensor([0, 1, 0, 1, 2, -1, 2, 3, 4, 0])
    link = torch.tensor([2, 3, 9, -1, 6, -1, -1, -1, -1, -1])
    x = independent(before + len(source) + after, 48, 1, torch.bfloat16).to(DEVICE)
    stays = torch.ones(len(x), dtype=torch.bool)
    stays[before : before + len(source)] = torch.isin(torch.arange(len(source)), kept)
    stays[:2] = False  # what is dropped beside them
    index, of = stays.nonzero()[:, 0].to(DEVICE), kept[(kept > 1) | (before > 0)].to(DEVICE)
    if before == 0:  # the first two runs are gone
        source, link = torch.where(source < 2, -1, source - 2), torch.where(source < 2, -1, link)
    weight = torch.arange(1, 11, device=DEVICE) if weighted else None
    for y in (x, independent(len(x), 96, 1, torch.bfloat16).to(DEVICE)[:, ::2]):
        for way in (None, link.to(DEVICE)):
            given = y, index, before, source.to(DEVICE), of, weight, way
            ours, true = (m.merge_among(*given) for m in (triton_launch, reference))
            torch.testing.assert_close(ours, true, atol=2e-2, rtol=2e-2)
            torch.testing.assert_close(eager.merge_among(*given), true, atol=2e-2, rtol=2e-2)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize(
    ("past", "width", "queries"), [(0, 8, 1), (5, 24, 20), (500, 80, 100), (9, 256, 40), (4500, 16, 3)]
)
def test_attention_received_equals_the_reference(
    past: int, width: int, queries: int, softcap: float | None, dtype: torch.dtype
) -> None:
    query, key, columns, seen = attention(past, width, queries, seed=past)
    strided = query.to(DEVICE, dtype).transpose(0, 1).contiguous().transpose(0, 1)  # as attention has it
    for padding in (None, seen.to(DEVICE)):
        arguments = strided, key.to(DEVICE, dtype), columns.to(DEVICE), padding, 0.5, softcap
        ours, true = (m.received(*arguments) for m in (triton_launch, reference))
        torch.testing.assert_close(ours, true, atol=1e-6, rtol=1e-4)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(("n", "begin", "length"), [(1, 0, 1), (63, 0, 63), (5000, 0, 5000), (500, 21, 6000)])
def test_rows_are_compacted_to_the_right(n: int, begin: int, length: int, rows: int) -> None:
    left = torch.where(torch.rand(rows, n, generator=torch.Generator().manual_seed(n)) < 0.4, 7, -1).to(DEVICE)
    left[-1, -1] = 0
    stays = torch.ones(rows, length, dtype=torch.bool, device=DEVICE)
    stays[:, begin : begin + n] = left >= 0
    arguments = left, int(stays.sum(1).max()), begin, length
    ours, true = (m.compact_rows(*arguments) for m in (triton_launch, reference))
    assert torch.equal(ours[0], true[0])
    assert torch.equal(ours[1], true[1])
    assert torch.equal(ours[2][stays], true[2][stays])


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (9, 4), (40, 33)])
def test_what_passes_weighs_more_as_in_the_reference(shape: tuple[int, int]) -> None:
    persistence = 2.4 * torch.rand(shape[0] * shape[1], generator=torch.Generator().manual_seed(1)).to(DEVICE) - 1.2
    arguments = persistence, (shape[1],) * shape[0], 0.3
    torch.testing.assert_close(triton_launch.passing(*arguments), reference.passing(*arguments), atol=1e-6, rtol=0)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy, in the interpreter
def test_nan_breaks_no_kernel_and_is_reported(path: str) -> None:
    x = independent(40, 24, 0, torch.float32).to(DEVICE)
    x[7, 3] = float("nan")
    offsets, budget = torch.tensor([0, 40], device=DEVICE), torch.tensor([9], device=DEVICE)
    known = triton_launch.measure(x, (40,), None, False)
    relevance = torch.full((40,), float("nan"), device=DEVICE)
    order = triton_launch.conditional_dpp(x, relevance, offsets, budget, 40, 9, known)
    assert int((order >= 0).sum()) == 9
    with pytest.raises(NonFiniteFeatures, match="1 of 40 video tokens"):
        Prune(0.5, PerFrame()).reduce(VideoTokens(x, (10,) * 4)).check()


def test_a_reducer_runs_on_kernels_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDSIEVE_OPS", "triton")
    tokens = VideoTokens(video_like(4, 12, 24, seed=0, dtype=torch.float32).to(DEVICE), (12,) * 4)
    prompt = Prompt(independent(3, 24, 1, torch.float32).to(DEVICE))
    method = Prune(0.25, SceneCuts(), MarginalGain(), PromptSimilarity(), ConditionalDPP(), NearestKept())
    with ops.spy() as calls:
        reduction = method.reduce(tokens, prompt)
    assert {name for _, name in calls} == {"triton"}
    monkeypatch.setenv("VIDSIEVE_OPS", "reference")
    expected = method.reduce(VideoTokens(tokens.features, tokens.frames), prompt)
    assert torch.equal(reduction.kept, expected.kept)
    assert torch.equal(reduction.source, expected.source)
    monkeypatch.setenv("VIDSIEVE_OPS", "triton")
    with pytest.raises(KernelUnavailable, match="float64"):
        method.reduce(VideoTokens(tokens.features.double(), tokens.frames), prompt)


def test_kernels_that_cannot_run_are_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("the kernels can run on this machine")
    code = "import torch, vidsieve as v; v.presets.vidsieve(.5).reduce(v.VideoTokens(torch.ones(4, 8), (2, 2)))"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"VIDSIEVE_OPS": "triton"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "KernelUnavailable: VIDSIEVE_OPS=triton cannot run here: Triton needs a CUDA device" in run.stderr


@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_kernels_compile_without_a_gpu(architecture: int) -> None:
    script = Path(__file__).with_name("compile_kernels.py")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(script), str(architecture)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    assert len(run.stdout.split()) == 27, run.stdout


@pytest.mark.gpu
def test_two_hundred_repeats_are_bit_identical() -> None:
    x = video_like(8, 98, 512, seed=0, dtype=torch.bfloat16, motion=0.5).to(DEVICE)
    relevance = torch.rand(784, device=DEVICE)
    for bounds in ((0, 196, 392, 588, 784), (0, 784), (0, 600, 784)):
        offsets = torch.tensor(bounds, device=DEVICE)
        budget = reference.apportion(None, offsets, 120)
        told = bounds_of(x, offsets, budget)
        first = triton_launch.conditional_dpp(x, relevance, offsets, budget, *told)
        for _ in range(200):
            assert torch.equal(triton_launch.conditional_dpp(x, relevance, offsets, budget, *told), first)


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
    "sketched": Prune(0.2, Whole(), Proportional(), PromptSimilarity(), LowRankDPP(16, above=32)),
    "evenly": Prune(0.3, Within(25), MarginalGain(), Novelty(), EvenlySpaced()),
    "most relevant": Prune(0.3, Whole(), Proportional(), PromptSimilarity(), TopRelevance()),
    "hybrid": Prune(0.3, SceneCuts(), MarginalGain(), PromptSimilarity(), Hybrid(16)),
    "hybrid of others": Prune(0.3, SceneCuts(), MarginalGain(), Novelty(), Hybrid(16, MaxMin(), ConditionalDPP())),
}


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    ("apart", "questions"), [(False, (3, 3)), (True, (1, 4))], ids=["neighbours", "apart, other questions"]
)
@pytest.mark.parametrize("method", TOGETHER)
def test_videos_of_one_layout_go_together_and_each_is_what_it_is_alone(
    method: str, apart: bool, questions: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDSIEVE_OPS", "triton")
    reducer = TOGETHER[method]
    features = torch.stack([video_like(5, 12, 24, seed=s, dtype=torch.float32, cuts=(2 + s,)) for s in range(2)])
    features = features.to(DEVICE).repeat(1, 1 + apart, 1)[:, :60]
    prompts = [Prompt(independent(m, 24, 90 + m, torch.float32).to(DEVICE)) for m in questions]
    videos = [VideoTokens.from_grid(x, 5, 3, 4) for x in features]
    with ops.spy() as calls:
        found = reducer.reduce_each(videos, prompts)
    assert calls.count(("compact", "triton")) == 1
    for ours, x, prompt in zip(found, features, prompts, strict=True):
        true = reducer.reduce(VideoTokens.from_grid(x, 5, 3, 4), prompt)
        assert torch.equal(ours.kept, true.kept)
        assert torch.equal(ours.source, true.source)
        assert torch.equal(ours.offsets, true.offsets)  # type: ignore[arg-type]
        assert torch.equal(ours.budget, true.budget)  # type: ignore[arg-type]
        assert torch.equal(ours.apply(x), true.apply(x))


def test_videos_that_cannot_go_together_go_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDSIEVE_OPS", "triton")
    x = video_like(4, 9, 24, seed=0, dtype=torch.float32).to(DEVICE)
    prompt = Prompt(independent(3, 24, 9, torch.float32).to(DEVICE))
    longer, shorter = VideoTokens(x, (9,) * 4), VideoTokens(x[:18], (9,) * 2)
    cases: list[tuple[Prune, list[VideoTokens], list[Prompt | None] | None]] = [
        (Prune(0.2), [longer, shorter], None),
        (Prune(0.2), [longer, longer], [prompt, None]),
        (Prune(0.2), [longer], None),
        (Prune(1.0), [longer, longer], None),
        (Prune(0.2, selector=Random(1)), [longer, longer], None),
        (Prune(0.2), [longer, longer], [prompt, Prompt(torch.zeros(1, 8, device=DEVICE))]),
    ]
    for method, videos, prompts in cases:
        found = method.reduce_each(videos, prompts)
        alone = [method.reduce(VideoTokens(v.features, v.frames), prompt) for v in videos]
        assert all(torch.equal(a.kept, b.kept) for a, b in zip(found, alone, strict=True))
    assert Prune(0.2).reduce_each([]) == []
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        Prune(0.2).reduce_each([longer, longer], [prompt])


def test_many_videos_go_together_in_groups_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDSIEVE_OPS", "triton")
    features = [video_like(4, 9, 24, seed=s, dtype=torch.float32).to(DEVICE) for s in range(5)]
    prompts = [Prompt(independent(1 + s, 24, 90 + s, torch.float32).to(DEVICE)) for s in range(5)]
    method = Prune(0.2, PerFrame(), Proportional(), PromptSimilarity(), TopRelevance())
    alone = [method.reduce(VideoTokens(x, (9,) * 4), p).kept for x, p in zip(features, prompts, strict=True)]
    for most, groups in ((2, 3), (5, 1), (0, 5)):
        monkeypatch.setattr("vidsieve.reducer.TOGETHER_BYTES", most * features[0].nbytes)
        with ops.spy() as calls:
            found = method.reduce_each([VideoTokens(x, (9,) * 4) for x in features], prompts)
        assert calls.count(("compact", "triton")) == groups
        assert all(torch.equal(a.kept, b) for a, b in zip(found, alone, strict=True))


@pytest.mark.skipif(DEVICE == "cuda", reason="there `Reduction.check` says so, see the captured graph below")
def test_one_bad_video_of_several_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDSIEVE_OPS", "triton")
    good, bad = (video_like(4, 9, 24, seed=s, dtype=torch.float32) for s in range(2))
    bad[7, 3] = float("nan")
    with pytest.raises(NonFiniteFeatures, match="1 of 72"):
        Prune(0.2).reduce_each([VideoTokens(good, (9,) * 4), VideoTokens(bad, (9,) * 4)])


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


@pytest.mark.parametrize("layout", ["rows apart", "columns apart", "transposed"])
def test_inputs_need_not_be_contiguous(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = degenerate(90, "video-like").float().to(DEVICE)
    other = {
        "rows apart": torch.stack([x, x.flip(0)], 1)[:, 0],
        "columns apart": torch.stack([x, -x], 2)[:, :, 0],
        "transposed": x.mT.contiguous().mT,
    }[layout]
    assert not other.is_contiguous()
    method = Prune(0.3, SceneCuts(), MarginalGain(), PromptSimilarity(), ConditionalDPP(), NearestKept())
    frames, prompt = (10,) * 9, Prompt(independent(3, 24, 1, torch.float32).to(DEVICE))
    monkeypatch.setenv("VIDSIEVE_OPS", "triton")
    ours, true = (method.reduce(VideoTokens(y, frames), prompt) for y in (other, x))
    assert torch.equal(ours.kept, true.kept)
    assert torch.equal(ours.source, true.source)
    assert torch.equal(ours.apply(other), true.apply(x))


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


@pytest.mark.gpu
def test_a_whole_video_as_one_segment_has_no_regret() -> None:
    x = video_like(16, 196, 512, seed=0, dtype=torch.bfloat16, cuts=(5, 11), motion=0.5).to(DEVICE)
    for relevance in (torch.rand(len(x), device=DEVICE), torch.ones(len(x), device=DEVICE)):
        offsets, budget = torch.tensor([0, len(x)], device=DEVICE), torch.tensor([160], device=DEVICE)
        order = triton_launch.conditional_dpp(x, relevance, offsets, budget, *bounds_of(x, offsets, budget))
        check(x, offsets, budget, order, relevance)
