"""Groups of pixels of frames that come as images: against a stock tower whose repeated rows are overwritten."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import vidsieve
from tests.engines.hf import configs, tiny
from tests.engines.hf.vision.test_packed import logits
from vidsieve.engines.hf.families import adapter_for
from vidsieve.engines.hf.vision.tower import vision_tower
from vidsieve.errors import UnsupportedCall
from vidsieve.methods import KCenter, Pixels, Prune, RandomGroups, RunLength, Staged

SELECTORS = [KCenter(0.5), RunLength(0.5), RunLength(threshold=0.05), RandomGroups(0.4)]
STEPS = 4
# Of 4 x 4 patches, those of each of the 2 x 2 groups that become a token.
SQUARES = torch.tensor([[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]])


def repeating(inputs: tiny.Inputs) -> tiny.Inputs:
    """Let the lower half of every second row of pixels, image or frame, be that of the one before."""
    pixels = inputs["pixel_values"]
    for t in range(1, len(pixels), 2):
        pixels[t, :, 28:] = pixels[t - 1, :, 28:]
    return inputs


def around_an_image() -> tiny.Inputs:
    """Two frames, an image of two tiles, two frames."""
    before, after = tiny.prompt("internvl", frames=2), tiny.prompt("internvl", frames=2, images=1, seed=1)
    return {name: torch.cat([before[name], after[name]], 0 if name == "pixel_values" else 1) for name in before}


def cases() -> dict[str, tuple[tiny.Inputs, list[list[int]]]]:
    """Prompts, and of each the rows of its pixels that are one video."""
    one, longer = tiny.prompt("internvl"), tiny.prompt("internvl", frames=3, seed=4, text=11)
    both, text = tiny.prompt("internvl", images=1, seed=2), tiny.text_prompt("internvl")
    made: dict[str, tuple[tiny.Inputs, list[list[int]]]] = {
        "a video": (tiny.prompt("internvl", frames=10), [[*range(10)]]),
        "two videos are one": (tiny.prompt("internvl", videos=2, frames=3), [[*range(6)]]),
        "padded on the left": (tiny.batch(one, longer), [[0, 1, 2, 3], [4, 5, 6]]),
        "an image and a video": (both, [[2, 3, 4, 5]]),
        "an image in a video": (around_an_image(), [[0, 1, 4, 5]]),
        "text beside it": (tiny.batch(text, one), [[0, 1, 2, 3]]),
        "all": (tiny.batch(both, longer, text), [[2, 3, 4, 5], [6, 7, 8]]),
    }
    return {name: (repeating(inputs), videos) for name, (inputs, videos) in made.items()}


each_case = pytest.mark.parametrize("case", cases())


def sources(pixels: Tensor, videos: list[list[int]], selector: Any) -> Tensor:
    """For each patch of each row of pixels (T, 3, 56, 56), which one it repeats: int64 (T, 16) of T * 16."""
    of = torch.arange(len(pixels) * 16).view(-1, 16)
    own = of.clone()
    for rows in videos:
        groups = torch.stack(
            [pixels[row, :, i : i + 28, j : j + 28].flatten() for row in rows for i in (0, 28) for j in (0, 28)]
        )
        selection = selector.select(groups.view(len(rows), 4, -1))
        for group, repeated in enumerate(selection.kept[selection.source].tolist()):
            theirs = own[rows[repeated // 4], SQUARES[repeated % 4]]
            of[rows[group // 4], SQUARES[group % 4]] = theirs
    return of


@contextmanager
def overwritten(model: Any, source: Tensor) -> Iterator[None]:
    """A stock tower that computes every row, and overwrites those of a repeated group before and after each layer."""
    tower = vision_tower(model)

    def overwrite(module: Any, args: Any, output: Tensor) -> Tensor:
        patches = output[:, 1:]
        return torch.cat([output[:, :1], patches.flatten(0, 1)[source.flatten()].view_as(patches)], 1)

    modules: list[Any] = [tower.embeddings, *tower.encoder.layer]  # type: ignore[union-attr,list-item]
    hooks = [module.register_forward_hook(overwrite) for module in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def steps(model: Any, inputs: tiny.Inputs, **options: Any) -> tuple[Tensor, Tensor]:
    """The answer, and the logits of every step: (B, L), (B, steps, V)."""
    found = model.generate(**inputs, max_new_tokens=STEPS, return_dict_in_generate=True, output_logits=True, **options)
    return found.sequences, torch.stack(found.logits, 1)


def other_tower() -> Any:
    """A model whose tower has what others of this family have, and whose features are not of the last layer."""
    config = configs.CONFIGS["internvl"]()
    config.vision_feature_layer = -2
    vision = config.vision_config
    vision.use_qk_norm, vision.norm_type, vision.use_mean_pooling = True, "rms_norm", False
    vision.use_absolute_position_embeddings = True
    torch.manual_seed(0)
    model = transformers.AutoModelForImageTextToText.from_config(config).eval()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, tiny.PAD
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape) * (1.2 / weight.shape[-1] ** 0.5 if weight.ndim > 1 else 0.5))
    return model


@pytest.mark.parametrize("selector", SELECTORS, ids=repr)
@each_case
def test_repeated_groups_are_those_of_a_tower_that_overwrites_them(case: str, selector: Any) -> None:
    model = tiny.model("internvl")
    inputs, videos = cases()[case]
    with overwritten(model, sources(inputs["pixel_values"], videos, selector)):
        answer, true = steps(model, inputs)
    stock = logits(model, inputs)
    with vidsieve.attach(model, Staged({Pixels(): selector})) as trace:
        found, each = steps(model, inputs)
        called = logits(model, inputs)
    torch.testing.assert_close(each, true, atol=1e-4, rtol=1e-4)
    assert torch.equal(found, answer)
    torch.testing.assert_close(called[:, -1], true[:, 0], atol=1e-4, rtol=1e-4)
    assert (called - stock).abs().max() > 1e-3
    assert [len(selection.source) for selection in trace.pixels] == [4 * len(rows) for rows in videos]
    computed, total = sum(map(len, trace.pixels)), sum(4 * len(rows) for rows in videos)
    assert str(trace) == f"tower: {computed} of {total} groups of pixels computed"
    assert torch.equal(logits(model, inputs), stock)


@pytest.mark.parametrize("holds_keys", [True, False])
def test_of_a_tower_with_norms_of_keys_and_features_of_an_earlier_layer(holds_keys: bool) -> None:
    # A new model, to which transformers has not yet added the hooks by which it records hidden states: they come last.
    model, selector = other_tower(), KCenter(0.5, holds_keys=holds_keys)
    inputs, videos = cases()["an image in a video"]
    source = sources(inputs["pixel_values"], videos, selector)
    hooks = [] if holds_keys else without_keys(model, source)
    with overwritten(model, source):
        _, true = steps(model, inputs)
    for hook in hooks:
        hook.remove()
    with vidsieve.attach(model, Staged({Pixels(): selector})):
        _, found = steps(model, inputs)
    torch.testing.assert_close(found, true, atol=1e-4, rtol=1e-4)


def without_keys(model: Any, source: Tensor) -> list[Any]:
    """Hide what is repeated from the attention of a stock tower."""
    runs = source == torch.arange(source.numel()).view_as(source)
    mask = torch.cat([torch.ones(len(runs), 1, dtype=torch.bool), runs], 1)[:, None, None]

    def hide(module: Any, args: Any, kwargs: Any) -> Any:
        return args, {**kwargs, "attention_mask": mask}

    layers: Any = vision_tower(model).encoder.layer  # type: ignore[union-attr]
    return [layer.attention.register_forward_pre_hook(hide, with_kwargs=True) for layer in layers]


@pytest.mark.parametrize("selector", [KCenter(1.0), RunLength(1.0), RandomGroups(1.0)], ids=repr)
@each_case
def test_all_groups_change_nothing(case: str, selector: Any) -> None:
    model, (inputs, _) = tiny.model("internvl"), cases()[case]
    stock = logits(model, inputs)
    with vidsieve.attach(model, Staged({Pixels(): selector})):
        torch.testing.assert_close(logits(model, inputs), stock, atol=1e-5, rtol=1e-5)


@each_case
def test_it_composes_with_a_reduction_before_the_language_model(case: str) -> None:
    model, (inputs, videos) = tiny.model("internvl"), cases()[case]
    selector, reducer = KCenter(0.5), Prune(0.25)
    with overwritten(model, sources(inputs["pixel_values"], videos, selector)), reducer(model):
        answer, true = steps(model, inputs)
    method = Staged({Pixels(): selector, 0: reducer})
    with method(model) as trace:
        found, each = steps(model, inputs)
    torch.testing.assert_close(each, true, atol=1e-4, rtol=1e-4)
    assert torch.equal(found, answer)
    assert [video.after for video in trace.videos] == [len(rows) for rows in videos]
    assert vidsieve.verify(model, inputs, method).ok


@pytest.mark.parametrize("options", [{"num_beams": 3, "num_return_sequences": 2}, {"prompt_lookup_num_tokens": 3}])
def test_other_ways_to_generate(options: dict[str, Any]) -> None:
    model, selector = tiny.model("internvl"), KCenter(0.5)
    if not hasattr(model, "_maybe_prepare_encoder_kwargs_for_generation") and "num_beams" in options:
        pytest.skip("this release gives beams the frames of one another")
    inputs, videos = cases()["a video"]
    with overwritten(model, sources(inputs["pixel_values"], videos, selector)):
        true = model.generate(**inputs, max_new_tokens=STEPS, **options)
    with vidsieve.attach(model, Staged({Pixels(): selector})):
        assert torch.equal(model.generate(**inputs, max_new_tokens=STEPS, **options), true)


@pytest.mark.parametrize("stages", [{}, {0: Prune(0.25)}], ids=["all tokens", "a quarter"])
def test_a_second_turn_brings_a_video_of_its_own(stages: dict[Any, Any]) -> None:
    model, selector = tiny.model("internvl"), KCenter(0.5)
    one, two = repeating(tiny.prompt("internvl")), repeating(tiny.prompt("internvl", frames=3, seed=5))

    def turns(around: Any) -> Tensor:
        caches: dict[str, Any] = {}
        ids = torch.zeros(1, 0, dtype=torch.long)
        found = []
        for inputs in (one, two):
            ids = torch.cat([ids, inputs["input_ids"]], 1)
            with around(inputs["pixel_values"]):
                answer = model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    pixel_values=inputs["pixel_values"],
                    max_new_tokens=STEPS,
                    return_dict_in_generate=True,
                    output_logits=True,
                    **caches,
                )
            ids, name = answer.sequences, "cache" if "cache" in answer else "past_key_values"
            caches = {name: answer[name]}
            found.append(torch.stack(answer.logits))
        return torch.stack(found)

    def by_hand(pixels: Tensor) -> Any:
        return overwritten(model, sources(pixels, [[*range(len(pixels))]], selector))

    with Staged(stages)(model) if stages else nullcontext():
        true = turns(by_hand)
    with Staged({Pixels(): selector, **stages})(model):
        torch.testing.assert_close(turns(nullcontext), true, atol=1e-4, rtol=1e-4)


def test_embeddings_with_placeholders_tell_as_ids_do() -> None:
    model, inputs = tiny.model("internvl"), cases()["all"][0]
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    others = {name: x for name, x in inputs.items() if name != "input_ids"}
    with vidsieve.attach(model, Staged({Pixels(): KCenter(0.5)})):
        assert torch.equal(logits(model, {"inputs_embeds": embeds, **others}), logits(model, inputs))
        answer = steps(model, inputs)[1]
        assert torch.equal(steps(model, {"inputs_embeds": embeds, **others})[1], answer)


def test_images_are_computed_as_a_whole() -> None:
    model = tiny.model("internvl")
    inputs = repeating(tiny.prompt("internvl", images=2, videos=0))
    stock = logits(model, inputs)
    with vidsieve.attach(model, Staged({Pixels(): KCenter(0.5)})) as trace:
        assert torch.equal(logits(model, inputs), stock)
        assert trace.pixels == ()


def interrupt(*_: Any) -> None:
    """A user who waits no longer."""
    raise KeyboardInterrupt


def test_images_that_no_prompt_comes_with_are_refused() -> None:
    model, inputs = tiny.model("internvl"), tiny.prompt("internvl")
    pixels = inputs["pixel_values"]
    with vidsieve.attach(model, Staged({Pixels(): KCenter(0.5)})):
        logits(model, inputs)
        for given in (inputs, tiny.text_prompt("internvl")):  # an interrupt runs no hook after the call
            hook = model.get_decoder().register_forward_pre_hook(interrupt)
            with pytest.raises(KeyboardInterrupt):
                logits(model, given)
            hook.remove()
        for owner in (model, model.base_model):
            with pytest.raises(UnsupportedCall, match="nothing tells which images are frames of a video"):
                owner.get_image_features(pixels)
    assert model.get_image_features(pixels, return_dict=True).pooler_output.shape[0] == len(pixels)


@pytest.mark.parametrize("way", ["called", "generate"])
def test_pixels_of_other_images_than_the_prompt_has_are_refused(way: str) -> None:
    model, inputs = tiny.model("internvl"), tiny.prompt("internvl")
    inputs["pixel_values"] = inputs["pixel_values"][:3]
    with (
        vidsieve.attach(model, Staged({Pixels(): KCenter(0.5)})),
        torch.no_grad(),
        pytest.raises(UnsupportedCall, match="4 placeholders for each of 3 images, frame by frame, got 16"),
    ):
        model(**inputs) if way == "called" else model.generate(**inputs, max_new_tokens=1)


def test_a_tower_that_must_be_stock_is_refused() -> None:
    model, inputs = tiny.model("internvl"), tiny.prompt("internvl")
    with vidsieve.attach(model, Staged({Pixels(): KCenter(0.5)})):
        with pytest.raises(UnsupportedCall, match="gradients are wanted"):
            model(**inputs)
        logits(model, inputs)


def test_frames_of_another_size_than_the_prompt_has_room_for_are_refused() -> None:
    model, inputs = tiny.model("internvl"), tiny.prompt("internvl")
    inputs["pixel_values"] = torch.randn(4, 3, 42, 42)
    with (
        vidsieve.attach(model, Staged({Pixels(): KCenter(0.5)})),
        pytest.raises(UnsupportedCall, match="4 squares of patches in a frame, each a token, got 3 by 3 patches"),
    ):
        logits(model, inputs)


def test_smolvlm_is_refused() -> None:
    model: Any = tiny.model("smolvlm")
    with pytest.raises(UnsupportedCall, match="frames, tiles of images and padding come as one list"):
        vidsieve.attach(model, Staged({Pixels(): RunLength(0.5)}))
    assert adapter_for(model).not_before_tower
