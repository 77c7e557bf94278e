"""Compaction in batched torch against the reference."""

import torch

from vidsieve.ops.compaction import eager, reference
from vidsieve.ops.definitions import CompactRowsProblem


def test_compacted_rows_equal_the_reference() -> None:
    stays = torch.rand(4, 33) < 0.5
    stays[:, 0] = True
    for begin, length in ((0, 33), (5, 40)):
        whole = torch.ones(4, length, dtype=torch.bool)
        whole[:, begin : begin + 33] = stays
        problem = CompactRowsProblem(stays.long() - 1, int(whole.sum(1).max()), begin, length)
        ours, true = (m.compact_rows(problem) for m in (eager, reference))
        assert torch.equal(ours[0] * ours[1], true[0])
        assert torch.equal(ours[1], true[1])
        assert torch.equal(ours[2][whole], true[2][whole])
