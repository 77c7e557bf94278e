"""What is measured, by kernels: in Triton's interpreter where there is no GPU, on the device where there is one."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from tests.ops.inputs import DEVICE
from tests.synthetic import independent, video_like
from vidsieve.ops.definitions import ContrastProblem, MeasureProblem, MinMaxProblem, TransienceProblem
from vidsieve.ops.limits import NONFINITE_PROMPT
from vidsieve.ops.measurement import eager, reference

triton = pytest.importorskip("vidsieve.ops.measurement.triton", reason="Triton is not installed")


@pytest.mark.usefixtures("poisoned")
@pytest.mark.skipif(DEVICE == "cuda" and torch.cuda.get_device_capability() < (9, 0), reason="tiles are used there")
@pytest.mark.parametrize("longest", [9, 64, 100, 130, 197])
def test_programs_that_share_the_features_of_a_segment_find_its_cosines(
    longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton, "multiprocessors", lambda x: 4)
    for dtype, dim in ((torch.float32, 72), (torch.float16, 200)):
        more = min(11, longest)
        n = longest + more
        x = independent(n, dim, longest, dtype).to(DEVICE)
        y = independent(3, dim, 1, dtype).to(DEVICE)
        offsets = torch.tensor([0, longest, n], device=DEVICE)
        problem = MeasureProblem(x, (n,), y, segments=(offsets, longest))
        found, true = triton.measure(problem), reference.measure(problem)
        torch.testing.assert_close(found.norm, true.norm, atol=0, rtol=1e-5)
        torch.testing.assert_close(found.cosine, true.cosine, atol=2e-5, rtol=0)
        assert not found.nonfinite.any()
        assert len(found.products) == 2
        for begin, end in pairwise(offsets.tolist()):
            ours = found.products[:, begin:end, : end - begin].double().sum(0)
            some = x[begin:end].double()
            torch.testing.assert_close(ours, some @ some.T, atol=2e-5 * dim, rtol=2e-6)
        x[3, 2] = float("nan")
        assert triton.measure(problem).nonfinite.nonzero().tolist() == [[3]]


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dim", [8, 24, 600])
def test_measures(dim: int) -> None:
    x = video_like(5, 7, dim, seed=dim).to(DEVICE, torch.bfloat16)
    x[14:21] = x[7:14]
    y = independent(3, dim, 1, torch.float32).to(DEVICE)
    ours, true = (m.measure(MeasureProblem(x, (7,) * 5, y, persistence=True)) for m in (triton, reference))
    for name in ("norm", "persistence", "cosine"):
        torch.testing.assert_close(getattr(ours, name), getattr(true, name), atol=2e-5, rtol=2e-5)
    assert not ours.nonfinite.any()
    about = MeasureProblem(x, (7,) * 5, persistence=True, centre=2 * independent(5, dim, 2, torch.float32).to(DEVICE))
    ours, true = (m.measure(about).persistence for m in (triton, reference))
    torch.testing.assert_close(ours, true, atol=2e-5, rtol=2e-5)
    x[3, 2], x[3, 5], x[9, 0] = float("nan"), float("inf"), -float("inf")
    ours, true = (m.measure(MeasureProblem(x, (7,) * 5)) for m in (triton, reference))
    assert torch.equal(ours.nonfinite, true.nonfinite)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shared", [False, True])  # whether programs share the features of a segment
def test_what_no_square_of_float32_holds_is_a_fault_and_so_is_such_a_prompt(
    dtype: torch.dtype, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton, "multiprocessors", lambda x: 4)
    offsets = torch.tensor([0, 9, 18], device=DEVICE)
    x, y = independent(18, 40, 0, dtype), independent(3, 40, 1, dtype)
    tiny = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    x[1], x[2], x[5], x[6], x[7] = 0, tiny, 1e-6, 65504, float("nan")
    if dtype != torch.float16:
        x[8], x[9], x[10], x[11] = 1e-30, 1e-20, 1e19, 1e25
    x[17, 3] = float("inf")
    for prompt in (None, y, y * 0, torch.cat([y, y * float("inf")]), torch.cat([y, 0 * y + tiny]), y * 6e4):
        within = (offsets, 9) if shared else None
        problem = MeasureProblem(x.to(DEVICE), (18,), None if prompt is None else prompt.to(DEVICE), segments=within)
        with np.errstate(over="ignore", invalid="ignore"):  # of the interpreter
            ours = triton.measure(problem)
        assert (ours.products is not None) == shared
        for other in (reference, eager):
            found = other.measure(problem)
            unfit = found.nonfinite & ~NONFINITE_PROMPT
            assert torch.equal(ours.nonfinite & ~NONFINITE_PROMPT, unfit)
            assert torch.equal(ours.nonfinite[unfit == 0], found.nonfinite[unfit == 0])
    with np.errstate(over="ignore", invalid="ignore"):
        assert torch.equal(triton.measure(MeasureProblem(x.to(DEVICE), (9, 9), persistence=True)).nonfinite, unfit)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (9, 4), (40, 33)])
def test_what_passes_weighs_more_as_in_the_reference(shape: tuple[int, int]) -> None:
    persistence = 2.4 * torch.rand(shape[0] * shape[1], generator=torch.Generator().manual_seed(1)).to(DEVICE) - 1.2
    for first in (0, 5):
        frames = (shape[1],) * shape[0]
        problem = TransienceProblem(persistence, frames, 0.3, first)
        torch.testing.assert_close(triton.transience(problem), reference.transience(problem), atol=1e-6, rtol=0)
        kneed = ContrastProblem(persistence, frames, 0.3, 0.6, 0.4, first)
        torch.testing.assert_close(triton.contrast(kneed), reference.contrast(kneed), atol=2e-6, rtol=0)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("n", [1, 63, 4096, 5001])
def test_scores_are_brought_to_one_scale_as_in_the_reference(n: int) -> None:
    problem = MinMaxProblem(torch.randn(n, generator=torch.Generator().manual_seed(n)).to(DEVICE), 1e-6)
    torch.testing.assert_close(triton.min_max(problem), reference.min_max(problem), atol=1e-6, rtol=0)
