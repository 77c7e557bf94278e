"""What else a prompt may hold: images, more videos, rows of text, embeddings, a question."""

import inspect
from typing import Any

import pytest
import torch

from tests.engines.hf import by_hand, tiny
from tests.engines.hf.reducers import Loudest, NearestToQuestion
from tests.engines.hf.truth import BY_HAND, STEPS, answer, each_family, question_length, truth
from vidsieve import Staged
from vidsieve.engines.hf import adapter_for, attach
from vidsieve.engines.hf.contract import CACHE


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_images_beside_two_videos_are_untouched(family: str) -> None:
    inputs = tiny.prompt(family, videos=2, images=2)
    model = tiny.model(family)
    with attach(model, Loudest()) as trace:
        out = model.generate(**inputs, max_new_tokens=STEPS)
    assert out[0, inputs["input_ids"].shape[1] :].tolist() == truth(family, inputs, videos=2)
    assert [video.before for video in trace.videos] == [24, 24]


def test_two_videos_of_llava_onevision_each_keep_their_newline() -> None:
    inputs = tiny.prompt("llava_onevision", videos=2)
    model = tiny.model("llava_onevision")
    assert answer(model, inputs) == [truth("llava_onevision", inputs, videos=2)]


def words(family: str, *ids: int) -> tiny.Inputs:
    """A prompt of text."""
    rows = torch.tensor([ids])
    text = {"input_ids": rows, "attention_mask": torch.ones_like(rows)}
    for name in ("mm_token_type_ids", "moe_mm_token_type_ids"):
        if name in tiny.prompt(family):
            text[name] = torch.zeros_like(rows)
    return text


@pytest.mark.parametrize("first", ["video", "text"])
@pytest.mark.parametrize(
    ("family", "reducer"),
    [
        pytest.param(family, reducer, marks=tiny.marks(family), id=f"{family}-{where}")
        for family in tiny.FAMILIES
        for where, reducer in (("before", Loudest()), ("inside", Staged({1: Loudest()})))
        if tiny.served(family, inside=where == "inside")
    ],
)
def test_a_row_of_text_beside_a_row_of_video(family: str, reducer: Any, first: str) -> None:
    model, rows = tiny.model(family), {"video": tiny.prompt(family), "text": words(family, 7, 8, 9, 10)}
    alone = {kind: answer(model, row, reducer)[0] for kind, row in rows.items()}
    assert alone["text"] == model.generate(**rows["text"], max_new_tokens=STEPS)[0, 4:].tolist()
    if family in BY_HAND and reducer == Loudest():
        assert alone["video"] == truth(family, rows["video"])
    order = [first, *(kind for kind in rows if kind != first)]
    assert answer(model, tiny.batch(*[rows[kind] for kind in order]), reducer) == [alone[kind] for kind in order]


def placeholder(family: str) -> int:
    return int(getattr(tiny.model(family).config, adapter_for(tiny.model(family)).token))


@tiny.every_family
def test_a_placeholder_that_is_quoted_is_text(family: str) -> None:
    model, mark = tiny.model(family), placeholder(family)
    text = words(family, 7, *[mark] * 4, 8, 9, 10, 11, 12, 13, *[mark] * 4, 14)
    expected = model.generate(**text, max_new_tokens=STEPS)
    with attach(model, Loudest()) as trace:
        assert torch.equal(model.generate(**text, max_new_tokens=STEPS), expected)
    assert str(trace).splitlines()[0] == "no video tokens seen"  # a tower that is slow has a line of its own


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision", "internvl"])
def test_a_placeholder_in_a_later_turn_is_text(family: str) -> None:
    model, inputs, turn = tiny.model(family), tiny.prompt(family), [40, placeholder(family), 41, 42]
    with attach(model, Loudest()) as trace:
        out = model.generate(**inputs, max_new_tokens=STEPS, return_dict_in_generate=True)
        ids = torch.cat([out.sequences, torch.tensor([turn])], 1)
        more = {"input_ids": ids, "attention_mask": torch.ones_like(ids), CACHE: out[CACHE]}
        found = model.generate(**more, max_new_tokens=STEPS)
    merged = by_hand.reduce(model, inputs, Loudest())
    merged = by_hand.append(model, merged, ids[0, inputs["input_ids"].shape[1] :].tolist())
    assert found[0, ids.shape[1] :].tolist() == by_hand.decode(model, merged, STEPS)[0]
    assert trace.totals["calls"] == 1


def test_a_quoted_placeholder_beside_an_image_is_text() -> None:
    model, inputs = tiny.model("qwen2_5_vl"), tiny.prompt("qwen2_5_vl", images=1, videos=0)
    inputs["input_ids"][0, 2] = tiny.VIDEO
    expected = model.generate(**inputs, max_new_tokens=STEPS)
    with attach(model, Loudest()):
        assert torch.equal(model.generate(**inputs, max_new_tokens=STEPS), expected)


def test_a_body_whose_arguments_have_no_names_is_read() -> None:
    model, inputs = tiny.model("llava_onevision"), tiny.prompt("llava_onevision")
    names = ("input_ids", None, "pixel_values_videos")
    signature = list(inspect.signature(model.base_model.forward).parameters)
    given = [inputs.get(name) if name in names else None for name in signature[: signature.index(names[-1]) + 1]]
    with attach(model, Loudest()) as trace, torch.no_grad():
        model.base_model(*given)
    assert len(trace.videos) == 1


@tiny.every_family
def test_text_alone_is_untouched(family: str) -> None:
    model, ids = tiny.model(family), torch.tensor([[7, 8, 9, 10]])
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    expected = model.generate(**text, max_new_tokens=3)
    with attach(model, Loudest()) as trace:
        assert torch.equal(model.generate(**text, max_new_tokens=3), expected)
    assert str(trace).splitlines()[0] == "no video tokens seen"  # a tower that is slow has a line of its own


@pytest.mark.parametrize("family", BY_HAND)
def test_embeddings_with_placeholders_in_place_of_ids(family: str) -> None:
    model, inputs = tiny.model(family), tiny.prompt(family)
    # The mask goes first: generate() reads the batch size off the first tensor.
    given = {"attention_mask": inputs["attention_mask"], **inputs}
    del given["input_ids"]
    embeddings = model.get_input_embeddings()(inputs["input_ids"]).detach()
    with attach(model, Loudest()) as trace:
        model.generate(**given, inputs_embeds=embeddings, max_new_tokens=2)
    assert trace.totals["tokens_before"] == tiny.is_video(family, inputs["input_ids"]).sum()


def test_embeddings_that_hide_the_video_are_warned_of() -> None:
    model, inputs = tiny.model("llava_onevision"), tiny.prompt("llava_onevision")
    merged = by_hand.merge(model, inputs).embeddings[None]
    with attach(model, Loudest()) as trace, pytest.warns(UserWarning, match="without a video placeholder"):
        model.generate(inputs_embeds=merged, attention_mask=inputs["attention_mask"], max_new_tokens=2)
    assert not trace.videos


@each_family
def test_the_question_is_the_text_after_the_video(family: str) -> None:
    model, inputs = tiny.model(family), tiny.prompt(family)
    merged = by_hand.reduce(model, inputs, NearestToQuestion(), question=question_length(family))
    assert answer(model, inputs, NearestToQuestion()) == [by_hand.decode(model, merged, STEPS)[0]]
