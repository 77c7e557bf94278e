"""An encoded video answers as the model that sees the video does, with the same tokens kept."""

import copy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("torchvision", reason="transformers' video processors need torchvision")

import transformers

from tests.encoded.worlds import GENERATE, QUESTIONS, Fixed, World, frames, qwen, side_by_side, world
from tests.engines.hf import processors, tiny
from tests.engines.hf.reducers import Loudest
from tests.engines.hf.test_replay import blind
from vidsieve.encoded import written
from vidsieve.encoded.at_once import encode_frames
from vidsieve.engines.hf import adapter_for, attach
from vidsieve.engines.hf.loading import prepare, prepare_turns
from vidsieve.errors import AlreadyAttached, UnsupportedCall, WrongArgument

# Processors of GLM and MiniCPM make numpy arrays of torch tensors, of which numpy 2 warns.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
__all__ = ["qwen", "world"]  # fixtures


def test_each_question_and_all_in_one_batch_get_the_hooked_answer(world: World) -> None:
    expected = [world.hooked(question) for question in QUESTIONS]
    encoded = world.encoded
    assert len({answer for answer, _ in expected}) > 1
    with blind(world.model):
        asked = [encoded.ask(*world.both(), question, max_new_tokens=6) for question in QUESTIONS]
        together = encoded.ask(*world.both(), QUESTIONS, max_new_tokens=6)
        for question, (_, logits) in zip(QUESTIONS, expected, strict=True):
            with encoded.on(world.model):
                out = world.model.generate(**encoded.inputs(*world.both(), question), **GENERATE)
            torch.testing.assert_close(torch.stack(out.logits), logits, atol=1e-4, rtol=0)
    assert asked == together == [answer for answer, _ in expected]


def test_the_prompt_has_the_kept_tokens_alone_and_no_pixels(world: World) -> None:
    inputs = world.encoded.inputs(*world.both(), QUESTIONS[0])
    assert set(inputs) == {"input_ids", "attention_mask", "position_ids"}
    whole = prepare(world.processor, world.frames, QUESTIONS[0])["input_ids"]
    dropped = sum(world.encoded.tokens) - len(world.encoded.selection)
    assert inputs["input_ids"].shape[1] == whole.shape[1] - dropped
    assert world.encoded.frames.pixels.is_meta
    positions = inputs["position_ids"]
    if len(positions) == 4:  # the first row tells samples apart, and must have no gap
        assert torch.equal(positions[0, 0], torch.arange(positions.shape[-1]))


def test_a_second_turn_follows_the_first(world: World) -> None:
    turns = (QUESTIONS[0], "A 好 one" + 50 * ".", QUESTIONS[2])
    inputs = prepare_turns(world.processor, [world.frames], turns)
    with attach(world.model, Loudest()):
        out = world.model.generate(**inputs, max_new_tokens=6, do_sample=False)
    expected = world.text(out[:, inputs["input_ids"].shape[1] :])
    history = [(turns[0], turns[1])]
    assert world.encoded.ask(*world.both(), turns[2], history, max_new_tokens=6) == expected
    assert world.encoded.ask(*world.both(), turns[2], max_new_tokens=6) != expected


def test_what_comes_before_a_question_is_made_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = world.encoded + world.encoded
    encoded.inputs(*world.both(), QUESTIONS[0])
    expected = [(world.encoded + world.encoded).inputs(*world.both(), question) for question in QUESTIONS]

    def refused(*_: Any) -> None:
        raise AssertionError("the whole video was asked about again")

    monkeypatch.setattr("vidsieve.encoded.written.write", refused)
    if world.model.config.model_type == "minicpmv4_7":  # the mark after a video has a place of its own
        with pytest.raises(AssertionError):
            encoded.inputs(*world.both(), QUESTIONS[1])
        return
    for question, inputs in zip(QUESTIONS, expected, strict=True):
        found = encoded.inputs(*world.both(), question)
        assert found.keys() == inputs.keys()
        assert all(torch.equal(found[name], inputs[name]) for name in inputs)
    with pytest.raises(AssertionError):  # another processor may have another template
        encoded.inputs(world.model, copy.copy(world.processor), QUESTIONS[0])


