"""Masks, positions and the kernels that read them."""

import traceback
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GenerationConfig

from tests.engines.hf import by_hand, fake_flash, tiny
from tests.engines.hf.reducers import LouderThanMean, Loudest
from tests.engines.hf.truth import BY_HAND, STEPS, answer, each_family, truth
from vidsieve import Staged
from vidsieve.engines.hf import attach
from vidsieve.engines.hf.contract import CACHE
from vidsieve.engines.hf.vision.tower import vision_tower
from vidsieve.engines.hf.vision.waits import _of_no_prompt
from vidsieve.errors import UnsupportedCall


@each_family
@pytest.mark.parametrize("cache", [None, "static"])
def test_prompts_of_one_length_that_keep_different_counts(family: str, cache: str | None) -> None:
    singles = [tiny.prompt(family, seed=seed) for seed in (0, 4)]  # no padding: the logical mask is all ones
    found = answer(tiny.model(family), tiny.batch(*singles), LouderThanMean(), cache_implementation=cache)
    assert found == [truth(family, single, LouderThanMean()) for single in singles]


@each_family
@pytest.mark.parametrize("with_mask", [True, False])
def test_gaps_in_positions_are_no_packed_sequences(family: str, with_mask: bool) -> None:
    model, inputs = tiny.model(family), tiny.prompt(family)
    expected = by_hand.decode(model, by_hand.reduce(model, inputs, Loudest()), 1)[1][0]
    given = {name: value for name, value in inputs.items() if with_mask or name != "attention_mask"}
    with torch.no_grad(), attach(model, Loudest()):
        logits = model(**given, use_cache=False).logits
    torch.testing.assert_close(logits[0, -1], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("family", "with_mask"),
    # With a mask and no positions, transformers' own M-RoPE models fail.
    [(family, False) for family in BY_HAND] + [("llava_onevision", True), ("internvl", True)],
)
def test_a_decoding_loop_of_ones_own(family: str, with_mask: bool) -> None:
    model, inputs = tiny.model(family), tiny.prompt(family)
    mask, tokens = inputs["attention_mask"], []
    with torch.no_grad(), attach(model, Loudest()):
        out = model(**inputs, use_cache=True)
        for _ in range(STEPS):
            token = out.logits[:, -1:].argmax(-1)
            tokens.append(int(token))
            mask = torch.cat([mask, torch.ones_like(token)], 1)
            extra = {"attention_mask": mask} if with_mask else {}
            out = model(input_ids=token, **{CACHE: out[CACHE]}, use_cache=True, **extra)
    assert tokens == truth(family, inputs)


def test_a_mask_over_the_reduced_sequence_is_refused() -> None:
    model, inputs = tiny.model("qwen2_5_vl"), tiny.prompt("qwen2_5_vl")
    with torch.no_grad(), attach(model, Loudest()) as trace:
        out = model(**inputs, use_cache=True)
        short = torch.ones(1, trace.kv_length + 1, dtype=torch.long)
        with pytest.raises(UnsupportedCall, match="dropped ones included"):
            model(input_ids=torch.tensor([[5]]), attention_mask=short, **{CACHE: out[CACHE]})


def test_a_custom_4d_mask_is_refused() -> None:
    model, inputs = tiny.model("llava_onevision"), tiny.prompt("llava_onevision")
    length = inputs["input_ids"].shape[1]
    with attach(model, Loudest()), pytest.raises(UnsupportedCall, match="2D attention_mask"):
        model(**{**inputs, "attention_mask": torch.ones(1, 1, length, length)})


def packed(family: str, rows: int) -> tuple[tiny.Inputs, torch.Tensor]:
    """Two prompts in one row, and their positions, which begin anew: of text, or in four rows of which that is one."""
    pair = [tiny.prompt(family, seed=seed) for seed in range(2)]
    inputs = {name: torch.cat([one[name] for one in pair], 1 if name in LONG else 0) for name in pair[0]}
    positions = torch.cat([torch.arange(one["input_ids"].shape[1]) for one in pair])[None]
    return inputs, positions if rows == 1 else positions.expand(rows, 1, -1)


