"""Caches that hold less than they stand for: kept, reset, cropped, copied, static, none."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import StaticCache

from tests.engines.hf import by_hand, tiny
from tests.engines.hf.reducers import LouderThanMean, Loudest
from tests.engines.hf.staged import STAGES
from tests.engines.hf.truth import STEPS, answer, each_family, prompts, truth
from vidsieve import Prune, Staged
from vidsieve.engines.hf import attach
from vidsieve.engines.hf.contract import CACHE
from vidsieve.errors import UnsupportedCall
from vidsieve.methods.base import Attachable


@each_family
@pytest.mark.parametrize("full_ids", [True, False])
def test_a_follow_up_turn_on_a_kept_cache(family: str, full_ids: bool) -> None:
    model, inputs, question = tiny.model(family), tiny.prompt(family), [40, 41, 42, 43]
    with attach(model, Loudest()):
        out = model.generate(**inputs, max_new_tokens=STEPS, return_dict_in_generate=True)
        ids = torch.cat([out.sequences, torch.tensor([question])], 1)
        given = ids if full_ids else ids[:, out.sequences.shape[1] - 1 :]  # the last token is not in the cache yet
        found = model.generate(
            input_ids=given,
            attention_mask=torch.ones_like(ids),
            **{CACHE: out[CACHE]},
            max_new_tokens=STEPS,
        )
    merged = by_hand.reduce(model, inputs, Loudest())
    merged = by_hand.append(model, merged, ids[0, inputs["input_ids"].shape[1] :].tolist())
    assert found[0, given.shape[1] :].tolist() == by_hand.decode(model, merged, STEPS)[0]


@each_family
def test_a_static_cache(family: str) -> None:
    model, inputs = tiny.model(family), tiny.prompt(family)
    for _ in range(2):
        assert answer(model, inputs, cache_implementation="static") == [truth(family, inputs)]


@each_family
def test_a_static_cache_too_small_for_the_unreduced_prompt(family: str) -> None:
    model, inputs = tiny.model(family), tiny.prompt(family)
    room = inputs["input_ids"].shape[1] - 10 + STEPS
    cache = StaticCache(config=model.config.get_text_config(decoder=True), max_cache_len=room)
    assert answer(model, inputs, **{CACHE: cache}) == [truth(family, inputs)]


def test_a_static_cache_that_is_reset_forgets_the_reduced_prompt() -> None:
    model, inputs = tiny.model("qwen2_5_vl"), tiny.prompt("qwen2_5_vl")
    length = inputs["input_ids"].shape[1]
    cache = StaticCache(config=model.config.get_text_config(decoder=True), max_cache_len=length + STEPS)
    whole = model.generate(**inputs, max_new_tokens=STEPS)[:, length:].tolist()
    answer(model, inputs, **{CACHE: cache})
    cache.reset()
    assert model.generate(**inputs, max_new_tokens=STEPS, **{CACHE: cache})[:, length:].tolist() == whole


@each_family
@pytest.mark.parametrize("reducer", [Loudest(), Staged({0: Prune(0.7), 1: Prune(0.4)}), Staged({1: Prune(0.4)})])
def test_a_cache_that_the_decoder_makes_itself_knows_what_was_removed(family: str, reducer: Attachable) -> None:
    model, inputs = tiny.model(family), tiny.prompt(family)
    with torch.no_grad(), attach(model, reducer):
        out = model(**inputs, use_cache=True)
        assert out[CACHE].get_seq_length() == inputs["input_ids"].shape[1]
        ids = torch.cat([inputs["input_ids"], out.logits[:, -1:].argmax(-1)], 1)
        more = {"input_ids": ids, "attention_mask": torch.ones_like(ids), CACHE: out[CACHE]}
        said = model.generate(**more, max_new_tokens=STEPS - 1)[0, inputs["input_ids"].shape[1] :].tolist()
    assert [said] == answer(model, inputs, reducer)


CUT = [Loudest(), Staged({0: Loudest(0.7), 1: Loudest(0.4)}), Staged({2: Loudest()})]
each_cut = pytest.mark.parametrize("method", CUT, ids=["before", "both", "inside"])


@each_cut
@torch.no_grad()
def test_a_cache_is_cropped_down_to_the_last_video_and_no_further(method: Attachable) -> None:
    model, inputs = tiny.model("qwen2_5_vl"), tiny.prompt("qwen2_5_vl")
    after = inputs["input_ids"].shape[1] - int(tiny.is_video("qwen2_5_vl", inputs["input_ids"]).nonzero()[-1, 1]) - 1
    with attach(model, method):
        cache = model(**inputs, use_cache=True)[CACHE]
        held = [cache.layers[i].keys.shape[2] for i in range(3)]
        for too_many in (-after - 1, inputs["input_ids"].shape[1] - after - 1):
            with pytest.raises(UnsupportedCall, match="cannot be cropped"):
                cache.crop(too_many)
            assert [cache.layers[i].keys.shape[2] for i in range(3)] == held  # refused, and not half done
        cache.crop(-after)
    assert [cache.layers[i].keys.shape[2] for i in range(3)] == [length - after for length in held]


@pytest.mark.parametrize("removed", [3, 5])
@each_cut
@torch.no_grad()
def test_a_cropped_cache_goes_on(method: Attachable, removed: int) -> None:
    model, inputs = tiny.model("qwen2_5_vl"), tiny.prompt("qwen2_5_vl")
    ids, length = inputs["input_ids"], inputs["input_ids"].shape[1]
    with attach(model, method):
        whole = model(**inputs, use_cache=True)
        for size in (-removed, length - removed):  # either says what of the conversation is left
            cache = copy.deepcopy(whole[CACHE])
            cache.crop(size)
            assert cache.get_seq_length() == length - removed
            again = model(input_ids=ids[:, -removed:], **{CACHE: cache}, use_cache=True).logits
            torch.testing.assert_close(again, whole.logits[:, -removed:], atol=1e-4, rtol=0)


@pytest.mark.parametrize("way", ["reorder_cache", "batch_select_indices", "batch_repeat_interleave", "both"])
@pytest.mark.parametrize("method", [LouderThanMean(), Staged(STAGES["merge at 0"])], ids=["before", "both"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_rows_of_a_padded_cache_move_with_their_masks(attention: str, method: Attachable, way: str) -> None:
    model, singles = tiny.model("qwen2_5_vl", attention), prompts("qwen2_5_vl", 3)
    inputs, order = tiny.batch(*singles), [2, 0, 1]
    if way == "batch_repeat_interleave":
        order = [0, 0, 1, 1, 2, 2]
    elif way == "both":
        order = [2, 0, 1, 2]
    step = torch.tensor([[40, 41]] * len(order))
    expected = []
    with attach(model, method):
        for single in singles:
            cache = model(**single, use_cache=True)[CACHE]
            expected.append(model(input_ids=step[:1], **{CACHE: cache}).logits[0])
        positions = model.base_model.get_rope_index(
            inputs["input_ids"],
            mm_token_type_ids=inputs["mm_token_type_ids"],
            video_grid_thw=inputs["video_grid_thw"],
            attention_mask=inputs["attention_mask"],
        )[0][..., order, -1:]
        cache = model(**inputs, use_cache=True)[CACHE]
        if way in ("batch_repeat_interleave", "both"):
            cache.batch_repeat_interleave(2)
        if way == "both":
            cache.batch_select_indices(torch.tensor([5, 0, 3, 4]))
        elif way != "batch_repeat_interleave":
            getattr(cache, way)(torch.tensor(order))
        mask = torch.cat([inputs["attention_mask"][order], torch.ones_like(step)], 1)
        positions = positions + torch.tensor([1, 2])
        for given in ({"attention_mask": mask}, {}):
            more = copy.deepcopy(cache)
            found = model(input_ids=step, position_ids=positions, **{CACHE: more}, **given).logits
            torch.testing.assert_close(found, torch.stack([expected[row] for row in order]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("reducer", [Loudest(), Staged({1: Prune(0.4)}), Staged({0: Prune(0.7), 2: Prune(0.4)})])
def test_cropping_to_a_length_counts_in_the_sequence_as_it_came(reducer: Attachable) -> None:
    model, inputs = tiny.model("qwen2_5_vl"), tiny.prompt("qwen2_5_vl")
    with torch.no_grad(), attach(model, reducer):
        caches = [model(**inputs, use_cache=True)[CACHE] for _ in range(3)]
        length = caches[0].get_seq_length()
        caches[0].crop(-3)
        caches[1].crop(length - 3)
        caches[2].crop(length + 5)
    lengths = [[layer.get_seq_length() for layer in cache.layers] for cache in caches]
    assert lengths[0] == lengths[1] == [n - 3 for n in lengths[2]]
    assert [cache.get_seq_length() for cache in caches] == [length - 3, length - 3, length]


def test_a_padded_cache_is_not_continued_without_its_reducer() -> None:
    model = tiny.model("qwen2_5_vl")
    inputs = tiny.batch(*[tiny.prompt("qwen2_5_vl", seed=seed, text=6 + seed) for seed in (0, 4)])
    with attach(model, LouderThanMean()):
        out = model.generate(**inputs, max_new_tokens=STEPS, return_dict_in_generate=True)
    more = {"input_ids": out.sequences, "attention_mask": torch.ones_like(out.sequences), "max_new_tokens": 2}
    with pytest.raises(UnsupportedCall, match="attach one again"):
        model.generate(**more, **{CACHE: copy.deepcopy(out[CACHE])})
    with attach(model, LouderThanMean()):
        model.generate(**more, **{CACHE: copy.deepcopy(out[CACHE])})


def test_a_copied_cache_continues_alike() -> None:
    model, inputs = tiny.model("qwen3_vl"), tiny.prompt("qwen3_vl")
    with attach(model, Loudest()):
        out = model.generate(**inputs, max_new_tokens=2, return_dict_in_generate=True)
        more = {"input_ids": out.sequences, "attention_mask": torch.ones_like(out.sequences), "max_new_tokens": 4}
        answers = [model.generate(**more, **{CACHE: copy.deepcopy(out[CACHE])}) for _ in range(2)]
    assert torch.equal(*answers)
    assert answers[0][0, inputs["input_ids"].shape[1] :].tolist() == truth("qwen3_vl", inputs)


@each_family
def test_without_a_cache(family: str) -> None:
    inputs = tiny.prompt(family)
    assert answer(tiny.model(family), inputs, use_cache=False) == [truth(family, inputs)]


def again(model: Any, method: Attachable, first: tiny.Inputs, second: tiny.Inputs, given: bool = True) -> Tensor:
    """Logits of the last tokens of `second`, which follows `first` in its cache, with positions or without."""
    length = first["input_ids"].shape[1]
    mask = torch.cat([first["attention_mask"], second["attention_mask"]], 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    before, now = ({"position_ids": part} if given else {} for part in (positions[:, :length], positions[:, length:]))
    with torch.no_grad(), attach(model, method):
        cache = model(**first, **before, use_cache=True)[CACHE]
        out = model(**{**second, "attention_mask": mask, **now}, **{CACHE: cache}, use_cache=True)
    return out.logits[:, -1]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "method",
    [LouderThanMean(), Staged(STAGES["merge at 0"]), Staged(STAGES["attention"])],
    ids=["before", "merge", "attention"],
)
def test_a_second_video_in_a_padded_batch(method: Attachable, attention: str) -> None:
    model = tiny.model("llava_onevision", attention)
    firsts = prompts("llava_onevision", 2)
    seconds = [tiny.prompt("llava_onevision", seed=30 + 4 * row, text=11 - 5 * row) for row in range(2)]
    alone = torch.cat([again(model, method, *pair) for pair in zip(firsts, seconds, strict=True)])
    found = again(model, method, tiny.batch(*firsts), tiny.batch(*seconds))
    torch.testing.assert_close(found, alone, atol=1e-4, rtol=0)


def test_a_second_video_without_positions() -> None:
    model, pair = tiny.model("llava_onevision"), [tiny.prompt("llava_onevision", seed=3 * turn) for turn in range(2)]
    found = [again(model, Loudest(), *pair, given=given) for given in (True, False)]
    torch.testing.assert_close(*found)
