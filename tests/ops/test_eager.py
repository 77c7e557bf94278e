"""eager against reference: the same answers in float64, bounded regret in float32 and bf16."""

import math

import pytest
import torch
from torch import Tensor

from tests.synthetic import independent, video_like
from vidsieve.ops import Measures, eager, eager_greedy, reference

OFFSETS = {
    "one segment": (0, 60),
    "equal segments": (0, 12, 24, 36, 48, 60),
    "ragged": (0, 1, 13, 44, 60),
    "empty ones": (0, 0, 30, 30, 60, 60),
}
# Loss of a pick against the best pick of its own path, as a share of a squared length of a token. bf16 features are
# the input of both sides, so bf16 costs no more than float32, except for the compensated Gram on CPU.
REGRET = {torch.float32: 4e-6, torch.bfloat16: 2e-5}
LOG_DET_RATIO = 1e-3


def features(kind: str, seed: int, dtype: torch.dtype) -> Tensor:
    x = independent(60, 24, seed) if kind == "independent" else video_like(5, 12, 24, seed, cuts=(3,))
    if kind == "degenerate":
        x[7], x[20:30], x[59] = x[6], x[19], 0
    return x.to(dtype)


def offsets_and_budget(name: str, seed: int) -> tuple[Tensor, Tensor]:
    offsets = torch.tensor(OFFSETS[name])
    total = int(torch.randint(1, 50, (), generator=torch.Generator().manual_seed(seed)))
    return offsets, reference.apportion(torch.rand(len(offsets) - 1), offsets, total)


def bounds_of(x: Tensor, offsets: Tensor, budget: Tensor) -> tuple[int, int, Measures]:
    """What an operation is told beside its operands: longest segment, total budget, what is known of the tokens."""
    norm = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32).norm(dim=-1)
    return int(offsets.diff().max()), int(budget.sum()), Measures(norm, torch.zeros_like(norm))


def regret(x: Tensor, relevance: Tensor, offsets: Tensor, order: Tensor) -> float:
    """The largest gap between the best gain and the picked one along the path that `order` took, in float64."""
    worst = 0.0
    for begin, end in zip(offsets.tolist(), offsets.tolist()[1:], strict=False):
        steps = order[begin:end]
        unit, r = reference._unit(x[begin:end]), relevance[begin:end].double()
        basis: list[Tensor] = []
        residual = (unit.norm(dim=1) > 0).double()
        open_ = torch.ones(end - begin, dtype=torch.bool)
        for step in range(int((steps >= 0).sum())):
            pick = int((steps == step).nonzero())
            gain = (r**2 * residual).masked_fill(~open_, 0)
            worst = max(worst, float(gain.max() - gain[pick]))
            open_[pick] = False
            direction = unit[pick] - sum((b * (b @ unit[pick]) for b in basis), torch.zeros_like(unit[pick]))
            if float(direction.square().sum()) > reference.EXHAUSTED:
                basis.append(direction / direction.norm())
                residual = (residual - (unit @ basis[-1]) ** 2).clamp(min=0)
    return worst


@pytest.mark.parametrize("layout", OFFSETS)
@pytest.mark.parametrize("kind", ["independent", "video-like", "degenerate"])
def test_selections_equal_the_reference_index_for_index_in_float64(kind: str, layout: str) -> None:
    for seed in range(6):
        x = features(kind, seed, torch.float64)
        relevance = torch.rand(60, generator=torch.Generator().manual_seed(seed))
        offsets, budget = offsets_and_budget(layout, seed)
        bounds = bounds_of(x, offsets, budget)
        args = (x, relevance, offsets, budget, *bounds)
        assert torch.equal(eager.conditional_dpp(*args), reference.conditional_dpp(*args))
        assert torch.equal(eager.mmr(*args, 0.5), reference.mmr(*args, 0.5))
        assert torch.equal(eager.max_min(x, offsets, budget, *bounds), reference.max_min(x, offsets, budget))
        assert torch.equal(eager.top(relevance, offsets, budget), reference.top(relevance, offsets, budget))


