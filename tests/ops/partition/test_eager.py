"""Cuts and budgets in batched torch against the reference."""

import pytest
import torch

from vidsieve.ops.partition import eager, reference


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
            floor = (0.0, 0.5, 1.0)[trial % 3]
            budget = eager.apportion(weights, offsets, total, floor)
            assert torch.equal(budget, reference.apportion(weights, offsets, total, floor))
            assert budget.sum() == total
            assert (budget <= lengths).all()
            assert (budget >= 0).all()
            if total >= (lengths > 0).sum():
                assert (budget[lengths > 0] >= 1).all()
