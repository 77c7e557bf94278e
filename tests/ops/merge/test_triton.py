"""Merging by kernels: in Triton's interpreter where there is no GPU, on the device where there is one."""

import pytest
import torch

from tests.ops.inputs import DEVICE, degenerate
from tests.synthetic import independent, video_like
from vidsieve.ops.definitions import (
    FollowRunsProblem,
    MeasureProblem,
    MergeAmongProblem,
    MergeProblem,
    MergeRunsProblem,
    NearestKeptProblem,
    TemporalProblem,
)
from vidsieve.ops.measurement.reference import measure
from vidsieve.ops.merge import eager, reference

triton = pytest.importorskip("vidsieve.ops.merge.triton", reason="Triton is not installed")


@pytest.mark.usefixtures("poisoned")
def test_nearest_kept_equals_the_reference() -> None:
    x = degenerate(86, "video-like").float().to(DEVICE)
    offsets = torch.tensor([0, 7, 7, 80, 86], device=DEVICE)  # one is longer than a block
    kept = torch.tensor([0, 3, 6, 20, 21, 41, 66, 79], device=DEVICE)
    problem = NearestKeptProblem(x, offsets, kept)
    assert torch.equal(triton.nearest_kept(problem), reference.nearest_kept(problem))


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
    norm = measure(MeasureProblem(x, (n,))).norm
    problem = TemporalProblem(x, norm, offsets, frames, at)
    (before, cosine), (true, cosine_true) = (m.temporal(problem) for m in (triton, reference))
    assert torch.equal(before, true)
    torch.testing.assert_close(cosine, cosine_true, atol=2e-5, rtol=0)
    ours, right = (m.merge_runs(MergeRunsProblem(cosine_true, before, 0.5, 70)) for m in (triton, reference))
    assert torch.equal(ours[0][: int(ours[1])], right[0][: int(right[1])])
    assert all(torch.equal(*pair) for pair in zip(ours[2:], right[2:], strict=True))
    begins = torch.rand(n, generator=generator).to(DEVICE) < 0.2  # some are before all that begin
    row = torch.where(begins, begins.cumsum(0) - 1, -1)
    (source, link), right = (m.follow_runs(FollowRunsProblem(row, before, 70)) for m in (triton, reference))
    assert torch.equal(source, right[0])
    assert torch.equal(link, right[1])
    if begins.any():
        kept = begins.nonzero()[:, 0]
        means = (m.merge_mean(MergeProblem(x, source, kept, None, link)) for m in (triton, reference))
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
        ours, true = (m.merge_mean(MergeProblem(y, source, of, weight)) for m in (triton, reference))
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
            problem = MergeAmongProblem(MergeProblem(y, source.to(DEVICE), of, weight, way), index, before)
            ours, true = (m.merge_among(problem) for m in (triton, reference))
            torch.testing.assert_close(ours, true, atol=2e-2, rtol=2e-2)
            torch.testing.assert_close(eager.merge_among(problem), true, atol=2e-2, rtol=2e-2)
