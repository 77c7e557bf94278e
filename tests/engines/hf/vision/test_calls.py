"""Calls of the tower that must be its own, or are refused before it; what else is asked of a call; its end."""

import copy
import inspect
import pickle
import threading
from typing import Any

import pytest
import torch
from torch import Tensor

import vidsieve
from tests.engines.hf import tiny
from tests.engines.hf.vision.test_before import CLIPS, MERGED, repeating
from tests.engines.hf.vision.test_packed import logits
from vidsieve import Reducer, Reduction, VideoTokens
from vidsieve.engines.hf.contract import CACHE
from vidsieve.engines.hf.vision.tower import attentions, vision_tower
from vidsieve.errors import AlreadyAttached, NonFiniteFeatures, UnsupportedCall, UnsupportedModel
from vidsieve.methods import KCenter, Pixels, Prune, RunLength, Staged, presets

BEFORE = Staged({Pixels(): KCenter(0.5), 0: Prune(0.25)})
SOME = ("qwen2_5_vl", "glm4v", "llava_onevision")


def inputs_of(family: str, **options: Any) -> tiny.Inputs:
    return tiny.prompt(family, **options) if family in CLIPS else repeating(family, **options)


def loss(model: Any, inputs: tiny.Inputs) -> Tensor:
    answer: Tensor = model(**inputs, labels=inputs["input_ids"]).loss
    return answer


def features(model: Any, inputs: tiny.Inputs, **options: Any) -> Any:
    names = ("video_grid_thw", "video_merge_sizes", "video_compression_mask")
    encode = model.base_model.get_video_features
    pixels = next(iter(inspect.signature(encode).parameters))  # "pixel_values" in older LLaVA
    given = {pixels: inputs["pixel_values_videos"], **{name: inputs[name] for name in names if name in inputs}}
    with torch.no_grad():
        return encode(**given, **options)


@pytest.mark.parametrize("family", SOME)
def test_gradients_of_the_tower_are_stock_ones(family: str) -> None:
    model, inputs = tiny.fresh(family), inputs_of(family)
    weight = next(w for w in vision_tower(model).parameters() if w.ndim > 1)
    [true] = torch.autograd.grad(loss(model, inputs), weight)
    with vidsieve.attach(model) as trace:
        [found] = torch.autograd.grad(loss(model, inputs), weight)
    assert torch.equal(found, true)
    assert trace.tower.startswith("stock, because ")
    if family not in CLIPS:
        assert "tower: stock, because gradients are wanted" in str(trace)
    with BEFORE(model), pytest.raises(UnsupportedCall, match=r"cannot act before this .* where gradients are wanted"):
        loss(model, inputs)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
@pytest.mark.parametrize("family", SOME)
def test_a_frozen_tower_whose_layers_are_checkpointed_is_stock_until_it_is_evaluated(family: str) -> None:
    model, inputs = tiny.fresh(family), inputs_of(family)
    model.train().gradient_checkpointing_enable()
    model.config.get_text_config().use_cache = False
    tower = vision_tower(model).requires_grad_(False)
    true = loss(model, inputs)
    true.backward()
    with vidsieve.attach(model) as trace:
        found = loss(model, inputs)
        found.backward()
    assert torch.equal(found, true)
    if family not in CLIPS:
        assert "computed again for gradients" in trace.tower
    with BEFORE(model), pytest.raises(UnsupportedCall, match="computed again for gradients"):
        loss(model, inputs)
    tower.eval()
    with BEFORE(model) as trace:
        loss(model, inputs).backward()
    assert "computed" in trace.tower


@pytest.mark.parametrize("family", ["glm4v", "video_llama_3", "llava_onevision"])
def test_attention_that_drops_weights_at_random_does(family: str) -> None:
    model, inputs = tiny.fresh(family).train(), inputs_of(family)
    for attention in attentions(vision_tower(model)):
        attention.attention_dropout = attention.dropout = 0.5
    torch.manual_seed(0)
    true = logits(model, inputs)
    with vidsieve.attach(model):
        torch.manual_seed(0)
        assert torch.equal(logits(model, inputs), true)
    with BEFORE(model), pytest.raises(UnsupportedCall, match="drops weights at random"):
        logits(model, inputs)