LONG = ("input_ids", "attention_mask", "mm_token_type_ids")  # follow the sequence
REDUCERS = [Loudest(), Staged({1: Loudest()})]


@pytest.mark.parametrize("with_mask", [True, False])
@pytest.mark.parametrize("reducer", REDUCERS, ids=["before", "inside"])
@pytest.mark.parametrize(("family", "rows"), [("llava_onevision", 1), ("qwen2_5_vl", 4)])
@torch.no_grad()
def test_packed_samples_are_refused(family: str, rows: int, reducer: Any, with_mask: bool) -> None:
    inputs, positions = packed(family, rows)
    if not with_mask:
        del inputs["attention_mask"]
    with (
        attach(tiny.model(family), reducer),
        pytest.raises(UnsupportedCall, match=r"positions of row 0 begin anew at column \d\d:"),
    ):
        tiny.model(family)(**inputs, position_ids=positions, use_cache=False)


@pytest.mark.parametrize("reducer", REDUCERS, ids=["before", "inside"])
@torch.no_grad()
def test_what_says_where_packed_samples_are_is_refused(reducer: Any) -> None:
    model, (inputs, _) = tiny.model("llava_onevision"), packed("llava_onevision", 1)
    length = inputs["input_ids"].shape[1]
    bounds = torch.tensor([0, length // 2, length], dtype=torch.int32)
    given = {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": length, "max_length_k": length}
    with attach(model, reducer):
        with pytest.raises(UnsupportedCall, match="cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k say where"):
            model(**inputs, **given)
        with pytest.raises(UnsupportedCall, match="seq_idx say"):
            model(**inputs, seq_idx=torch.zeros(1, length, dtype=torch.int32))


@pytest.mark.parametrize("second", [0, 10])
def test_without_a_mask_any_step_but_one_begins_a_sample_as_in_transformers(second: int) -> None:
    """A first sample of one token, or a second one that begins above the first: positions that do not fall."""
    model, inputs = tiny.model("llava_onevision"), tiny.prompt("llava_onevision")
    ids, first = inputs["input_ids"], 1 if second == 0 else 3
    positions = torch.cat([torch.arange(first), torch.arange(ids.shape[1] - first) + second])[None]
    given = {name: value for name, value in inputs.items() if name != "attention_mask"}
    with torch.no_grad(), attach(model, Loudest()):
        with pytest.raises(UnsupportedCall, match=f"begin anew at column {first}"):
            model(**given, position_ids=positions, use_cache=False)
        model(**given, position_ids=torch.arange(ids.shape[1])[None] + 7, use_cache=False)  # one sample


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl", "internvl"])
@torch.no_grad()
def test_positions_that_stand_still_or_jump_are_no_packed_samples(family: str) -> None:
    model, singles = tiny.model(family), [tiny.prompt(family, seed=n, text=6 + 5 * n) for n in range(2)]
    inputs, seen = tiny.batch(*singles), []
    watching = model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True
    )
    plain = model.generate(**inputs, max_new_tokens=1, return_dict_in_generate=True, output_logits=True).logits[0]
    watching.remove()
    assert seen[0].shape[-1] == inputs["input_ids"].shape[1]
    for positions in (seen[0], seen[0][-3:]):
        with attach(model, Loudest(1.0)):
            found = model(**inputs, position_ids=positions).logits[:, -1]
        torch.testing.assert_close(found, plain, atol=1e-4, rtol=0)


@each_family
def test_flash_attention(family: str) -> None:
    model, single = tiny.fresh(family), tiny.prompt(family)
    singles = [tiny.prompt(family, seed=4 * row, text=6 + 5 * row) for row in range(2)]
    with fake_flash.used_by(model) as calls:
        assert answer(model, single) == [truth(family, single)]
        assert calls
        ragged = answer(model, tiny.batch(*singles), LouderThanMean())
    assert ragged == [truth(family, one, LouderThanMean()) for one in singles]


@each_family
def test_flash_attention_reduces_a_second_video_on_a_filled_cache(family: str) -> None:
    model = tiny.fresh(family)
    try:
        second_turn(model, family, Loudest(1.0))
    except StopIteration:
        pytest.skip("this version of transformers cannot take a second video on a filled cache, reduced or not")
    expected = second_turn(model, family)
    with fake_flash.used_by(model) as calls:
        assert second_turn(model, family) == expected
    assert calls


def second_turn(model: Any, family: str, reducer: Any = None) -> list[int]:
    """The answer to a second prompt, with a video of its own, on the cache of the first."""
    first, second = tiny.prompt(family), tiny.prompt(family, seed=1)
    with attach(model, reducer or Loudest()):
        out = model.generate(**first, max_new_tokens=STEPS, return_dict_in_generate=True)
        ids = torch.cat([out.sequences, second["input_ids"]], 1)
        inputs = {**second, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if "mm_token_type_ids" in second:
            said = torch.zeros(1, STEPS, dtype=torch.long)
            kinds = [first["mm_token_type_ids"], said, second["mm_token_type_ids"]]
            inputs["mm_token_type_ids"] = torch.cat(kinds, 1)
        out = model.generate(**inputs, **{CACHE: out[CACHE]}, max_new_tokens=STEPS)
    return out[0, ids.shape[1] :].tolist()


class Waits(TorchDispatchMode):
    """Lists where transformers asks for a value of a tensor, which waits for all that a device has to do before."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten._local_scalar_dense.default:
            frames = [frame for frame in traceback.extract_stack()[:-1] if "/torch/" not in frame.filename]
            if "transformers" in frames[-1].filename:
                self.places.append(str(frames[-1].line))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", [family for family in BY_HAND if family != "internvl"])  # which counts placeholders
def test_transformers_asks_the_device_nothing_between_the_tower_and_the_first_layer(family: str) -> None:
    model, inputs, waits, masks = tiny.fresh(family), tiny.prompt(family), Waits(), []
    decoder = model.get_decoder()

    def before_decoder(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        masks.append(kwargs["attention_mask"])

    with torch.no_grad(), attach(model, Loudest()), ExitStack() as hooks:
        tower_ends = vision_tower(model).register_forward_hook(lambda *_: waits.__enter__() and None)
        first_begins = decoder.layers[0].register_forward_pre_hook(lambda *_: waits.__exit__(None, None, None))
        for hook in (tower_ends, first_begins):
            hooks.callback(hook.remove)
        hooks.callback(decoder.register_forward_pre_hook(before_decoder, with_kwargs=True).remove)
        model.generate(**inputs, max_new_tokens=1, do_sample=False)
        assert (waits.places, masks) == ([], [None])
        model.generate(**tiny.batch(inputs, tiny.prompt(family, text=9)), max_new_tokens=1, do_sample=False)
        assert masks[1] is not None  # of rows of unequal lengths


def test_what_reads_the_prompt_to_choose_a_token_still_does() -> None:
    model, inputs = tiny.fresh("qwen2_5_vl"), tiny.prompt("qwen2_5_vl", text=60)
    plain = {**inputs, "max_new_tokens": 6, "do_sample": False}
    stock = model.generate(**plain, encoder_repetition_penalty=3.0).tolist()
    with attach(model, vision="packed"):
        assert model.generate(**plain, encoder_repetition_penalty=3.0).tolist() == stock
        assert model.generate(**plain).tolist() != stock


@pytest.mark.parametrize(
    ("options", "read"),
    [
        ({}, False),
        ({"encoder_repetition_penalty": 1.0, "encoder_no_repeat_ngram_size": 0}, False),
        ({"encoder_repetition_penalty": 2.0}, True),
        ({"encoder_no_repeat_ngram_size": 3}, True),
    ],
)
def test_the_prompt_is_given_to_who_reads_it(options: dict[str, float], read: bool) -> None:
    def processors(generation_config: GenerationConfig, encoder_input_ids: Any = None) -> Any:
        return encoder_input_ids

    config = GenerationConfig(**options)
    assert (_of_no_prompt(processors, generation_config=config, encoder_input_ids="prompt") == "prompt") is read
    assert (_of_no_prompt(processors, config, "prompt") == "prompt") is read
