"""Selections in batched torch: those of the reference in float64, bounded regret in float32 and bf16."""

import itertools
import math

import pytest
import torch

import vidsieve
from tests.ops.inputs import (
    KERNEL,
    OFFSETS,
    duplicated,
    factors,
    features,
    head_of,
    offsets_and_budget,
    problem,
    regret,
)
from tests.synthetic import independent, video_like
from vidsieve.ops.definitions import ApportionProblem, MMRProblem, TopProblem
from vidsieve.ops.greedy import eager, on_host, reference
from vidsieve.ops.partition.reference import apportion

# Loss of a pick against the best pick of its own path, as a share of a squared length of a token. bf16 features are
# the input of both sides, so bf16 costs no more than float32, except for the compensated Gram on CPU.
REGRET = {torch.float32: 4e-6, torch.bfloat16: 2e-5}
LOG_DET_RATIO = 1e-3


@pytest.mark.parametrize("layout", OFFSETS)
@pytest.mark.parametrize("kind", ["independent", "video-like", "degenerate"])
def test_selections_equal_the_reference_index_for_index_in_float64(kind: str, layout: str) -> None:
    for seed in range(6):
        x = features(kind, seed, torch.float64)
        relevance = torch.rand(60, generator=torch.Generator().manual_seed(seed))
        offsets, budget = offsets_and_budget(layout, seed)
        asked = problem(x, relevance, offsets, budget)
        assert torch.equal(eager.conditional_dpp(asked), reference.conditional_dpp(asked))
        headed = asked._replace(head=head_of(budget, 60, seed))
        assert torch.equal(eager.conditional_dpp(headed), reference.conditional_dpp(headed))
        traded = MMRProblem(asked, 0.5)
        assert torch.equal(eager.mmr(traded), reference.mmr(traded))
        assert torch.equal(eager.max_min(asked), reference.max_min(asked))
        scored = TopProblem(relevance, offsets, budget)
        assert torch.equal(eager.top(scored), reference.top(scored))


@pytest.mark.parametrize("dtype", REGRET)
@pytest.mark.parametrize("kind", ["independent", "video-like", "degenerate"])
def test_low_precision_has_no_regret_beyond_rounding(kind: str, dtype: torch.dtype) -> None:
    for seed in range(4):
        for x, offsets in (
            (features(kind, seed, dtype), torch.tensor(OFFSETS["ragged"])),
            (video_like(2, 80, 256, seed, dtype), torch.tensor([0, 80, 160])),  # long enough for the compensated Gram
        ):
            relevance = torch.rand(len(x), generator=torch.Generator().manual_seed(seed))
            budget = apportion(ApportionProblem(None, offsets, 20))
            order = eager.conditional_dpp(problem(x, relevance, offsets, budget))
            assert regret(x, relevance, offsets, order) <= REGRET[dtype]
            headed = problem(x, relevance, offsets, budget)._replace(head=head_of(budget, len(x), seed))
            order = eager.conditional_dpp(headed)
            assert regret(x, relevance, offsets, order, headed.head) <= REGRET[dtype]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("n", "dim"), [(32, 64), (64, 256), (196, 1024)])
