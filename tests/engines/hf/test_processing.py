"""Cutting before normalising gives the tensors of transformers' own processors, bit for bit."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("torchvision")

import transformers

from tests.engines.hf import processors
from vidsieve.engines.hf import loading
from vidsieve.engines.hf.loading import prepare
from vidsieve.engines.hf.processing import MEASURING, patching_first, placed, resizing_to
from vidsieve.types.frames import Frames

QWEN = [transformers.Qwen2VLVideoProcessor, transformers.Qwen3VLVideoProcessor]
SMALL = {"cap_pixels_per_frame": False, "size": {"shortest_edge": 64 * 64, "longest_edge": 64 * 96 * 8}}
SPLIT = hasattr(transformers.Qwen2VLVideoProcessor, "patchify")  # else the stock processor is used as it is


def clip(frames: int, height: int = 70, width: int = 110, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (frames, 3, height, width), dtype=torch.uint8, generator=generator)


def both(video: Any, videos: list[torch.Tensor], **options: Any) -> tuple[Any, Any]:
    quick = patching_first(SimpleNamespace(video_processor=video)).video_processor
    assert (quick is not video) is SPLIT
    options = {"do_sample_frames": False, "return_tensors": "pt"} | options
    return video(videos=videos, **options), quick(videos=videos, **options)


@pytest.mark.parametrize("kind", QWEN)
@pytest.mark.parametrize(
    ("videos", "options"),
    [
        ([clip(8)], {}),
        ([clip(5)], {}),  # the last frame is repeated
        ([clip(4), clip(6, 80, 64, 1), clip(4, seed=2)], {}),  # two layouts, normalised in two calls
        ([clip(2, 224, 448)], {"do_resize": False}),
        ([clip(4)], {"do_normalize": False}),
        ([clip(4)], {"do_rescale": False}),
        ([clip(4)], {"do_rescale": False, "do_normalize": False}),
        ([clip(4)], {"image_mean": [0.1, 0.2, 0.7], "image_std": [0.3, 0.9, 0.4]}),
        ([clip(4).float() / 2], {}),
        ([clip(4), clip(4, seed=1).float() / 2], {}),
    ],
)
def test_the_tensors_are_the_same_bits(kind: Any, videos: list[torch.Tensor], options: dict[str, Any]) -> None:
    stock, quick = both(kind(**SMALL), videos, **options)
    assert stock.keys() == quick.keys()
    for name in stock:
        assert stock[name].dtype == quick[name].dtype
        assert torch.equal(stock[name], quick[name]), name


@pytest.mark.parametrize("kind", QWEN)
@pytest.mark.skipif(not SPLIT, reason="this release of transformers cuts and normalises in one piece")
def test_pixels_are_bytes_until_they_are_in_their_places(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cat, seen = torch.cat, []
    monkeypatch.setattr(torch, "cat", lambda parts, *a, **k: seen.extend(x.dtype for x in parts) or cat(parts, *a, **k))
    quick = patching_first(SimpleNamespace(video_processor=kind(**SMALL))).video_processor
    quick(videos=[clip(4), clip(4, seed=1)], do_sample_frames=False, return_tensors="pt")
    assert set(seen) == {torch.uint8}


@pytest.mark.parametrize("kind", QWEN)
def test_a_video_of_more_patches_than_are_normalised_at_once(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidsieve.engines.hf.processing.ROWS", 7)
    stock, quick = both(kind(**SMALL), [clip(8)])
    assert torch.equal(stock["pixel_values_videos"], quick["pixel_values_videos"])


@pytest.mark.parametrize("kind", QWEN)
def test_pixels_lie_where_torch_would_lay_them(kind: Any) -> None:
    for frames in (2, 4, 64):
        _, quick = both(kind(**SMALL), [clip(frames)])
        pixels = quick["pixel_values_videos"]
        assert pixels.data_ptr() % 64 == 0  # products may add up in another order elsewhere
        assert pixels.storage_offset() == 0
        assert pixels.untyped_storage().nbytes() == pixels.nbytes


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
@pytest.mark.skipif(not SPLIT, reason="this release of transformers cuts and normalises in one piece")
def test_pixels_are_bytes_when_they_are_cut(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    processor = processors.processor(family)
    kind, seen = type(processor.video_processor), []
    patchify = kind.patchify
    monkeypatch.setattr(kind, "patchify", lambda self, x, *a, **k: seen.append(x.dtype) or patchify(self, x, *a, **k))
    frames = Frames(clip(4).permute(0, 2, 3, 1).contiguous(), (0, 1, 2, 3), (0.0, 1.0, 2.0, 3.0), 1.0, 4, 4.0)
    before = dict(vars(processor.video_processor))
    found = prepare(processor, frames, "What?")
    assert seen == [torch.uint8]
    assert vars(processor.video_processor) == before  # another thread may be using it
    monkeypatch.setattr("vidsieve.engines.hf.loading.patching_first", lambda processor: processor)
    stock = prepare(processor, frames, "What?")
    assert seen == [torch.uint8, torch.float32]
    assert stock.keys() == found.keys()
    assert all(torch.equal(stock[name], found[name]) for name in stock if isinstance(stock[name], torch.Tensor))


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_pixels_of_a_fixed_size_are_bytes_when_they_are_cut(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stock = processors.processor(family)
    patch = stock.video_processor.patch_size
    size = (4 * patch, 6 * patch)
    kind, seen = type(stock.video_processor), []
    normalise = kind.rescale_and_normalize
    monkeypatch.setattr(
        kind, "rescale_and_normalize", lambda self, x, *a: seen.append(tuple(x.shape)) or normalise(self, x, *a)
    )
    resized, before = resizing_to(stock, *size), dict(vars(stock.video_processor))
    found = [prepare(resized, frames_of(clip(count)), "What?") for count in (4, 5)]
    assert all(len(shape) < 5 for shape in seen) is SPLIT  # patches, not (B, T, C, H, W)
    assert vars(stock.video_processor) == before
    monkeypatch.setattr("vidsieve.engines.hf.processing.patching_first", lambda processor: processor)
    monkeypatch.setattr("vidsieve.engines.hf.loading.patching_first", lambda processor: processor)
    for count, quick in zip((4, 5), found, strict=True):
        slow = prepare(resizing_to(stock, *size), frames_of(clip(count)), "What?")
        assert torch.equal(slow["pixel_values_videos"], quick["pixel_values_videos"])
        assert slow["video_grid_thw"].tolist() == quick["video_grid_thw"].tolist()
        assert quick["video_grid_thw"][0, 1:].tolist() == [4, 6]


@pytest.mark.parametrize("family", [family for family in processors.FAMILIES if not family.startswith("qwen")])
def test_other_processors_are_used_as_they_are(family: str) -> None:
    processor = processors.processor(family)
    assert patching_first(processor) is processor


def test_a_subclass_that_may_do_otherwise_is_used_as_it_is() -> None:
    class Own(transformers.Qwen2VLVideoProcessor):  # type: ignore[misc]
        pass

    processor = SimpleNamespace(video_processor=Own(**SMALL))
    assert patching_first(processor) is processor


def frames_of(pixels: torch.Tensor) -> Frames:
    count = len(pixels)
    times = tuple(0.25 * i for i in range(count))
    return Frames(pixels.permute(0, 2, 3, 1), tuple(range(count)), times, 4.0, count, count / 4)


@pytest.mark.parametrize("family", processors.FAMILIES)
def test_no_processor_leaves_the_device_of_the_frames(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    processor, frames = processors.processor(family), frames_of(clip(8))
    plain = prepare(processor, frames, "what?", "cpu")
    monkeypatch.setattr(loading, "placed", lambda processor, pixels, device: pixels.to(device))
    try:
        moved = prepare(processor, frames, "what?", "meta")  # where a look at a value would fail
    except NotImplementedError:
        if type(processor).__name__ not in MEASURING:
            raise
        pytest.skip("this release's processor copies a video to the CPU to read its size")
    assert moved.keys() == plain.keys()
    for name in plain:
        assert moved[name].device.type == ("meta" if name.startswith("pixel_values") else "cpu")
        assert (moved[name].shape, moved[name].dtype) == (plain[name].shape, plain[name].dtype)


def test_frames_are_processed_on_cuda_by_processors_of_transformers_alone() -> None:
    class Own(transformers.Qwen2VLVideoProcessor):  # type: ignore[misc]
        pass

    theirs, own = (SimpleNamespace(video_processor=kind(**SMALL)) for kind in (QWEN[0], Own))
    moved: list[Any] = []
    pixels = cast(torch.Tensor, SimpleNamespace(is_meta=False, to=lambda where: moved.append(torch.device(where))))
    for processor, device in ((theirs, "cuda:1"), (theirs, None), (theirs, "cpu"), (theirs, "mps"), (own, "cuda")):
        placed(processor, pixels, device)
    assert moved == [torch.device("cuda:1"), *[torch.device("cpu")] * 4]
    assert placed(theirs, torch.empty(1, device="meta"), "cpu").is_meta


@pytest.mark.gpu
@pytest.mark.parametrize("family", processors.FAMILIES)
def test_on_cuda_the_values_are_those_of_the_cpu_within_rounding(family: str) -> None:
    # Smooth ones, as filmed: of noise, rounding between the two passes of a resize shows.
    smooth = torch.nn.functional.interpolate(clip(8, 10, 16).float(), (70, 110), mode="bicubic").clamp(0, 255).byte()
    processor, frames = processors.processor(family), frames_of(smooth)
    plain, there = (prepare(processor, frames, "what?", device) for device in ("cpu", "cuda"))
    assert there.keys() == plain.keys()
    for name in plain:
        if name.startswith("pixel_values"):
            assert there[name].is_cuda
            difference = (there[name].cpu() - plain[name]).abs()
            assert difference.max() <= 2 / 255 / 0.22  # two levels, by the smallest standard deviation
            assert difference.mean() <= 0.3 / 255 / 0.22
        else:
            assert torch.equal(there[name].cpu(), plain[name])
