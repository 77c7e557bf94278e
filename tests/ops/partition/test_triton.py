"""Cuts and budgets by kernels: in Triton's interpreter where there is no GPU, on the device where there is one."""

import pytest
import torch

from tests.ops.inputs import DEVICE
from vidsieve.ops.definitions import ApportionProblem, NoveltyProblem, SceneCutsProblem
from vidsieve.ops.partition import reference

triton = pytest.importorskip("vidsieve.ops.partition.triton", reason="Triton is not installed")


def test_apportion_equals_the_reference() -> None:
    generator = torch.Generator().manual_seed(0)
    for count in (1, 2, 9, 33):
        lengths = torch.randint(0, 20, (count,), generator=generator)
        lengths[0] += 1
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        weights = torch.rand(count, generator=generator).double() ** 3
        for total in {1, int(lengths.sum()) // 3, int(lengths.sum())}:
            for w, floor in ((weights, 0.0), (weights, 0.6), (0 * weights, 0.6), (None, 0.0)):
                problem = ApportionProblem(w, offsets, total, floor)
                there = problem._replace(weights=None if w is None else w.to(DEVICE), offsets=offsets.to(DEVICE))
                assert torch.equal(triton.apportion(there).cpu(), reference.apportion(problem))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("frames", [1, 2, 9, 63, 64, 100])
def test_cuts_and_gains_equal_the_reference(frames: int) -> None:
    generator = torch.Generator().manual_seed(frames)
    lengths = torch.randint(1, 40, (frames,), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).to(DEVICE)
    persistence = (torch.rand(int(lengths.sum()), generator=generator) * 2 - 1).to(DEVICE)
    shuffled = torch.randperm(len(persistence), generator=generator).to(DEVICE)
    for at in (None, shuffled, torch.stack([shuffled, -shuffled], 1)[:, 0]):
        ours, true = (m.novelty(NoveltyProblem(persistence, offsets, at)) for m in (triton, reference))
        torch.testing.assert_close(ours, true, atol=1e-5, rtol=1e-5)
    for threshold, most in ((0.0, 8), (0.0, None), (0.2, 1), (-1.0, 7), (2.0, 3)):
        for even in (True, False):
            problem = SceneCutsProblem(persistence, offsets, threshold, most, even=even)
            assert torch.equal(triton.scene_cuts(problem), reference.scene_cuts(problem))