def test_duplicates_wait_for_all_that_is_new(n: int, dim: int, dtype: torch.dtype) -> None:
    for seed in range(6):
        x, relevance = duplicated(n, dim, seed, dtype)
        offsets, budget = torch.tensor([0, n, 2 * n]), torch.tensor([n // 2, n // 2 - 3])
        x, relevance = torch.cat([x, x]), torch.cat([relevance, relevance])
        order = eager.conditional_dpp(problem(x, relevance, offsets, budget)) >= 0
        assert order.view(2, n)[:, : n // 2].sum(1).tolist() == budget.tolist()


@pytest.mark.parametrize("dtype", REGRET)
def test_low_precision_reaches_the_log_det_of_the_reference(dtype: torch.dtype) -> None:
    x = video_like(4, 64, 128, seed=3, dtype=dtype, motion=0.3)
    relevance = torch.rand(256, generator=torch.Generator().manual_seed(0)).clamp(min=0.1)
    offsets, budget = torch.tensor([0, 256]), torch.tensor([40])
    asked = problem(x, relevance, offsets, budget)
    ours, best = (
        reference.log_det(x, relevance, (op.conditional_dpp(asked) >= 0).nonzero()[:, 0]) for op in (eager, reference)
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
    order = eager.conditional_dpp(problem(x, r, offsets, budget))
    assert [int((order == step).nonzero()) for step in range(6)] == chosen


@pytest.mark.parametrize(("k", "expected"), [(1, [1]), (2, [1, 0]), (3, [1, 0, 3]), (4, [1, 0, 3, 2])])
def test_a_kernel_worked_out_by_its_determinants(k: int, expected: list[int]) -> None:
    """Of KERNEL, det: 0.9 of {1}, 0.63 of {0, 1}, 0.346 of {0, 1, 3} are the largest of their size."""
    x, relevance = factors(KERNEL)
    asked = problem(x, relevance, torch.tensor([0, 4]), torch.tensor([k]))
    for op in (reference, eager):
        order = op.conditional_dpp(asked)
        assert [int((order == step).nonzero()) for step in range(k)] == expected
    for size in range(1, 4):
        sets = [list(some) for some in itertools.combinations(range(4), size)]
        best = max(sets, key=lambda some: float(torch.linalg.det(KERNEL[some][:, some])))
        assert best == sorted([1, 0, 3][:size])  # greedy is exact here


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("n", "dim"), [(5, 8), (90, 16), (130, 64)])
@pytest.mark.parametrize("segments", [1, 3])
@pytest.mark.parametrize("headed", [False, True])
def test_numpy_and_torch_pick_the_same_in_the_same_order(
    headed: bool, segments: int, n: int, dim: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the rank too, where rounding decides: bit for bit."""
    for seed in range(4):
        g = torch.Generator().manual_seed(seed)
        x = torch.randn(3 * n, dim, generator=g).to(dtype)
        x[n // 2 : n] = x[: n - n // 2].clone()  # duplicates
        x[n : 2 * n : 3] = 0
        relevance = torch.rand(3 * n, generator=g)
        relevance[:: 2 + seed] = 0
        picks = torch.tensor([n - 1, n // 2, n // 5])[:segments]
        asked = problem(x[: n * segments], relevance[: n * segments], torch.arange(segments + 1) * n, picks)
        if headed:
            head = head_of(picks, n * segments, seed)
            head.relevance[:: 3 + seed] = 0
            asked = asked._replace(head=head)
        ours = eager.conditional_dpp(asked)
        monkeypatch.setattr(eager, "NUMPY", False)
        assert torch.equal(ours, eager.conditional_dpp(asked))
        monkeypatch.undo()


@pytest.mark.parametrize(
    ("picks", "dim", "least"),
    [(6, 64, 0.0), (60, 64, 0.0), (250, 64, 0.0), (299, 512, 1.0)],  # the last ends with all of S
)
def test_rows_that_are_computed_as_they_are_picked_are_those_of_the_whole(
    picks: int, dim: int, least: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One segment with few picks brings rows of S by and by; with rows asked for at once it picks the same."""
    x = video_like(8, 150, dim, seed=2, dtype=torch.float64)
    relevance = torch.rand(1200, generator=torch.Generator().manual_seed(2)).double().clamp(min=least)
    asked = problem(x, relevance, torch.tensor([0, 1200]), torch.tensor([picks]))
    ours = eager.conditional_dpp(asked)
    monkeypatch.setattr(eager, "ROWS", 1200)
    assert torch.equal(ours, eager.conditional_dpp(asked))


@pytest.mark.parametrize("room", [1, 1 << 14, 1 << 40])
def test_segments_are_picked_alike_in_pieces_of_any_size(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, relevance = video_like(6, 40, 64, seed=4, dtype=torch.float64), torch.rand(240).double()
    asked = problem(x, relevance, torch.arange(0, 241, 40), torch.tensor([9, 3, 12, 9, 40, 1]))
    monkeypatch.setattr(eager, "CORE_BYTES", room)
    assert torch.equal(eager.conditional_dpp(asked), reference.conditional_dpp(asked))


def test_long_segments_compute_rows_as_they_go(monkeypatch: pytest.MonkeyPatch) -> None:
    x, relevance = video_like(5, 12, 24, seed=1), torch.rand(60)
    offsets, budget = torch.tensor([0, 60]), torch.tensor([17])
    asked = problem(x, relevance, offsets, budget)
    monkeypatch.setattr(eager, "GRAM_LIMIT", 16)
    expected = reference.conditional_dpp(asked)
    assert torch.equal(eager.conditional_dpp(asked), expected)
    assert torch.equal(eager.max_min(asked), reference.max_min(asked))


def test_the_first_picks_are_those_of_their_own_relevance_and_the_others_take_note_of_them() -> None:
    x, relevance = features("video-like", 3, torch.float64), torch.rand(60, generator=torch.Generator().manual_seed(3))
    offsets, budget = torch.tensor([0, 30, 60]), torch.tensor([12, 9])
    head = head_of(budget, 60, 1)._replace(picks=torch.tensor([5, 0]))
    for op in (reference, eager):
        order = op.conditional_dpp(problem(x, relevance, offsets, budget)._replace(head=head))
        alone = op.conditional_dpp(problem(x, head.relevance, offsets, torch.tensor([5, 0])))
        never = op.conditional_dpp(problem(x, relevance, offsets, budget))
        assert torch.equal(torch.where(order[:30] < 5, order[:30], -1), alone[:30])
        assert torch.equal(order[30:], never[30:])
        assert not torch.equal(order[:30], never[:30])
        for fewer in (3, 7):  # a smaller budget keeps the first of them
            few = op.conditional_dpp(problem(x, relevance, offsets, torch.tensor([fewer, 0]))._replace(head=head))
            assert torch.equal(few[:30], torch.where(order[:30] < fewer, order[:30], -1))


def test_what_is_beyond_the_rank_is_spread_evenly() -> None:
    assert eager.radical_inverse(4096, torch.device("cpu")).tolist() == [
        reference.radical_inverse(i) for i in range(4096)
    ]
    for n, budget in ((64, 9), (64, 32), (600, 100)):
        x = torch.ones(n, 8)
        offsets, picks = torch.tensor([0, n]), torch.tensor([budget])
        order = eager.conditional_dpp(problem(x, torch.linspace(1, 0.1, n), offsets, picks))
        kept = (order >= 0).nonzero()[:, 0]
        assert len(kept) == budget
        assert int(kept.diff().max()) <= 4 * n / budget


@pytest.mark.parametrize("segments", [1, 3])
@pytest.mark.parametrize("limit", [7, 20, 64])
def test_the_nearest_other_token_is_found_across_blocks(
    segments: int, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eager, "GRAM_LIMIT", limit)
    x = torch.stack([independent(60, 24, seed, torch.float64) for seed in range(segments)])
    unit = torch.nn.functional.normalize(x, dim=-1)
    cosines = (unit @ unit.mT).masked_fill(torch.eye(60, dtype=torch.bool), -2.0)
    torch.testing.assert_close(eager._nearest_other(x), cosines.amax(2), atol=1e-12, rtol=0)


def test_small_products_are_made_in_this_thread_alone_and_the_limit_is_taken_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits: list[int] = []

    def limit(threads: int) -> int:
        limits.append(threads)
        return 3  # what somebody else has set for this thread

    monkeypatch.setattr(on_host, "product_threads", lambda: limit)
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    vidsieve.presets.vidsieve(0.25).reduce(vidsieve.VideoTokens(x, (16,) * 4))
    assert limits
    assert limits == [1, 3] * (len(limits) // 2)
    limits.clear()
    own, right = torch.zeros(4), torch.ones(2)
    with pytest.raises(RuntimeError, match="size mismatch"):
        on_host._difference(torch.addmv, own, torch.ones(4, 3), right, 8)
    assert limits == [1, 3]
    on_host._difference(torch.addmv, own, torch.ones(4, 2), right, on_host.ALONE + 1)
    assert limits == [1, 3]