@pytest.mark.parametrize("dtype", REGRET)
@pytest.mark.parametrize("kind", ["independent", "video-like", "degenerate"])
def test_low_precision_has_no_regret_beyond_rounding(kind: str, dtype: torch.dtype) -> None:
    for seed in range(4):
        for x, offsets in (
            (features(kind, seed, dtype), torch.tensor(OFFSETS["ragged"])),
            (video_like(2, 80, 256, seed, dtype), torch.tensor([0, 80, 160])),  # long enough for the compensated Gram
        ):
            relevance = torch.rand(len(x), generator=torch.Generator().manual_seed(seed))
            budget = reference.apportion(None, offsets, 20)
            order = eager.conditional_dpp(x, relevance, offsets, budget, *bounds_of(x, offsets, budget))
            assert regret(x, relevance, offsets, order) <= REGRET[dtype]


def duplicated(n: int, dim: int, seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The first half are all different, a quarter of it of next to no relevance; what follows is of the other quarter
    again, each row once more and once in another length."""
    x = independent(n, dim, seed, dtype)
    half, quarter = n // 2, n // 4
    x[half:] = x[torch.arange(n - half) % quarter]
    x[half + quarter :] *= 2
    relevance = torch.ones(n)
    relevance[quarter:half] = 1e-3
    return x, relevance


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("n", "dim"), [(32, 64), (64, 256), (196, 1024)])
def test_duplicates_wait_for_all_that_is_new(n: int, dim: int, dtype: torch.dtype) -> None:
    for seed in range(6):
        x, relevance = duplicated(n, dim, seed, dtype)
        offsets, budget = torch.tensor([0, n, 2 * n]), torch.tensor([n // 2, n // 2 - 3])
        x, relevance = torch.cat([x, x]), torch.cat([relevance, relevance])
        order = eager.conditional_dpp(x, relevance, offsets, budget, *bounds_of(x, offsets, budget)) >= 0
        assert order.view(2, n)[:, : n // 2].sum(1).tolist() == budget.tolist()


@pytest.mark.parametrize("dtype", REGRET)
def test_low_precision_reaches_the_log_det_of_the_reference(dtype: torch.dtype) -> None:
    x = video_like(4, 64, 128, seed=3, dtype=dtype, motion=0.3)
    relevance = torch.rand(256, generator=torch.Generator().manual_seed(0)).clamp(min=0.1)
    offsets, budget = torch.tensor([0, 256]), torch.tensor([40])
    bounds = bounds_of(x, offsets, budget)
    ours, best = (
        reference.log_det(
            x, relevance, (op.conditional_dpp(x, relevance, offsets, budget, *bounds) >= 0).nonzero()[:, 0]
        )
        for op in (eager, reference)
    )
    assert abs(ours - best) <= LOG_DET_RATIO * abs(best)


def test_the_condition_only_weighs_the_choice() -> None:
    """Greedy on L = diag(r) S diag(r), written out with determinants, picks what algorithm 1 on S with r picks."""
    x, r = independent(14, 8, seed=5), torch.rand(14, generator=torch.Generator().manual_seed(5)).double() + 0.2
    unit = x / x.norm(dim=1, keepdim=True)
    kernel = r[:, None] * (unit @ unit.mT) * r
    chosen: list[int] = []
    for _ in range(6):
        gains = [
            -math.inf if i in chosen else float(torch.linalg.slogdet(kernel[[*chosen, i]][:, [*chosen, i]]).logabsdet)
            for i in range(14)
        ]
        chosen.append(max(range(14), key=gains.__getitem__))
    offsets, budget = torch.tensor([0, 14]), torch.tensor([6])
    order = eager.conditional_dpp(x, r, offsets, budget, *bounds_of(x, offsets, budget))
    assert [int((order == step).nonzero()) for step in range(6)] == chosen


def test_long_segments_compute_rows_as_they_go(monkeypatch: pytest.MonkeyPatch) -> None:
    x, relevance = video_like(5, 12, 24, seed=1), torch.rand(60)
    offsets, budget = torch.tensor([0, 60]), torch.tensor([17])
    bounds = bounds_of(x, offsets, budget)
    monkeypatch.setattr(eager_greedy, "GRAM_LIMIT", 16)
    expected = reference.conditional_dpp(x, relevance, offsets, budget)
    assert torch.equal(eager.conditional_dpp(x, relevance, offsets, budget, *bounds), expected)
    assert torch.equal(eager.max_min(x, offsets, budget, *bounds), reference.max_min(x, offsets, budget))


@pytest.mark.parametrize("frames", [(12,) * 5, (10, 14, 12, 12, 12), (60,), (1,) * 60])
@pytest.mark.parametrize("small_pieces", [False, True])
def test_persistence(frames: tuple[int, ...], small_pieces: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if small_pieces:
        monkeypatch.setattr(eager, "STREAM_BYTES", 12 * 24 * 4 * 2)
    for kind in ("independent", "video-like", "degenerate"):
        x = features(kind, 2, torch.float32)
        torch.testing.assert_close(eager._persistence(x, frames), reference._persistence(x, frames), atol=2e-6, rtol=0)


def test_persistence_of_equal_tokens_is_one() -> None:
    for value in (0.0, 3.3):
        x = torch.full((40, 7), value)
        assert eager._persistence(x, (10,) * 4).tolist() == [0.0] * 10 + [1.0] * 30
        assert reference._persistence(x, (10,) * 4).tolist() == [0.0] * 10 + [1.0] * 30


def test_cosine_to_merging_and_nearest() -> None:
    for seed in range(4):
        x = features("degenerate", seed, torch.float32)
        y = independent(3, 24, seed + 100, torch.float32)
        torch.testing.assert_close(eager._norm_and_cosine(x, y)[1], reference._cosine_to(x, y), atol=1e-6, rtol=0)
        offsets, budget = offsets_and_budget("ragged", seed)
        kept = (eager.top(torch.rand(60), offsets, budget) >= 0).nonzero()[:, 0]
        source = eager.nearest_kept(x, offsets, kept)
        assert torch.equal(source, reference.nearest_kept(x, offsets, kept))
        torch.testing.assert_close(
            eager.merge_mean(x, source, kept), reference.merge_mean(x, source, kept), atol=1e-6, rtol=1e-6
        )


@pytest.mark.parametrize("frames", [1, 2, 9, 64])
def test_cuts_and_gains_equal_the_reference(frames: int) -> None:
    lengths = torch.randint(1, 40, (frames,))
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    persistence = torch.rand(int(lengths.sum())) * 2 - 1
    for at in (None, torch.randperm(len(persistence))):
        ours, true = (m.novelty(persistence, offsets, at) for m in (eager, reference))
        torch.testing.assert_close(ours, true, atol=1e-5, rtol=1e-5)
    for threshold, most in ((0.0, 8), (0.0, None), (0.2, 1), (-1.0, 7), (2.0, 3)):
        arguments = persistence, offsets, threshold, most
        assert torch.equal(eager.scene_cuts(*arguments), reference.scene_cuts(*arguments))


def test_apportion_equals_the_reference_and_always_sums() -> None:
    generator = torch.Generator().manual_seed(0)
    for trial in range(60):
        count = int(torch.randint(1, 12, (), generator=generator))
        lengths = torch.randint(0, 30, (count,), generator=generator)
        lengths[0] += 1
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        weights = torch.rand(count, generator=generator).double() ** 3 * (trial % 4 > 0) if trial % 5 else None
        for total in {1, count, int(lengths.sum()) // 3, int(lengths.sum())}:
            if total > lengths.sum():
                continue
            budget = eager.apportion(weights, offsets, total)
            assert torch.equal(budget, reference.apportion(weights, offsets, total))
            assert budget.sum() == total
            assert (budget <= lengths).all()
            assert (budget >= 0).all()
            if total >= (lengths > 0).sum():
                assert (budget[lengths > 0] >= 1).all()


@pytest.mark.parametrize("frames", [(4,) * 15, (3, 3, 5, 3, 3, 5, 5, 1, 1, 31), (60,)])
def test_merging_along_time_equals_the_reference(frames: tuple[int, ...]) -> None:
    for seed in range(3):
        whole = features("degenerate", seed, torch.float32)
        persistence = torch.rand(60) * 2.4 - 1.2
        torch.testing.assert_close(
            eager.passing(persistence, frames, 0.3), reference.passing(persistence, frames, 0.3), atol=1e-6, rtol=0
        )
        for at in (None, (torch.rand(60) < 0.6).nonzero()[:, 0]):
            x = whole if at is None else whole[at]
            n = len(x)
            offsets = torch.tensor([0, n // 4, n // 4, n // 2, n])
            arguments = x, x.norm(dim=1), offsets, frames, at
            (before, cosine), (true, cosine_true) = (m.temporal(*arguments) for m in (eager, reference))
            assert torch.equal(before, true)
            torch.testing.assert_close(cosine, cosine_true, atol=1e-5, rtol=0)
            for threshold in (-3.0, 0.5, 2.0):
                ours, true = (m.runs(cosine_true, before, threshold, len(frames)) for m in (eager, reference))
                assert torch.equal(ours[0][: int(ours[1])], true[0][: int(true[1])])
                assert all(torch.equal(*pair) for pair in zip(ours[2:], true[2:], strict=True))
            begins = torch.rand(n) < 0.3  # some are before all that begin
            row = torch.where(begins, begins.cumsum(0) - 1, -1)
            for ours, right in zip(*(m.absorbed(row, before, len(frames)) for m in (eager, reference)), strict=True):
                assert torch.equal(ours, right)


def test_weighted_means_and_compacted_rows_equal_the_reference() -> None:
    x, source = independent(60, 24, 0, torch.float32), torch.randint(-1, 9, (60,))
    source[:9] = torch.arange(9)
    for weight in (None, torch.randint(1, 5, (60,))):
        ours, true = (m.merge_mean(x, source, torch.arange(9), weight) for m in (eager, reference))
        torch.testing.assert_close(ours, true)
        around = independent(70, 24, 1, torch.float32)
        index = torch.tensor([0, 3, *range(4, 13), 66])
        given = around, index, 4, source, torch.arange(9), weight
        torch.testing.assert_close(eager.merge_among(*given), reference.merge_among(*given))
    stays = torch.rand(4, 33) < 0.5
    stays[:, 0] = True
    for begin, length in ((0, 33), (5, 40)):
        whole = torch.ones(4, length, dtype=torch.bool)
        whole[:, begin : begin + 33] = stays
        arguments = stays.long() - 1, int(whole.sum(1).max()), begin, length
        ours, true = (m.compact_rows(*arguments) for m in (eager, reference))
        assert torch.equal(ours[0] * ours[1], true[0])
        assert torch.equal(ours[1], true[1])
        assert torch.equal(ours[2][whole], true[2][whole])


def attention(past: int, width: int, queries: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries of six heads in two groups, keys, the columns that ask, and what is no padding."""
    generator = torch.Generator().manual_seed(seed)
    query, key = (torch.randn(heads, n, width, generator=generator) for heads, n in ((6, 100), (2, 100 + past)))
    seen = torch.rand(100 + past, generator=generator) < 0.8
    columns = torch.randperm(100, generator=generator)[:queries].sort().values
    seen[past + columns] = True
    return query, key, columns, seen


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize(("past", "width", "queries"), [(0, 8, 1), (5, 24, 20), (70, 16, 80)])
def test_attention_received_equals_the_reference(past: int, width: int, queries: int, softcap: float | None) -> None:
    query, key, columns, seen = attention(past, width, queries)
    for padding in (None, seen):
        arguments = query, key, columns, padding, 0.5, softcap
        torch.testing.assert_close(eager.received(*arguments), reference.received(*arguments))