@pytest.mark.parametrize("pair", [False, True], ids=["one", "two videos"])
def test_a_long_prompt_is_repeated_instead_of_spelled_out(
    world: World, pair: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = world.encoded + encode_frames(*world.both(), frames(1), Loudest()) if pair else world.encoded
    expected = shown.inputs(*world.both(), QUESTIONS[0])
    for video in (shown, *shown.videos):
        video.__dict__.pop("_prompts", None)
    token, written_out = getattr(world.model.config, adapter_for(world.model).token), []

    def prepare_turns(processor: Any, videos: Any, turns: Any) -> Any:
        made = write(processor, videos, turns)
        written_out.append(int((made["input_ids"] == token).sum()))
        return made

    write = written.prepare_turns
    monkeypatch.setattr(written, "LONG", 0)
    monkeypatch.setattr(written, "prepare_turns", prepare_turns)
    found = shown.inputs(*world.both(), QUESTIONS[0])
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], x) for name, x in expected.items())
    unreduced = sum(len(video.stays) for video in shown.videos)
    # VideoLLaMA 3 has a mask of what it would compress beside them, which is not repeated.
    known = adapter_for(world.model).layout == "grid" and world.model.config.model_type != "video_llama_3"
    assert (unreduced in written_out) != known


def test_a_processor_that_names_its_merge_otherwise_spells_prompts_out(
    qwen: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    spelled_out = {"input_ids": torch.arange(9)[None]}
    monkeypatch.setattr(written, "prepare_turns", lambda *_: spelled_out)
    processor = SimpleNamespace(video_processor=SimpleNamespace(patch_size=14, spatial_merge_size=2))
    long = written.LONG + 1
    assert written.write(qwen.model, processor, [qwen.frames], [(2, 2)], long, QUESTIONS[:1]) == spelled_out


def test_a_template_that_has_changed_is_the_one_that_is_used(world: World) -> None:
    encoded, (model, processor) = world.encoded + world.encoded, world.both()
    encoded.inputs(model, processor, QUESTIONS[0])  # from here on, only the words are made anew
    template = processor.chat_template
    try:
        processor.chat_template = "What " + template  # before the videos
        found, expected = (one.inputs(model, processor, "Who?") for one in (encoded, world.encoded + world.encoded))
    finally:
        processor.chat_template = template
    assert torch.equal(found["input_ids"], expected["input_ids"])


def test_two_videos_are_shown_in_one_prompt(world: World) -> None:
    other = frames(seed=1, count=12 if world.model.config.model_type.startswith("qwen") else 8)
    inputs = prepare_turns(world.processor, [world.frames, other], QUESTIONS[:1])
    both = world.encoded + encode_frames(*world.both(), other, Loudest())
    first, second = (video.selection.kept for video in both.videos)
    one = side_by_side(world.model)
    reducer = Fixed(torch.cat([first, second + sum(world.encoded.tokens)])) if one else Loudest()
    with attach(world.model, reducer):
        out = world.model.generate(**inputs, **GENERATE)
    with blind(world.model), both.on(world.model):
        found = world.model.generate(**both.inputs(*world.both(), QUESTIONS[0]), **GENERATE)
    torch.testing.assert_close(torch.stack(found.logits), torch.stack(out.logits), atol=1e-4, rtol=0)
    assert len((both + world.encoded).videos) == 3
    with pytest.raises(TypeError):
        world.encoded + 1  # type: ignore[operator]


def test_it_streams(qwen: World) -> None:
    class Heard(transformers.generation.streamers.BaseStreamer):
        def __init__(self) -> None:
            self.ids: list[int] = []

        def put(self, value: torch.Tensor) -> None:
            self.ids += value.flatten().tolist()

        def end(self) -> None:
            self.ended = True

    heard = Heard()
    answer = qwen.encoded.ask(*qwen.both(), QUESTIONS[0], max_new_tokens=6, streamer=heard)
    assert heard.ended
    assert qwen.processor.decode(heard.ids[-6:], skip_special_tokens=True).strip() == answer


@pytest.mark.parametrize("question", ["", [], ["What?", None], 5, {"a": 1}], ids=repr)
def test_what_is_no_question_is_refused(qwen: World, question: Any) -> None:
    with pytest.raises(WrongArgument, match="expected a question"):
        qwen.encoded.ask(*qwen.both(), question)


def test_several_answers_are_not_for_ask(qwen: World) -> None:
    for more in ({"num_return_sequences": 2}, {"return_dict_in_generate": True}):
        with pytest.raises(UnsupportedCall, match=r"within encoded\.on\(model\)"):
            qwen.encoded.ask(*qwen.both(), "What?", **more)


def test_the_positions_are_asked_without_a_trace(qwen: World) -> None:
    body = qwen.model.base_model
    body.rope_deltas = mark = torch.tensor([[7]])
    qwen.encoded.inputs(*qwen.both(), "What?")
    assert body.rope_deltas is mark
    with qwen.encoded.on(qwen.model):
        qwen.encoded.inputs(*qwen.both(), "What?")
        with pytest.raises(AlreadyAttached):
            qwen.encoded.ask(*qwen.both(), "What?")


def test_another_model_or_processor_is_refused(qwen: World) -> None:
    with pytest.raises(WrongArgument, match="encoded by a qwen3_vl, and this is a internvl"):
        qwen.encoded.ask(tiny.model("internvl"), qwen.processor, "What?")
    changed = tiny.fresh("qwen3_vl")
    changed.config.text_config.rms_norm_eps = 1e-3
    with pytest.raises(WrongArgument, match=r"text_config.rms_norm_eps is 1e-06, and here it is 0.001"):
        qwen.encoded.on(changed)
    other = processors.processor("qwen3_vl")
    other.video_processor.size = {"shortest_edge": 32 * 32 * 4, "longest_edge": 32 * 32 * 400}
    with pytest.raises(UnsupportedCall, match=r"makes \d+ visual tokens of 0.mp4, which was encoded as \d+"):
        qwen.encoded.inputs(qwen.model, other, "What?")


def test_an_unknown_order_of_picks_is_not_cut(qwen: World) -> None:
    with pytest.raises(UnsupportedCall, match="not known, so it cannot be cut"):
        qwen.encoded.at(0.1)


def test_a_known_order_is(qwen: World) -> None:
    selection = qwen.encoded.selection
    count = len(selection)
    known = replace(qwen.encoded, selection=replace(selection, step=torch.arange(count, dtype=torch.int32).flip(0)))
    half = known.at(count / 2 / sum(known.tokens))
    assert torch.equal(half.selection.kept, selection.kept[-(count // 2) :])
    assert half.fingerprint.keep == count / 2 / sum(known.tokens)
    assert half.ask(*qwen.both(), "What?", max_new_tokens=3) != ""


def test_parts_that_do_not_belong_together_are_refused(qwen: World) -> None:
    encoded = qwen.encoded
    with pytest.raises(WrongArgument, match="expected a selection of 1 tokens"):
        replace(encoded, tokens=(1,))
    with pytest.raises(WrongArgument, match=r"expected trailing \(t, 64\)"):
        replace(encoded, trailing=torch.zeros(1, 3))
    with pytest.raises(WrongArgument, match="sorted, unique and within"):
        replace(encoded, selection=replace(encoded.selection, kept=encoded.selection.kept.flip(0)))
    with pytest.raises(WrongArgument, match="expected videos that one model encoded"):
        encoded + World("qwen2_5_vl").encoded
