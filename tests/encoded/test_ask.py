"""An encoded video answers as the model that sees the video does, with the same tokens kept; and its file."""

import copy
import inspect
import json
import math
import os
import pickle
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("torchvision", reason="transformers' video processors need torchvision")

import transformers
from safetensors.torch import load_file, save_file
from transformers.models.smolvlm import processing_smolvlm

from tests.engines.hf import processors, tiny
from tests.engines.hf.reducers import Loudest
from tests.engines.hf.test_replay import blind
from vidsieve.encoded.at_once import encode_frames
from vidsieve.encoded.video import EncodedVideo
from vidsieve.engines.hf import adapter_for, attach
from vidsieve.engines.hf.loading import prepare, prepare_turns
from vidsieve.errors import AlreadyAttached, UnsupportedCall, VidsieveError, WrongArgument
from vidsieve.methods.base import Reducer
from vidsieve.types.frames import Frames
from vidsieve.types.reduction import Reduction
from vidsieve.types.tokens import Prompt, VideoTokens

# GLM's processors make numpy arrays of torch tensors, of which numpy 2 warns.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
QUESTIONS = ["What moves?", "何が動きますか、そしてどこへ?", "Who, then?"]
GENERATE = {"max_new_tokens": 6, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}


@dataclass(frozen=True)
class Fixed(Reducer):
    """Keeps these tokens."""

    kept: torch.Tensor

    def reduce(self, tokens: VideoTokens, prompt: Prompt | None = None) -> Reduction:
        return Reduction.select(self.kept, len(tokens))


def frames(seed: int = 0, count: int = 8) -> Frames:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 255, (count, 96, 128, 3), generator=generator, dtype=torch.uint8)
    return Frames(pixels, tuple(range(count)), tuple(i / 2 for i in range(count)), 2.0, count, count / 2, f"{seed}.mp4")


def processor_of(family: str) -> Any:
    """A processor that tells the videos of a prompt and keeps all of their tokens."""
    processor = processors.processor(family)
    if family == "video_llama_3":  # would choose tokens by their pixels
        processor.video_processor.use_token_compression = False
    if family.startswith("glm"):  # tells videos from images by marks that this vocabulary has no room for
        processor.video_start_id, processor.video_end_id = tiny.TURN, tiny.END_OF_TURN
    return processor


class World:
    def __init__(self, family: str) -> None:
        self.model, self.processor, self.frames = tiny.model(family), processor_of(family), frames()
        self.encoded = encode_frames(self.model, self.processor, self.frames, Loudest())

    def both(self) -> tuple[Any, Any]:
        return self.model, self.processor

    def hooked(self, question: str, **options: Any) -> tuple[str, Any]:
        inputs = prepare(self.processor, self.frames, question)
        with attach(self.model, Loudest()):
            out = self.model.generate(**inputs, **GENERATE, **options)
        return self.text(out.sequences[:, inputs["input_ids"].shape[1] :]), torch.stack(out.logits)

    def text(self, ids: Any) -> str:
        return self.processor.batch_decode(ids, skip_special_tokens=True)[0].strip()


@pytest.fixture(scope="module", params=processors.EVERY)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    takes = inspect.signature(transformers.VideoLlavaProcessor.__call__).parameters
    if request.param == "video_llava" and "kwargs" not in takes:
        pytest.skip(
            "Video-LLaVA's processor of this release cannot be told the times of frames, with or without vidsieve"
        )
    with pytest.MonkeyPatch.context() as patch:
        # It spells the number of frames by an optional package.
        patch.setattr(processing_smolvlm, "num2words", str)
        yield World(request.param)


@pytest.fixture(scope="module")
def qwen() -> World:
    return World("qwen3_vl")


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
    turns = (QUESTIONS[0], "A 好 one.", QUESTIONS[2])
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

    monkeypatch.setattr("vidsieve.encoded.prompts._prompt", refused)
    for question, inputs in zip(QUESTIONS, expected, strict=True):
        found = encoded.inputs(*world.both(), question)
        assert found.keys() == inputs.keys()
        assert all(torch.equal(found[name], inputs[name]) for name in inputs)
    with pytest.raises(AssertionError):  # another processor may have another template
        encoded.inputs(world.model, copy.copy(world.processor), QUESTIONS[0])


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
    runs = adapter_for(world.model).layout == "runs"  # a reducer would take all frames of a prompt for one video
    reducer = Fixed(torch.cat([first, second + sum(world.encoded.tokens)])) if runs else Loudest()
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


