"""Merging in batched torch against the reference."""

import pytest
import torch

from tests.ops.inputs import features, offsets_and_budget
from tests.synthetic import independent
from vidsieve.ops.definitions import (
    FollowRunsProblem,
    MergeAmongProblem,
    MergeProblem,
    MergeRunsProblem,
    NearestKeptProblem,
    TemporalProblem,
    TopProblem,
)
from vidsieve.ops.greedy.eager import top
from vidsieve.ops.merge import eager, reference


def test_nearest_kept_and_its_means_equal_the_reference() -> None:
    for seed in range(4):
        x = features("degenerate", seed, torch.float32)
        offsets, budget = offsets_and_budget("ragged", seed)
        kept = (top(TopProblem(torch.rand(60), offsets, budget)) >= 0).nonzero()[:, 0]
        problem = NearestKeptProblem(x, offsets, kept)
        source = eager.nearest_kept(problem)
        assert torch.equal(source, reference.nearest_kept(problem))
        torch.testing.assert_close(
            *(m.merge_mean(MergeProblem(x, source, kept)) for m in (eager, reference)), atol=1e-6, rtol=1e-6
        )


@pytest.mark.parametrize("frames", [(4,) * 15, (3, 3, 5, 3, 3, 5, 5, 1, 1, 31), (60,)])
def test_merging_along_time_equals_the_reference(frames: tuple[int, ...]) -> None:
    for seed in range(3):
        whole = features("degenerate", seed, torch.float32)
        for at in (None, (torch.rand(60) < 0.6).nonzero()[:, 0]):
            x = whole if at is None else whole[at]
            n = len(x)
            offsets = torch.tensor([0, n // 4, n // 4, n // 2, n])
            problem = TemporalProblem(x, x.norm(dim=1), offsets, frames, at)
            (before, cosine), (true, cosine_true) = (m.temporal(problem) for m in (eager, reference))
            assert torch.equal(before, true)
            torch.testing.assert_close(cosine, cosine_true, atol=1e-5, rtol=0)
            for threshold in (-3.0, 0.5, 2.0):
                runs = MergeRunsProblem(cosine_true, before, threshold, len(frames))
                ours, true = (m.merge_runs(runs) for m in (eager, reference))
                assert torch.equal(ours[0][: int(ours[1])], true[0][: int(true[1])])
                assert all(torch.equal(*pair) for pair in zip(ours[2:], true[2:], strict=True))
            begins = torch.rand(n) < 0.3  # some are before all that begin
            row = torch.where(begins, begins.cumsum(0) - 1, -1)
            follow = FollowRunsProblem(row, before, len(frames))
            for ours, right in zip(*(m.follow_runs(follow) for m in (eager, reference)), strict=True):
                assert torch.equal(ours, right)


def test_weighted_means_equal_the_reference() -> None:
    x, source = independent(60, 24, 0, torch.float32), torch.randint(-1, 9, (60,))
    source[:9] = torch.arange(9)
    for weight in (None, torch.randint(1, 5, (60,))):
        ours, true = (m.merge_mean(MergeProblem(x, source, torch.arange(9), weight)) for m in (eager, reference))
        torch.testing.assert_close(ours, true)
        around = independent(70, 24, 1, torch.float32)
        index = torch.tensor([0, 3, *range(4, 13), 66])
        among = MergeAmongProblem(MergeProblem(around, source, torch.arange(9), weight), index, 4)
        torch.testing.assert_close(eager.merge_among(among), reference.merge_among(among))