@pytest.mark.parametrize("family", SOME)
def test_attentions_of_the_tower_are_stock_ones(family: str) -> None:
    model, inputs = tiny.model(family, "eager"), inputs_of(family)
    true = features(model, inputs, output_attentions=True).attentions
    with vidsieve.attach(model):
        found = features(model, inputs, output_attentions=True).attentions
    assert len(true) > 0
    assert all(map(torch.equal, found, true))
    with BEFORE(model), pytest.raises(UnsupportedCall, match="where its attentions are wanted"):
        features(model, inputs, output_attentions=True)


@pytest.mark.parametrize("family", [*MERGED, *CLIPS])
def test_all_states_of_the_tower_have_a_row_for_every_patch(family: str) -> None:
    model, inputs = tiny.model(family), inputs_of(family)
    if family in MERGED:
        frames = inputs["pixel_values_videos"].view(6, -1)
        frames[1:] = frames[0]
    else:
        inputs["pixel_values_videos"][:, 1:] = inputs["pixel_values_videos"][:, :1]
    true = features(model, inputs, output_hidden_states=True)
    with Staged({Pixels(): RunLength(threshold=0.0)})(model) as trace:
        found = features(model, inputs, output_hidden_states=True)
    assert "computed" in trace.tower
    torch.testing.assert_close(found.last_hidden_state, true.last_hidden_state, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tuple(found.hidden_states), tuple(true.hidden_states), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", SOME)
@pytest.mark.parametrize("method", [None, Staged({Pixels(): RunLength(0.5)}), BEFORE], ids=["none", "pixels", "both"])
def test_a_model_with_a_fast_tower_is_not_copied(family: str, method: Any) -> None:
    model = tiny.fresh(family)
    with vidsieve.attach(model, method):
        for copied in (copy.deepcopy, pickle.dumps):
            with pytest.raises(UnsupportedCall, match="cannot be copied or pickled with a reducer attached, a fast"):
                copied(model)
    assert torch.equal(logits(copy.deepcopy(model), inputs_of(family)), logits(model, inputs_of(family)))


@pytest.mark.parametrize("family", SOME)
@pytest.mark.parametrize("method", [None, BEFORE], ids=["exact", "before"])
def test_threads_do_not_mix(family: str, method: Any) -> None:
    model = tiny.model(family)
    prompts = [inputs_of(family, frames=4 + 2 * (seed % 2), seed=seed) for seed in range(4)]
    with vidsieve.attach(model, method):
        true = [logits(model, inputs) for inputs in prompts]
        found: dict[int, Tensor] = {}

        def run(i: int) -> None:
            found[i] = logits(model, prompts[i])

        threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(torch.equal(found[i], true[i]) for i in range(4))


@pytest.mark.parametrize("family", SOME)
def test_a_call_that_fails_inside_the_tower_leaves_nothing_for_the_next(family: str) -> None:
    model, inputs = tiny.model(family), inputs_of(family)
    stock = logits(model, inputs)

    def fail(*_: Any) -> None:
        raise KeyError("in the tower")

    layer = next(m for n, m in vision_tower(model).named_modules() if n.endswith(("blocks.1", "layers.1")))
    with BEFORE(model):
        true = logits(model, inputs)
        hook = layer.register_forward_pre_hook(fail)
        with pytest.raises(KeyError, match="in the tower"):
            logits(model, inputs)
        hook.remove()
        assert torch.equal(logits(model, inputs), true)
        broken = inputs | {"pixel_values_videos": inputs["pixel_values_videos"].clone()}
        broken["pixel_values_videos"].view(-1)[0] = torch.nan
        with pytest.raises(NonFiniteFeatures, match=r"^1 of \d+ groups of pixels hold NaN"):
            logits(model, broken)
        assert torch.equal(logits(model, inputs), true)
    assert torch.equal(logits(model, inputs), stock)


def test_one_model_of_two_is_detached() -> None:
    first, second, inputs = tiny.model("qwen2_5_vl"), tiny.fresh("qwen2_5_vl"), repeating("qwen2_5_vl")
    stock, handle = logits(first, inputs), vidsieve.attach(first)
    with BEFORE(second):
        reduced = logits(second, inputs)
        handle.remove()
        assert torch.equal(logits(second, inputs), reduced)
        assert torch.equal(logits(first, inputs), stock)
    assert torch.equal(logits(second, inputs), stock)


def test_a_fast_tower_alone_is_an_attachment_like_any() -> None:
    model = tiny.model("qwen2_5_vl")
    with vidsieve.attach(model, vision="packed") as trace:
        with pytest.raises(AlreadyAttached, match="already has a reducer, or a fast vision tower; remove"):
            vidsieve.attach(model, Prune(0.5))
        logits(model, repeating("qwen2_5_vl"))
        assert str(trace) == "tower: packed"
        assert vidsieve.detach(model)
        assert not vidsieve.detach(model)
    with Staged({Pixels(): RunLength(0.5)})(model) as trace:
        logits(model, repeating("qwen2_5_vl"))
    assert str(trace) == "tower: packed, 18 of 36 groups of pixels computed"
    with BEFORE(model) as trace:
        assert str(trace) == "no video tokens seen"


@pytest.mark.parametrize("vision", ["nonsense", None, 1])
def test_another_way_to_run_a_tower_is_refused(vision: Any) -> None:
    with pytest.raises(ValueError, match="expected vision to be one of auto, fused, packed, stock, got"):
        vidsieve.attach(tiny.model("qwen2_5_vl"), vision=vision)


def test_kernels_are_refused_where_there_are_none() -> None:
    with pytest.raises(UnsupportedCall, match=r"vision='fused' cannot be: its weights are torch.float32 on cpu"):
        vidsieve.attach(tiny.model("qwen2_5_vl"), vision="fused")
    with pytest.raises(UnsupportedCall, match=r"^vision='fused' cannot be: its weights are torch.float32 on cpu"):
        vidsieve.attach(tiny.model("qwen2_5_vl"), BEFORE, vision="fused")
    with pytest.raises(UnsupportedCall, match=r"^KCenter\(.*\) cannot act .* vision='stock' leaves the tower"):
        vidsieve.attach(tiny.model("qwen2_5_vl"), BEFORE, vision="stock")


@pytest.mark.parametrize("family", SOME)
def test_a_tower_of_another_name_is_left_as_it_is(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = tiny.model(family), inputs_of(family)
    monkeypatch.setattr("vidsieve.engines.hf.vision.tower._NAMES", ("eye",))
    with vidsieve.attach(model) as trace:
        logits(model, inputs)
    assert trace.tower == "stock, because it has a name that is not known here"
    with pytest.raises(UnsupportedModel, match="expected a model with a vision tower"):
        vidsieve.attach(model, BEFORE)


@pytest.mark.parametrize("family", SOME)
def test_a_tower_that_is_compiled_is_left_as_it_is(family: str) -> None:
    model = tiny.fresh(family)
    vision_tower(model).compile(backend="eager")
    with vidsieve.attach(model) as trace:
        pass
    assert trace.tower.startswith("stock, because it is compiled")
    with pytest.raises(UnsupportedCall, match="cannot act before the vision tower: it is compiled"):
        vidsieve.attach(model, BEFORE)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_weights_elsewhere_are_said(family: str) -> None:
    model = tiny.fresh(family)
    layer = next(m for n, m in vision_tower(model).named_modules() if n.endswith(("blocks.1", "layers.1")))
    layer.to("meta")
    with vidsieve.attach(model) as trace:
        assert "stock" in trace.tower
    if family not in CLIPS:
        assert trace.tower == "stock, because its weights are offloaded or on several devices"
        with pytest.raises(UnsupportedCall, match="its weights are offloaded or on several devices"):
            vidsieve.attach(model, vision="packed")
    model.to_empty(device="meta")
    vidsieve.attach(model).remove()


def test_quantized_weights_are_said() -> None:
    model = tiny.fresh("qwen2_5_vl")
    linear = next(m for m in vision_tower(model).modules() if isinstance(m, torch.nn.Linear))
    linear.weight = torch.nn.Parameter(linear.weight.to(torch.int8), requires_grad=False)
    with vidsieve.attach(model) as trace:
        assert trace.tower.startswith("stock, because its weights are quantized")
    with pytest.raises(UnsupportedCall, match="its weights are quantized"):
        vidsieve.attach(model, BEFORE)


@pytest.mark.parametrize("family", SOME)
def test_beams_and_padded_rows_are_those_of_each_prompt_alone(family: str) -> None:
    model, prompts = tiny.model(family), [inputs_of(family), inputs_of(family, seed=3)]
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):  # a longer question
        if name in prompts[1]:
            prompts[1][name] = torch.cat([prompts[1][name], prompts[1][name][:, -4:]], 1)
    with BEFORE(model):
        alone = [logits(model, inputs)[0, -1] for inputs in prompts]
        together = logits(model, tiny.batch(*prompts))[:, -1]
        torch.testing.assert_close(together, torch.stack(alone), atol=1e-4, rtol=1e-4)
        if not family.startswith("glm"):  # which transformers itself cannot expand
            options = {"max_new_tokens": 3, "do_sample": False, "num_beams": 3}
            beams = [model.generate(**inputs, **options)[0, -3:] for inputs in prompts]
            both = model.generate(**tiny.batch(*prompts), **options)[:, -3:]
            assert torch.equal(both, torch.stack(beams))


@pytest.mark.parametrize("family", ["glm4v", "video_llama_3", "llava_onevision"])
def test_a_second_turn_on_a_kept_cache_is_that_of_the_whole_conversation(family: str) -> None:
    model, inputs = tiny.model(family), inputs_of(family)
    with BEFORE(model):
        out = model.generate(**inputs, max_new_tokens=3, return_dict_in_generate=True)
        ids = torch.cat([out.sequences, torch.tensor([[40, 41, 42]])], 1)
        longer = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        found = model.generate(**longer, **{CACHE: out[CACHE]}, max_new_tokens=3)
        if "mm_token_type_ids" in inputs:
            room = ids.shape[1] - inputs["mm_token_type_ids"].shape[1]
            longer["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, room))
        assert torch.equal(model.generate(**inputs | longer, max_new_tokens=3), found)


def test_images_beside_a_video_are_computed_as_a_whole() -> None:
    model, inputs = tiny.model("qwen2_5_vl"), tiny.prompt("qwen2_5_vl", frames=6, images=1)
    given = (inputs["pixel_values"], inputs["image_grid_thw"])
    with torch.no_grad():
        [true] = model.base_model.get_image_features(*given).pooler_output
        with BEFORE(model):
            logits(model, inputs)
            [found] = model.base_model.get_image_features(*given).pooler_output
            assert torch.equal(model.base_model.visual(*given).pooler_output, true)
    assert torch.equal(found, true)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "video_llava"])