def same(a: EncodedVideo, b: EncodedVideo) -> None:
    for name in ("kept", "features", "step", "segment", "lengths"):
        x, y = getattr(a.selection, name), getattr(b.selection, name)
        assert x.dtype == y.dtype, name
        assert torch.equal(x, y), name
    assert a.selection.others.keys() == b.selection.others.keys()
    assert all(torch.equal(x, b.selection.others[name]) for name, x in a.selection.others.items())
    assert torch.equal(a.trailing, b.trailing)
    assert (a.tokens, a.grid, a.fingerprint) == (b.tokens, b.grid, b.fingerprint)
    assert {k: v for k, v in vars(a.frames).items() if k != "pixels"} == {
        k: v for k, v in vars(b.frames).items() if k != "pixels"
    }
    assert a.frames.pixels.shape == b.frames.pixels.shape


def test_it_can_be_pickled_after_a_question(qwen: World) -> None:
    qwen.encoded.ask(*qwen.both(), QUESTIONS[0], max_new_tokens=2)
    same(qwen.encoded, pickle.loads(pickle.dumps(qwen.encoded)))


def test_it_comes_back_from_its_file(world: World, tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.vidsieve"
    world.encoded.save(path)
    loaded = EncodedVideo.load(path)
    same(world.encoded, loaded)
    assert [file.name for file in path.parent.iterdir()] == ["a.vidsieve"]
    asked = [one.ask(*world.both(), QUESTIONS[1], max_new_tokens=4) for one in (world.encoded, loaded)]
    assert asked[0] == asked[1]


def test_half_precision_and_all_that_a_selection_can_have_come_back(qwen: World, tmp_path: Path) -> None:
    selection = qwen.encoded.selection
    some = selection.rows.take(torch.arange(2))
    video = replace(
        qwen.encoded,
        selection=replace(
            selection,
            features=selection.features.bfloat16(),
            gains=torch.ones(1),
            floor=0.25,
            spare=some._replace(features=some.features.bfloat16()),
            capped=3,
        ),
    )
    video.save(tmp_path / "a")
    loaded = EncodedVideo.load(tmp_path / "a")
    same(video, loaded)
    found = loaded.selection
    assert (found.floor, found.capped, found.gains.tolist()) == (0.25, 3, [1.0])
    assert torch.equal(found.spare.features, some.features.bfloat16())
    assert torch.equal(found.spare.kept, some.kept)


def rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, str], dict[str, Any]], None]) -> None:
    """The file with other tensors, metadata or parts of its header, and a digest that fits them."""
    from vidsieve.encoded.file import _digest

    with path.open("rb") as file:
        metadata = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))["__metadata__"]
    tensors, video = load_file(path), json.loads(metadata["video"])
    change(tensors, metadata, video)
    if "video" in metadata:
        metadata["video"] = json.dumps(video)
        metadata["sha256"] = _digest(metadata["video"], tensors)
    save_file(tensors, path, metadata)


def _short(tensors: Any, metadata: Any, video: Any) -> None:
    tensors["features"] = tensors["features"][:-1].clone()


