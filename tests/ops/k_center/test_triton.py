"""Centres of blocks of groups, by kernels: in Triton's interpreter where there is no GPU, else on the device."""

import pytest
import torch

from tests.ops.inputs import DEVICE
from tests.ops.k_center.videos import KINDS, SHAPES, check_near, counts, video
from tests.synthetic import never_waiting
from vidsieve import ops
from vidsieve.ops import KCenterProblem
from vidsieve.ops.k_center import eager, reference

triton = pytest.importorskip("vidsieve.ops.k_center.triton", reason="Triton is not installed")


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernels_equal_the_reference(shape: tuple[int, int, int]) -> None:
    x = video(*shape, seed=1).to(DEVICE)
    for total in counts(x):
        problem = KCenterProblem(x, total)
        for ours, true in zip(triton.k_center(problem), reference.k_center(problem), strict=True):
            assert torch.equal(ours, true), total


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("kind", KINDS)
def test_no_group_is_farther_from_its_centre_than_in_the_reference(kind: str) -> None:
    x = video(11, 5, 33, kind).to(DEVICE)
    for total in counts(x):
        problem = KCenterProblem(x, total)
        check_near(problem, triton.k_center(problem), reference.k_center(problem))


@pytest.mark.usefixtures("poisoned")
def test_pixels_need_not_be_contiguous() -> None:
    x = video(9, 2, 24).to(DEVICE)
    true = triton.k_center(KCenterProblem(x, 9))
    others = {
        "frames apart": torch.stack([x, -x], 1)[:, 0],
        "places apart": torch.stack([x, -x], 2)[:, :, 0],
        "places first": x.transpose(0, 1).contiguous().transpose(0, 1),
        "values apart": torch.stack([x, -x], 3)[..., 0],
    }
    for name, other in others.items():
        assert not other.is_contiguous(), name
        for ours, expected in zip(triton.k_center(KCenterProblem(other, 9)), true, strict=True):
            assert torch.equal(ours, expected), name


@pytest.mark.usefixtures("poisoned")
def test_pieces_of_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = KCenterProblem(video(20, 3, 16).to(DEVICE), 18)
    whole = triton.k_center(problem)
    monkeypatch.setattr(triton, "PIECE_BYTES", 4 * 64**2)
    for ours, true in zip(triton.k_center(problem), whole, strict=True):
        assert torch.equal(ours, true)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy, in the interpreter
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        *((value, torch.float32) for value in (float("nan"), float("inf"), -1e19)),
        *((-float("inf"), dtype) for dtype in (torch.float16, torch.bfloat16)),
        (float("nan"), torch.float16),
    ],
    ids=str,
)
@pytest.mark.parametrize("operation", [reference, eager, triton], ids=["reference", "eager", "triton"])
def test_groups_that_are_not_finite_are_marked_and_the_count_stays_exact(
    operation: object, value: float, dtype: torch.dtype
) -> None:
    x = video(9, 4, 24).to(DEVICE, dtype)
    x[0, 1, 3] = x[8, 2, 23] = x[5, 0, 0] = value
    for total in (2, 18, 36):
        kept, source, nonfinite = operation.k_center(KCenterProblem(x, total))  # type: ignore[attr-defined]
        assert nonfinite.nonzero()[:, 0].tolist() == [1, 20, 34]
        assert len(kept) == total
        assert (kept.diff() > 0).all()
        assert int(source.min()) == 0
        assert int(source.max()) == total - 1
        assert torch.equal(source[kept].cpu(), torch.arange(total))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(64, 196, 4704), (37, 130, 1536), (200, 16, 768), (9, 700, 1176)], ids=str)
def test_kernels_are_as_near_as_batched_torch_on_a_whole_video(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    frames, places, _ = shape
    x = video(*shape, "repeating").to(DEVICE)
    x += (0.05 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).to(DEVICE)
    x = x.to(dtype)
    for keep in (0.25, 0.5):
        problem = KCenterProblem(x, round(keep * frames * places))
        ours, true = triton.k_center(problem), eager.k_center(KCenterProblem(x.float(), problem.total))
        values = x.float().flatten(0, 1)
        off = [float((values - values[kept[source]]).square().sum(1).max()) for kept, source, _ in (ours, true)]
        assert off[0] <= 1.001 * off[1]
        assert torch.isin(ours[0], true[0]).float().mean() > 0.98  # the rest is within rounding
        assert torch.equal(ours[2], true[2])


@pytest.mark.gpu
def test_it_never_waits_for_the_device_and_a_graph_repeats_it() -> None:
    videos = [video(16, 49, 1536, "bf16", seed).to(DEVICE) for seed in range(3)]
    static = videos[0].clone()
    run = lambda x: ops.k_center(KCenterProblem(x, 392))  # noqa: E731
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
    problem = KCenterProblem(video(32, 196, 1536, "bf16").to(DEVICE), 2000)
    first = triton.k_center(problem)
    for _ in range(50):
        for ours, true in zip(triton.k_center(problem), first, strict=True):
            assert torch.equal(ours, true)
