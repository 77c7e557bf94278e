"""Pixel selectors: what all promise, run lengths of repeats, drift and moving cameras, and what centres stand for."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.ops.run_length.groups import groups
from vidsieve import ops
from vidsieve.errors import NonFiniteFeatures, WrongArgument
from vidsieve.methods import KCenter, PixelSelector, RandomGroups, RunLength
from vidsieve.types.pixels import PixelSelection

SELECTORS: dict[str, Callable[[float], PixelSelector]] = {
    "k-center": KCenter,
    "run length": RunLength,
    "random": RandomGroups,
}
SELECTOR = pytest.mark.parametrize("selector", SELECTORS)
VIDEOS = {
    "moving": groups(6, 10, 16, "moving"),
    "drifting": groups(6, 10, 16, "drifting"),
    "repeating": groups(6, 10, 16, "repeating"),
    "one frame": groups(1, 10, 16, "moving"),
    "one place": groups(12, 1, 16, "repeating"),
    "one group": groups(1, 1, 16, "moving"),
    "all equal": groups(6, 10, 16, "equal"),
    "all zero": torch.zeros(4, 6, 8),
    "bf16": groups(6, 10, 16, "bf16"),
    "fp16": groups(6, 10, 16, "fp16"),
    "float64": groups(6, 10, 16, "moving").double(),
    "large": groups(6, 10, 16, "large"),
}
DEVICES = ["cpu", *([pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else [])]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def check_sources(found: PixelSelection, frames: int, places: int) -> None:
    """Each group repeats the last kept one at its place; the first frame is kept."""
    assert found.kept[:places].tolist() == list(range(places))
    kept = set(found.kept.tolist())
    for i, row in enumerate(found.source.tolist()):
        last = next(j for j in range(i, -1, -places) if j in kept)
        assert int(found.kept[row]) == last


@pytest.mark.parametrize("name", VIDEOS)
@SELECTOR
def test_exactly_what_was_asked_is_computed(selector: str, name: str, device: str) -> None:
    x = VIDEOS[name].to(device)
    frames, places, _ = x.shape
    for keep in (0.04, 0.25, 0.5, 0.77, 0.99, 1.0):
        found = SELECTORS[selector](keep).select(x)
        blocks = -(-frames // 8) if selector == "k-center" else 1
        assert len(found) == max(places, blocks, round(keep * frames * places))
        assert found.kept.dtype == found.source.dtype == torch.int64
        assert found.kept.device == found.source.device == x.device
        assert (found.kept.diff() > 0).all()
        assert int(found.kept[-1]) < frames * places
        if selector != "k-center":
            check_sources(found, frames, places)
        found.check()


@SELECTOR
def test_keeping_everything_is_the_identity(selector: str, device: str) -> None:
    found = SELECTORS[selector](1.0).select(VIDEOS["moving"].to(device))
    assert found.kept.tolist() == found.source.tolist() == list(range(60))


@SELECTOR
def test_the_same_input_gives_the_same_output(selector: str, device: str) -> None:
    for name in ("moving", "all equal", "bf16"):
        first, second = (SELECTORS[selector](0.5).select(VIDEOS[name].to(device)) for _ in range(2))
        assert torch.equal(first.kept, second.kept)
        assert torch.equal(first.source, second.source)


def test_a_random_choice_depends_on_the_seed_alone(device: str) -> None:
    x = VIDEOS["moving"]
    found = RandomGroups(0.5, seed=3).select(x.to(device))
    assert torch.equal(found.kept.cpu(), RandomGroups(0.5, seed=3).select(torch.zeros_like(x)).kept)
    assert not torch.equal(found.kept.cpu(), RandomGroups(0.5, seed=4).select(x).kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_of_a_video_that_repeats_seven_tenths_the_rest_is_computed(dtype: torch.dtype, device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    frames, places = 10, 20
    new = torch.zeros(frames, places, dtype=torch.bool)
    new[0] = True
    new.view(-1)[places + torch.randperm((frames - 1) * places, generator=generator)[:40]] = True  # 60 of 200
    at = torch.where(new, torch.arange(frames)[:, None], 0).cummax(0).values
    x = torch.randn(frames, places, 48, generator=generator).gather(0, at[..., None].expand(-1, -1, 48)).to(dtype)
    expected = new.view(-1).nonzero()[:, 0].tolist()
    assert RunLength(keep=0.3).select(x.to(device)).kept.tolist() == expected
    assert RunLength(threshold=0.1).select(x.to(device)).kept.tolist() == expected
    more = RunLength(keep=0.4).select(x.to(device)).kept.tolist()
    assert set(expected) < set(more)  # and the earliest of what repeats
    rest = [i for i in range(200) if i not in expected]
    assert sorted(set(more) - set(expected)) == rest[:20]


def test_a_texture_that_is_everywhere_is_computed_once_and_what_is_there_once_is_computed(device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    textures = torch.randn(3, 24, generator=generator)
    x = textures[torch.randint(3, (8, 12), generator=generator)]
    x[0, 0] = textures[0]
    x[5, 7] = torch.randn(24, generator=generator)  # seen once, for a moment
    found = KCenter(0.25).select(x.to(device))
    assert len(found) == 24
    assert 5 * 12 + 7 in found.kept.tolist()
    repeated = x.view(96, 24)[found.kept.cpu()[found.source.cpu()]]
    assert torch.equal(repeated, x.view(96, 24))


def test_a_cut_costs_no_more_than_what_is_new_in_it(device: str) -> None:
    x = VIDEOS["all equal"].clone()
    x[3:] = -x[3:].flip(1)  # ten groups before the cut, ten after
    found = KCenter(20 / 60).select(x.to(device))
    assert found.kept.tolist() == [*range(10), *range(30, 40)]
    assert RunLength(20 / 60).select(x.to(device)).kept.tolist() == found.kept.tolist()


def test_a_camera_that_moves_finds_again_what_it_showed_elsewhere(device: str) -> None:
    world = torch.randn(40, 16, generator=torch.Generator().manual_seed(0))
    x = torch.stack([world[2 * t : 2 * t + 12] for t in range(8)])  # (8, 12, 16), two places a frame
    found = KCenter(26 / 96).select(x.to(device))  # 12 + 7 * 2 different groups
    assert torch.equal(x.view(96, 16)[found.kept.cpu()[found.source.cpu()]], x.view(96, 16))


def test_a_block_gets_twice_its_share_at_most_and_one_group_at_least(device: str) -> None:
    x = torch.randn(32, 4, 8, generator=torch.Generator().manual_seed(0))
    x[:24] *= 1e-3
    found = KCenter(0.25).select(x.to(device))
    assert torch.bincount(found.kept.cpu() // 32, minlength=4).tolist()[3] == 16
    assert torch.bincount(found.kept.cpu() // 32, minlength=4).min() >= 1
    assert (found.kept.cpu()[found.source.cpu()] // 32 == torch.arange(128) // 32).all()


def test_slow_drift_is_caught(device: str) -> None:
    x = (0.03 * torch.arange(21.0))[:, None, None].expand(21, 3, 8).to(device)
    found = RunLength(threshold=0.1).select(x)  # from frame to frame 0.03
    assert (found.kept[::3] // 3).tolist() == [0, 4, 8, 12, 16, 20]
    assert len(found) == 18
    assert found.source.view(21, 3)[:, 0].tolist() == [row // 4 * 3 for row in range(21)]


def test_a_moving_camera_keeps_nearly_everything_by_threshold_and_what_moves_most_by_count(device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    world = torch.nn.functional.avg_pool2d(torch.randn(1, 1, 64, 160, generator=generator), 3, 1, 1)[0, 0] * 3
    frames = torch.stack([world[:, 4 * t : 4 * t + 64] for t in range(16)])  # (T, 64, 64), four pixels a frame
    x = frames.unfold(1, 16, 16).unfold(2, 16, 16).reshape(16, 16, 256).to(device)
    assert len(RunLength(threshold=0.2).select(x)) > 0.95 * 256
    found = RunLength(keep=0.5).select(x)
    assert len(found) == 128
    check_sources(found, 16, 16)
    centres = KCenter(0.5).select(x)
    off = {
        name: (x.view(256, 256) - x.view(256, 256)[each.kept[each.source]]).norm()
        for name, each in {"run length": found, "k-center": centres}.items()
    }
    assert off["k-center"] < off["run length"]


def test_a_still_video_keeps_its_first_frame(device: str) -> None:
    x = VIDEOS["all equal"].to(device)
    found = RunLength(threshold=0.0).select(x)
    assert found.kept.tolist() == list(range(10))
    assert found.source.tolist() == list(range(10)) * 6


def test_a_threshold_is_exceeded(device: str) -> None:
    x = torch.tensor([0.0, 0.5, 1.25]).view(3, 1, 1).to(device)
    assert RunLength(threshold=0.5).select(x).kept.tolist() == [0, 2]
    assert RunLength(threshold=0.49).select(x).kept.tolist() == [0, 1, 2]
    assert RunLength(threshold=math.inf).select(x).kept.tolist() == [0]


@pytest.mark.parametrize("part", [RunLength(threshold=0.5), RunLength(keep=0.4)], ids=repr)
def test_permuting_places_permutes_the_answer(part: RunLength, device: str) -> None:
    x = VIDEOS["drifting"].to(device)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(1)).to(device)

    def computed(x: Tensor) -> Tensor:
        kept = torch.zeros(60, dtype=torch.bool, device=device)
        kept[part.select(x).kept] = True
        return kept.view(6, 10)

    assert torch.equal(computed(x[:, order]), computed(x)[:, order])


@pytest.mark.parametrize("factor", [2.0**-20, 8.0, 2.0**30])
@SELECTOR
def test_with_a_count_the_scale_of_pixels_says_nothing(selector: str, factor: float, device: str) -> None:
    x = VIDEOS["drifting"].to(device)
    for keep in (0.3, 0.6):
        part = SELECTORS[selector](keep)
        assert torch.equal(part.select(x * factor).kept, part.select(x).kept)


@SELECTOR
def test_pixels_get_no_gradient(selector: str, device: str) -> None:
    x, part = VIDEOS["drifting"].to(device), SELECTORS[selector](0.5)
    found = part.select(x.clone().requires_grad_())
    assert torch.equal(found.kept, part.select(x).kept)
    assert not found.source.requires_grad


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e19])
@pytest.mark.parametrize("part", [RunLength(threshold=0.5), RunLength(keep=0.4), KCenter(0.4)], ids=repr)
def test_pixels_that_are_not_finite_are_counted_and_refused(part: PixelSelector, value: float, device: str) -> None:
    x = VIDEOS["moving"].clone()
    x[2, 3, 4] = x[0, 1, 0] = value
    with pytest.raises(NonFiniteFeatures, match=r"2 of 60 groups of pixels hold NaN, inf or a value beyond 1e\+18"):
        part.select(x.to(device)).check()


@pytest.mark.parametrize("implementation", ["reference", "eager"])
def test_the_implementation_that_was_asked_for_runs(implementation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDSIEVE_OPS", implementation)
    with ops.spy() as calls:
        RunLength(0.5).select(VIDEOS["moving"])
        RandomGroups(0.5).select(VIDEOS["moving"])
        KCenter(0.5).select(VIDEOS["moving"])
    assert calls == [("run_length", implementation), ("hold_highest", implementation), ("k_center", implementation)]


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: RunLength(), r"give one of the two, as RunLength\(keep=0.5\)"),
        (lambda: RunLength(0.5, 0.1), "give one of the two"),
        (lambda: RunLength(0.0), r"in \(0, 1\]"),
        (lambda: RunLength("half"), r"in \(0, 1\]"),  # type: ignore[arg-type]
        (lambda: RunLength(threshold=-0.1), "at least 0; got -0.1"),
        (lambda: RunLength(threshold=float("nan")), "at least 0; got nan"),
        (lambda: RandomGroups(1.5), r"in \(0, 1\]"),
        (lambda: KCenter(0.0), r"in \(0, 1\]"),
        (lambda: KCenter(0.5).select(torch.zeros(4, 6)), r"pixel values \(T, P, C\).*; got float32\(4, 6\)"),
        (lambda: RandomGroups(0.5, 1.5), "seed is a whole number"),  # type: ignore[arg-type]
        (lambda: RunLength(0.5).select(torch.zeros(4, 6)), r"pixel values \(T, P, C\).*; got float32\(4, 6\)"),
        (lambda: RunLength(0.5).select(torch.zeros(4, 6, 2, dtype=torch.uint8)), r"got uint8\(4, 6, 2\)"),
        (lambda: RandomGroups(0.5).select(torch.zeros(0, 6, 2)), r"none of them 0; got float32\(0, 6, 2\)"),
        (lambda: PixelSelection(torch.zeros(2), torch.zeros(2).long()), r"expected kept int64 \(n,\)"),
    ],
)
def test_a_wrong_argument_is_refused(make: Callable[[], object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        make()


def test_what_is_no_tensor_is_refused() -> None:
    with pytest.raises(WrongArgument, match=r"expected a tensor of pixel values \(T, P, C\), got 'clip.mp4'"):
        RunLength(0.5).select("clip.mp4")  # type: ignore[arg-type]