CHANGES: dict[str, tuple[Callable[..., Any], str]] = {
    "newer": (lambda t, m, v: m.update(format="2"), "is of format '2', newer than 1.*update vidsieve"),
    "older": (lambda t, m, v: m.update(format="0"), "is of format '0', older than 1.*encode the clip again"),
    "batch": (lambda t, m, v: (m.clear(), m.update(vidsieve="{}")), "a file of `vidsieve batch`"),
    "foreign": (lambda t, m, v: m.clear(), "expected an encoded video, and this is none"),
    "short": (_short, "is damaged.*features is F32"),
    "lacking": (lambda t, m, v: t.pop("step"), "is damaged.*step"),
    "unknown": (lambda t, m, v: t.update(more=torch.ones(1)), "is damaged.*more"),
    "dtype": (lambda t, m, v: t.update(kept=t["kept"].int()), "kept is I32"),
    "outside": (lambda t, m, v: t.update(segment=t["segment"] + 5), "tokens that the video has not"),
    "unsorted": (lambda t, m, v: t.update(kept=t["kept"].flip(0).contiguous()), "sorted, unique"),
    "count": (lambda t, m, v: v.update(original_count=7), "sum to"),
    "claim": (lambda t, m, v: v.update(tokens=[1], original_count=1), "keeps 2 of 1 tokens"),
    "type": (lambda t, m, v: v.update(tokens="many"), "expected a number of tokens"),
    "huge": (lambda t, m, v: v["frames"].update(shape=[8, 2**30, 2**30, 2**30]), "its frames are"),
    "size": (lambda t, m, v: v.update(size=[0, 5]), r"expected a height and a width, got \[0, 5\]"),
    "config": (lambda t, m, v: v["fingerprint"]["config"].update(a=1), "configuration is not the one"),
    "flat": (lambda t, m, v: v["frames"]["shape"].__setitem__(1, 0), "is damaged.*its frames are"),
    "timeless": (lambda t, m, v: v["frames"].update(seconds=[None] * 8), "is damaged.*expected a number, got None"),
    "endless": (lambda t, m, v: v["frames"].update(seconds=[math.inf] * 8), "is damaged.*expected a number, got inf"),
    "immense": (lambda t, m, v: v["frames"].update(fps=10**400), "is damaged.*expected a number"),
    "length": (lambda t, m, v: v["frames"].update(duration="long"), "is damaged.*expected a number, got 'long'"),
    "nameless": (lambda t, m, v: v["frames"].update(source=5), "is damaged.*expected the name of a clip, got 5"),
    "floor": (lambda t, m, v: v.update(floor="low"), "is damaged.*expected a number, got 'low'"),
    "deep": (lambda t, m, v: v.update(grid=json.loads("[" * 900 + "]" * 900)), "is damaged"),
}


@pytest.mark.parametrize(("change", "says"), CHANGES.values(), ids=CHANGES)
def test_a_file_that_is_none_is_told_in_a_line(qwen: World, tmp_path: Path, change: Any, says: str) -> None:
    path = tmp_path / "a"
    qwen.encoded.save(path)
    rewritten(path, lambda t, m, v: None)
    same(EncodedVideo.load(path), qwen.encoded)
    rewritten(path, change)
    with pytest.raises(VidsieveError, match=says) as caught:
        EncodedVideo.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_part_of_the_file_is_watched(qwen: World, tmp_path: Path) -> None:
    path = tmp_path / "a"
    qwen.encoded.save(path)
    data = path.read_bytes()
    for change in (b"", data[:7], data[:-1], data + b"x", data[:-5] + b"?????", b"x" * len(data)):
        path.write_bytes(change)
        with pytest.raises(VidsieveError, match="is damaged"):
            EncodedVideo.load(path)
    size = struct.unpack("<Q", data[:8])[0]
    for at in range(8, 8 + size, max(1, size // 150)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(VidsieveError):
            EncodedVideo.load(path)
    for path, says in ((tmp_path, "is a folder"), (tmp_path / "absent", "no such file"), (os.devnull, "is no file")):
        with pytest.raises(VidsieveError, match=f"{path}: {says}; expected an encoded video"):
            EncodedVideo.load(path)


def test_a_header_that_says_more_than_there_is_allocates_nothing(qwen: World, tmp_path: Path) -> None:
    path = tmp_path / "a"
    qwen.encoded.save(path)
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    header["features"]["shape"][0] = 2**50
    begin = header["features"]["data_offsets"][0]
    header["features"]["data_offsets"] = [begin, begin + 2**50 * 64 * 4]
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])
    with pytest.raises(VidsieveError, match="is damaged"):
        EncodedVideo.load(path)
    with path.open("wb") as file:  # a hole of 4 GiB where nothing was written
        rows = 2**24
        header = {"features": {"dtype": "F32", "shape": [rows, 64], "data_offsets": [0, rows * 256]}}
        text = json.dumps({"__metadata__": {"format": "1", "video": "{}"}, **header}).encode()
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + rows * 256)
    with pytest.raises(VidsieveError, match="is damaged"):
        EncodedVideo.load(path)


def test_a_write_that_fails_leaves_the_old_file(qwen: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    qwen.encoded.save(path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(VidsieveError, match=r"cannot write .*a \(No space left on device\)"):
        qwen.encoded.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(VidsieveError, match="is a folder"):
        qwen.encoded.save(tmp_path)


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
