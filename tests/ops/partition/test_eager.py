"""Cuts and budgets in batched torch against the reference."""

import pytest
import torch

from vidsieve.ops.definitions import ApportionProblem, NoveltyProblem, SceneCutsProblem
from vidsieve.ops.partition import eager, reference


@pytest.mark.parametrize("frames", [1, 2, 9, 64])
def test_cuts_and_gains_equal_the_reference(frames: int) -> None:
    lengths = torch.randint(1, 40, (frames,))
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    persistence = torch.rand(int(lengths.sum())) * 2 - 1
    for at in (None, torch.randperm(len(persistence))):
        ours, true = (m.novelty(NoveltyProblem(persistence, offsets, at)) for m in (eager, reference))
        torch.testing.assert_close(ours, true, atol=1e-5, rtol=1e-5)
    for threshold, most in ((0.0, 8), (0.0, None), (0.2, 1), (-1.0, 7), (2.0, 3)):
        for even in (True, False):
            problem = SceneCutsProblem(persistence, offsets, threshold, most, even=even)
            assert torch.equal(eager.scene_cuts(problem), reference.scene_cuts(problem))


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
            floor = (0.0, 0.6, 1.0)[trial % 3]
            problem = ApportionProblem(weights, offsets, total, floor)
            budget = eager.apportion(problem)
            assert torch.equal(budget, reference.apportion(problem))
            assert budget.sum() == total
            assert (budget <= lengths).all()
            assert (budget >= 0).all()
            if total >= (lengths > 0).sum():
                assert (budget[lengths > 0] >= 1).all()


@pytest.mark.parametrize("default", [torch.float32, torch.float16, torch.bfloat16])
def test_floors_of_thousands_of_picks_are_those_of_the_reference_whatever_the_default_dtype(
    default: torch.dtype,
) -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 20_000, (12,), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    weights = torch.rand(12, generator=generator).double()
    torch.set_default_dtype(default)
    try:
        for total in range(20_001, 100_000, 9_973):
            ours, true = (m.apportion(ApportionProblem(weights, offsets, total, 0.6)) for m in (eager, reference))
            assert torch.equal(ours, true)
            least = 0.6 * (total - 12) * lengths.double() / lengths.sum()
            assert (ours >= least.floor()).all()
    finally:
        torch.set_default_dtype(torch.float32)


def test_no_tokens_get_no_budget() -> None:
    offsets = torch.zeros(2, dtype=torch.int64)
    for module in (eager, reference):
        assert module.apportion(ApportionProblem(torch.zeros(1), offsets, 0, 0.6)).tolist() == [0]