def test_autocast_reaches_the_tower_and_not_the_reduction(family: str) -> None:
    model, inputs = tiny.model(family), inputs_of(family, frames=8)
    with torch.autocast("cpu", torch.bfloat16):
        stock = logits(model, inputs)
        with vidsieve.attach(model):
            assert torch.equal(logits(model, inputs), stock)
        given = []
        with Staged({Pixels(): RunLength(0.5), 0: noting(given)})(model) as trace:
            logits(model, inputs)
    [tokens] = given
    assert presets.vidsieve(0.25).reduce(tokens).kept.tolist() == trace.videos[0].kept


@pytest.mark.parametrize("family", ["qwen2_5_vl", "video_llava"])
def test_autocast_does_not_reach_the_choice_of_pixels(family: str) -> None:
    model, inputs = tiny.model(family), tiny.prompt(family, frames=8)
    chosen = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled), Staged({Pixels(): KCenter(0.5)})(model) as trace:
            logits(model, inputs)
        [selection] = trace.pixels
        chosen.append((selection.kept.tolist(), selection.source.tolist()))
    assert chosen[0] == chosen[1]


def noting(given: list[VideoTokens]) -> Reducer:
    """The default, which notes the tokens that it is given."""

    class Noting(Reducer):
        def reduce(self, tokens: VideoTokens, prompt: Any = None) -> Reduction:
            given.append(tokens)
            return presets.vidsieve(0.25).reduce(tokens, prompt)

    return Noting()
