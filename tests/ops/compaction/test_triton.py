"""Compaction by kernels: in Triton's interpreter where there is no GPU, on the device where there is one."""

from itertools import pairwise

import pytest
import torch

from tests.ops.inputs import DEVICE
from vidsieve.ops.compaction import reference
from vidsieve.ops.definitions import CompactProblem, CompactRowsProblem

triton = pytest.importorskip("vidsieve.ops.compaction.triton", reason="Triton is not installed")


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("n", [1, 63, 4096, 5001])
def test_compaction_equals_the_reference(n: int) -> None:
    scores = torch.randn(n, generator=torch.Generator().manual_seed(n)).to(DEVICE)
    order = torch.where(scores > 0, torch.arange(n, device=DEVICE), -1).int()
    total = int((order >= 0).sum())
    offsets = torch.tensor([0, n // 3, n // 3, n], device=DEVICE)
    budget = torch.stack([(order[a:b] >= 0).sum() for a, b in pairwise(offsets.tolist())])
    problem = CompactProblem(order, offsets, budget, n, total)
    for one, true in zip(triton.compact(problem), reference.compact(problem), strict=True):
        assert torch.equal(one, true)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(("n", "begin", "length"), [(1, 0, 1), (63, 0, 63), (5000, 0, 5000), (500, 21, 6000)])
def test_rows_are_compacted_to_the_right(n: int, begin: int, length: int, rows: int) -> None:
    left = torch.where(torch.rand(rows, n, generator=torch.Generator().manual_seed(n)) < 0.4, 7, -1).to(DEVICE)
    left[-1, -1] = 0
    stays = torch.ones(rows, length, dtype=torch.bool, device=DEVICE)
    stays[:, begin : begin + n] = left >= 0
    problem = CompactRowsProblem(left, int(stays.sum(1).max()), begin, length)
    ours, true = (m.compact_rows(problem) for m in (triton, reference))
    assert torch.equal(ours[0], true[0])
    assert torch.equal(ours[1], true[1])
    assert torch.equal(ours[2][stays], true[2][stays])
