"""What else a prompt may hold: images, more videos, rows of text, embeddings, a question."""

import pytest
import torch

from tests.models import by_hand, tiny
from tests.models.reducers import Loudest, NearestToQuestion
from tests.models.truth import BY_HAND, STEPS, answer, each_family, question_length, truth
from vidsieve.models import attach


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


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "llava_onevision"])
def test_a_row_of_text_beside_a_row_of_video(family: str) -> None:
    model, video = tiny.model(family), tiny.prompt(family)
    ids = torch.tensor([[7, 8, 9, 10]])
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    expected = model.generate(**text, max_new_tokens=STEPS)[0, 4:].tolist()
    if "mm_token_type_ids" in video:
        text["mm_token_type_ids"] = torch.zeros_like(ids)
    assert answer(model, tiny.batch(video, text)) == [truth(family, video), expected]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_text_alone_is_untouched(family: str) -> None:
    model, ids = tiny.model(family), torch.tensor([[7, 8, 9, 10]])
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    expected = model.generate(**text, max_new_tokens=3)
    with attach(model, Loudest()) as trace:
        assert torch.equal(model.generate(**text, max_new_tokens=3), expected)
    assert str(trace) == "no video tokens seen"


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
