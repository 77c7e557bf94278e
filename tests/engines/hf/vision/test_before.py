"""Groups of pixels that repeat are not computed: against a stock tower whose repeated rows are overwritten by hand."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import vision_utils

import vidsieve
from tests.engines.hf import tiny
from tests.engines.hf.vision.test_packed import logits
from vidsieve.engines.hf.families import table
from vidsieve.engines.hf.vision.tower import vision_tower
from vidsieve.errors import WrongArgument
from vidsieve.methods import KCenter, Pixels, Prune, RandomGroups, RunLength, Staged
from vidsieve.types.pixels import PixelSelection

MERGED = [
    row["type"]
    for row in table()
    if row["type"] in tiny.FAMILIES and row["layout"] == "grid" and not row["before tower"]
]
SELECTORS = [KCenter(0.5), RunLength(0.5), RunLength(threshold=0.05), RandomGroups(0.4)]
each_merged = pytest.mark.parametrize("family", [pytest.param(f, marks=tiny.marks(f)) for f in MERGED])


def repeating(family: str, frames: int = 6, videos: int = 1, seed: int = 0) -> tiny.Inputs:
    """A prompt whose videos repeat most of their groups of patches, some for several frames."""
    inputs = tiny.prompt(family, frames=frames, videos=videos, seed=seed)
    pixels = inputs["pixel_values_videos"]
    groups = pixels.view(videos, frames, -1, 4, pixels.shape[-1])
    generator = torch.Generator().manual_seed(seed)
    for video in groups:
        for t in range(1, frames):
            still = torch.rand(len(video[t]), generator=generator) < 0.6
            video[t][still] = video[t - 1][still]
    return inputs


def sources(inputs: tiny.Inputs, selector: Any) -> Tensor:
    """Which group each group repeats, of all videos: int64 (G,)."""
    found, begin = [], 0
    for t, h, w in inputs["video_grid_thw"].tolist():
        groups = inputs["pixel_values_videos"][begin * 4 : (begin + t * h * w // 4) * 4].view(t, h * w // 4, -1)
        selection = selector.select(groups)
        found.append(selection.kept[selection.source] + begin)
        begin += t * h * w // 4
    return torch.cat(found)


@contextmanager
def overwritten(model: Any, source: Tensor) -> Iterator[None]:
    """A stock tower that computes every row, and overwrites those of a repeated group before and after each block.

    source: int64 (G,), in the order of the pixels; a tower with windows has an order of its own.
    """
    tower: Any = vision_tower(model)
    order: list[Tensor] = []

    def rows() -> Tensor:
        place = order[0].argsort() if order else torch.arange(len(source))
        moved = place[source[order[0]]] if order else source
        return (moved[:, None] * 4 + torch.arange(4)).flatten()

    def note(module: Any, args: Any, kwargs: Any) -> None:
        if hasattr(tower, "window_size"):
            sizes = (tower.spatial_merge_size, tower.window_size, tower.patch_size)
            order[:] = [vision_utils.get_vision_window_index(kwargs["grid_thw"], *sizes)[0]]

    def overwrite(module: Any, args: Any, kwargs: Any) -> Any:
        return (args[0][rows()], *args[1:]), kwargs

    def move(module: Any, args: Any, kwargs: Any) -> Any:  # what is repeated is repeated with its place
        return args, {**kwargs, "position_embeddings": tuple(x[rows()] for x in kwargs["position_embeddings"])}

    blocks = tower.blocks if hasattr(tower, "blocks") else tower.encoder.layers
    hooks = [tower.register_forward_pre_hook(note, with_kwargs=True)]
    hooks += [blocks[0].register_forward_pre_hook(overwrite, with_kwargs=True)]
    hooks += [block.register_forward_pre_hook(move, with_kwargs=True) for block in blocks]
    hooks += [block.register_forward_hook(lambda module, args, output: output[rows()]) for block in blocks]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("selector", SELECTORS, ids=repr)
@pytest.mark.parametrize("videos", [1, 2])
@each_merged
def test_repeated_groups_are_those_of_a_tower_that_overwrites_them(family: str, videos: int, selector: Any) -> None:
    model, inputs = tiny.model(family), repeating(family, videos=videos)
    with overwritten(model, sources(inputs, selector)):
        true = logits(model, inputs)
    with vidsieve.attach(model, Staged({Pixels(): selector})) as trace:
        found = logits(model, inputs)
    torch.testing.assert_close(found, true, atol=1e-4, rtol=1e-4)
    assert "groups of pixels computed" in trace.tower
    assert (found - logits(model, inputs)).abs().max() > 1e-3


@each_merged
def test_a_frame_that_repeats_as_a_whole_costs_nothing_and_changes_nothing(family: str) -> None:
    model, inputs = tiny.model(family), tiny.prompt(family, frames=6)
    frames = inputs["pixel_values_videos"].view(6, -1)
    frames[2], frames[3], frames[5] = frames[1], frames[1], frames[4]
    stock = logits(model, inputs)
    with vidsieve.attach(model, Staged({Pixels(): RunLength(threshold=0.0)})) as trace:
        found = logits(model, inputs)
    torch.testing.assert_close(found, stock, atol=1e-5, rtol=1e-5)
    assert "18 of 36 groups of pixels computed" in trace.tower


@pytest.mark.parametrize("method", [None, Prune(0.25)], ids=repr)
def test_a_trace_tells_the_groups_also_beside_a_reducer(method: Prune | None) -> None:
    model, inputs = tiny.model("qwen2_5_vl"), repeating("qwen2_5_vl", videos=2)
    selector = RunLength(0.5)
    with Staged({Pixels(): selector, **({0: method} if method else {})})(model) as trace:
        assert (trace.pixels, trace.to_dict()["pixels"]) == ((), [])
        logits(model, inputs)
    assert str(trace).splitlines()[-1].strip() == "tower: packed, 36 of 72 groups of pixels computed"
    assert trace.to_dict()["pixels"] == [{"groups": 36, "computed": 18}] * 2
    repeated = torch.cat([chosen.kept[chosen.source] + 36 * i for i, chosen in enumerate(trace.pixels)])
    assert torch.equal(repeated, sources(inputs, selector))


@each_merged
def test_it_composes_with_a_reduction_before_the_language_model(family: str) -> None:
    model, inputs = tiny.model(family), repeating(family)
    selector, reducer = RunLength(0.5), Prune(0.25)
    with overwritten(model, sources(inputs, selector)), reducer(model):
        true = logits(model, inputs)
    with Staged({Pixels(): selector, 0: reducer})(model) as trace:
        found = logits(model, inputs)
    torch.testing.assert_close(found, true, atol=1e-4, rtol=1e-4)
    [video] = trace.videos
    assert video.after == round(0.25 * video.before)


CLIPS = ("llava_onevision", "llava_next_video", "video_llava")


@pytest.mark.parametrize("selector", SELECTORS, ids=repr)
@pytest.mark.parametrize("family", CLIPS)
def test_repeated_patches_of_a_batch_of_frames_are_overwritten_too(family: str, selector: Any) -> None:
    # A new model, to which transformers has not yet added the hooks by which it records hidden states: they come last.
    model, inputs = tiny.fresh(family), tiny.prompt(family)
    pixels = inputs["pixel_values_videos"][0]  # (T, 3, 56, 56), of 4 x 4 patches
    for t in range(1, len(pixels)):
        pixels[t, :, 14 * (t % 3) :] = pixels[t - 1, :, 14 * (t % 3) :]
    groups = pixels.view(len(pixels), 3, 4, 14, 4, 14).permute(0, 2, 4, 1, 3, 5).reshape(len(pixels), 16, -1)
    selection = selector.select(groups)
    source = selection.kept[selection.source].view(len(pixels), 16)

    def overwrite(module: Any, args: Any, output: Any) -> Any:
        x = output[0] if isinstance(output, tuple) else output
        patches = x[:, -16:]
        held = patches.flatten(0, 1)[source.flatten()].view_as(patches)
        x = torch.cat([x[:, :-16], held], 1)
        return (x, *output[1:]) if isinstance(output, tuple) else x

    tower = vision_tower(model)
    layers = next(m for name, m in tower.named_modules() if name.endswith("encoder.layers"))
    hooks = [layer.register_forward_hook(overwrite) for layer in layers]
    hooks.append(next(m for n, m in tower.named_modules() if n.endswith("embeddings")).register_forward_hook(overwrite))
    true = logits(model, inputs)
    for hook in hooks:
        hook.remove()
    stock = logits(model, inputs)
    with vidsieve.attach(model, Staged({Pixels(): selector})) as trace:
        found = logits(model, inputs)
    torch.testing.assert_close(found, true, atol=1e-4, rtol=1e-4)
    assert (found - stock).abs().max() > 1e-3
    assert f"{len(selection)} of {16 * len(pixels)} patches computed" in trace.tower
    assert str(trace) == f"tower: {trace.tower}"
    assert trace.to_dict()["pixels"] == [{"groups": 16 * len(pixels), "computed": len(selection)}]
    assert torch.equal(logits(model, inputs), stock)


class Faulty:
    """A selector of a user, whose selection is `change` of a right one."""

    holds_keys = True

    def __init__(self, change: Callable[[Tensor, Tensor], Any]) -> None:
        self.change = change

    def select(self, groups: Tensor) -> Any:
        right = RunLength(0.5).select(groups)
        return self.change(right.kept, right.source)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision", "internvl"])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda kept, source: None, "return a PixelSelection of [0-9]+ groups, got None"),
        (
            lambda kept, source: PixelSelection(kept, torch.cat([source, source[-1:]])),
            "return a PixelSelection of [0-9]+ groups",
        ),
        (lambda kept, source: PixelSelection(kept.flip(0), len(kept) - 1 - source), "expected kept sorted"),
        (lambda kept, source: PixelSelection(torch.cat([kept, kept[-1:]]), source), "expected kept sorted"),
        (lambda kept, source: PixelSelection(kept, source.roll(1)), "its own source"),
        (lambda kept, source: PixelSelection(kept, _beyond(kept, source)), r"source within \[0, [0-9]+\)"),
    ],
)
def test_a_selection_of_other_groups_is_refused(family: str, change: Callable[..., Any], told: str) -> None:
    model = tiny.model(family)
    inputs = repeating(family) if family in MERGED else tiny.prompt(family, frames=6)
    with (
        Staged({Pixels(): Faulty(change)})(model),
        torch.no_grad(),
        pytest.raises((ValueError, WrongArgument), match=told),
    ):
        model(**inputs)


def _beyond(kept: Tensor, source: Tensor) -> Tensor:
    """Let the groups that are not kept repeat one that there is not."""
    wrong = torch.full_like(source, len(kept))
    wrong[kept] = source[kept]
    return wrong


@pytest.mark.parametrize("family", ["llava_next_video", "video_llava"])
def test_a_tower_of_fewer_patches_has_no_pooled_frames(family: str) -> None:
    """They would be made of the one row that holds the patches of all frames."""
    model = tiny.model(family)
    seen: list[Any] = []
    with Staged({Pixels(): RunLength(0.5)})(model), torch.no_grad():
        hook = vision_tower(model).register_forward_hook(lambda tower, args, output: seen.append(output.pooler_output))
        model(**tiny.prompt(family, frames=4))
        hook.remove()
    assert seen == [None]
