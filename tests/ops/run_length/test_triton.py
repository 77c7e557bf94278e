"""Groups that repeat one before them, by kernels: in Triton's interpreter where there is no GPU, else on the device."""

import pytest
import torch

from tests.ops.inputs import DEVICE
from tests.ops.run_length.groups import KINDS, SHAPES, groups, totals
from tests.synthetic import never_waiting
from vidsieve import ops
from vidsieve.ops import RunLengthProblem
from vidsieve.ops.run_length import eager, reference

triton = pytest.importorskip("vidsieve.ops.run_length.triton", reason="Triton is not installed")


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    ("shape", "kind"), [*((shape, "repeating") for shape in SHAPES), *(((6, 2, 33), kind) for kind in KINDS)], ids=str
)
def test_kernels_equal_the_reference(shape: tuple[int, int, int], kind: str) -> None:
    x = groups(*shape, kind, seed=1).to(DEVICE)
    for problem in totals(x):
        for ours, true in zip(triton.run_length(problem), reference.run_length(problem), strict=True):
            assert torch.equal(ours, true), problem[1:]


@pytest.mark.usefixtures("poisoned")
def test_pixels_need_not_be_contiguous() -> None:
    x = groups(9, 2, 24, "repeating").to(DEVICE)
    true = triton.run_length(RunLengthProblem(x, 9))
    others = {
        "frames apart": torch.stack([x, -x], 1)[:, 0],
        "places apart": torch.stack([x, -x], 2)[:, :, 0],
        "places first": x.transpose(0, 1).contiguous().transpose(0, 1),
        "values apart": torch.stack([x, -x], 3)[..., 0],
    }
    for name, other in others.items():
        assert not other.is_contiguous(), name
        for ours, expected in zip(triton.run_length(RunLengthProblem(other, 9)), true, strict=True):
            assert torch.equal(ours, expected), name


@pytest.mark.usefixtures("poisoned")
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy, in the interpreter
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e19])
@pytest.mark.parametrize("operation", [reference, eager, triton], ids=["reference", "eager", "triton"])
def test_groups_that_are_not_finite_are_marked_and_the_count_stays_exact(operation: object, value: float) -> None:
    x = groups(9, 4, 24, "moving").to(DEVICE)
    x[0, 1, 3] = x[8, 2, 23] = x[5, 0, 0] = value
    for total in (4, 18, None):
        kept, source, nonfinite = operation.run_length(RunLengthProblem(x, total, 1.0))  # type: ignore[attr-defined]
        assert nonfinite.nonzero()[:, 0].tolist() == [1, 20, 34]
        assert total is None or len(kept) == total
        assert kept[:4].tolist() == [0, 1, 2, 3]
        assert (kept.diff() > 0).all()
        assert int(source.min()) == 0
        assert int(source.max()) == len(kept) - 1


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(64, 196, 4704), (37, 130, 1536), (200, 16, 768)], ids=str)
def test_kernels_equal_batched_torch_on_a_whole_video(shape: tuple[int, int, int]) -> None:
    frames, places, _ = shape
    x = groups(*shape, "bf16").to(DEVICE)
    x += (0.05 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).to(DEVICE)
    for total in (None, round(0.25 * frames * places), round(0.5 * frames * places)):
        problem = RunLengthProblem(x, total, 0.1)
        ours, true = triton.run_length(problem), eager.run_length(problem)
        assert len(ours[0]) == (total or len(true[0]))
        same = torch.isin(ours[0], true[0]).float().mean()
        assert same > 0.999  # the rest is within rounding of the threshold
        assert torch.equal(ours[2], true[2])


@pytest.mark.gpu
def test_a_fixed_count_never_waits_for_the_device_and_a_graph_repeats_it() -> None:
    videos = [groups(16, 49, 1536, "bf16", seed).to(DEVICE) for seed in range(3)]
    static = videos[0].clone()
    run = lambda x: ops.run_length(RunLengthProblem(x, 392))  # noqa: E731
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        run(static)
    torch.cuda.synchronize()
    with never_waiting():
        run(static)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(static)
    for x in videos:
        static.copy_(x)
        graph.replay()
        for ours, true in zip(out, run(x), strict=True):
            assert torch.equal(ours, true)


@pytest.mark.gpu
def test_fifty_repeats_are_bit_identical() -> None:
    problem = RunLengthProblem(groups(32, 196, 1536, "bf16").to(DEVICE), 2000)
    first = triton.run_length(problem)
    for _ in range(50):
        for ours, true in zip(triton.run_length(problem), first, strict=True):
            assert torch.equal(ours, true)
