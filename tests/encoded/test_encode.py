"""`vidsieve.encode` on a file: the answers of the hooked model, whatever the chunks, and few pixels at a time."""

import gc
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("torchvision", reason="transformers' video processors need torchvision")
pytest.importorskip("av", reason="reading a video file needs av")

from transformers.models.smolvlm import processing_smolvlm

import vidsieve
from tests.clips import write
from tests.encoded.worlds import Fixed, processor_of, same
from tests.engines.hf import processors, tiny
from tests.engines.hf.test_replay import blind
from vidsieve.cli import demo
from vidsieve.encoded import chunks as module
from vidsieve.encoded.chunks import encode_chunks, pinned
from vidsieve.encoded.until_decoder import decoder_arguments
from vidsieve.engines.hf.families import adapter_for
from vidsieve.engines.hf.loading import load, prepare
from vidsieve.errors import BudgetError, NonFiniteFeatures, UnsupportedCall, WrongArgument
from vidsieve.evaluation.needles import KINDS, generate
from vidsieve.methods import KCenter, Pixels, Staged
from vidsieve.methods.chunked import ChunkedPrune
from vidsieve.video import read_video

# Processors of GLM and MiniCPM make numpy arrays of torch tensors, of which numpy 2 warns.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
FRAMES = 23  # odd, so that the last token frame of some families is of one frame
QUESTIONS = ["What moves?", "何が動きますか"]
GREEDY = {"max_new_tokens": 6, "do_sample": False}


def drawn(number: int, height: int, width: int) -> np.ndarray:
    """Scenes of seven frames with grain: of tokens that are all but equal, rounding would choose."""
    scene = np.random.default_rng(number // 7).integers(0, 200, (height // 8, width // 8, 3))
    grain = np.random.default_rng(1000 + number).integers(0, 50, (height, width, 3))
    return (scene.repeat(8, 0).repeat(8, 1) + grain).astype(np.uint8)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("video") / "clip.mp4", count=60, draw=drawn)


@pytest.fixture(scope="module", params=processors.EACH)
def both(request: pytest.FixtureRequest) -> Iterator[tuple[Any, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processing_smolvlm, "num2words", str)  # it spells the number of frames by an optional package
        processor = processor_of(request.param)
        processors.skip_unless_told_of_frames(processor)
        yield tiny.model(request.param), processor


@pytest.fixture(params=processors.FAMILIES)
def before(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """Of families whose tower may compute fewer groups of pixels."""
    return tiny.model(request.param), processor_of(request.param)


@pytest.fixture
def internvl() -> tuple[Any, Any]:
    return tiny.fresh("internvl"), processor_of("internvl")


def test_the_answers_are_those_of_the_hooked_model(both: tuple[Any, Any], clip: Path, tmp_path: Path) -> None:
    model, processor = both
    encoded = vidsieve.encode(model, processor, clip, 0.25, num_frames=FRAMES, chunk=6)
    kept, total = encoded.selection.kept, sum(encoded.tokens)
    assert len(kept) == round(0.25 * total)
    frames, expected = read_video(clip, num_frames=FRAMES), []
    for question in QUESTIONS:
        inputs = prepare(processor, frames, question)
        with vidsieve.attach(model, Fixed(kept)) as trace:
            out = model.generate(**inputs, **GREEDY)
        assert sum(video.before for video in trace.videos) == total
        text = processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        expected.append(text[0].strip())
    encoded.save(tmp_path / "a.vidsieve")
    loaded = vidsieve.EncodedVideo.load(tmp_path / "a.vidsieve")
    same(encoded, loaded)
    with blind(model):
        assert encoded.ask(model, processor, QUESTIONS, **GREEDY) == expected
        assert [loaded.ask(model, processor, question, **GREEDY) for question in QUESTIONS] == expected


def test_which_tokens_stay_depends_neither_on_chunks_nor_on_a_later_cut(both: tuple[Any, Any], clip: Path) -> None:
    whole = vidsieve.encode(*both, clip, 0.4, num_frames=FRAMES, chunk=16)
    for chunk in (2, 6):
        found = vidsieve.encode(*both, clip, 0.4, num_frames=FRAMES, chunk=chunk)
        assert torch.equal(found.selection.kept, whole.selection.kept)
        torch.testing.assert_close(found.selection.features, whole.selection.features, rtol=0, atol=1e-5)
        assert (found.tokens, found.grid, found.fingerprint) == (whole.tokens, whole.grid, whole.fingerprint)
    cut, less = whole.at(0.1), vidsieve.encode(*both, clip, 0.1, num_frames=FRAMES, chunk=6)
    assert len(cut.selection) == round(0.1 * sum(whole.tokens))
    assert torch.equal(cut.selection.kept, less.selection.kept)
    assert cut.fingerprint == less.fingerprint
    assert cut.ask(*both, QUESTIONS[0], **GREEDY) == less.ask(*both, QUESTIONS[0], **GREEDY)
    with pytest.raises(BudgetError, match="are held; select with a larger keep"):
        whole.at(0.5)


@torch.no_grad()
@pytest.mark.parametrize("size", [2, 6, FRAMES + 1])
def test_fewer_groups_of_pixels_are_those_of_a_selector_that_sees_the_chunk(
    before: tuple[Any, Any], clip: Path, size: int
) -> None:
    model, processor = before
    frames, selector = read_video(clip, num_frames=FRAMES), KCenter(0.5)
    found = list(encode_chunks(model, processor, frames, size, pixels=selector))
    assert sum(len(chunk.features) for chunk in found) == found[0].total
    begin = 0
    for chunk in found:
        part = frames.part(begin, begin := min(begin + size, FRAMES))
        inputs = prepare(pinned(model, processor, frames)[0], part, QUESTIONS[0])
        with Staged({Pixels(): selector})(model) as trace:
            given = decoder_arguments(model, inputs)
        [selection] = trace.pixels
        assert len(selection) < len(selection.source) or len(part) <= 2  # of a token frame all are computed
        at = inputs["input_ids"][0] == getattr(model.config, adapter_for(model).token)
        embeds = given["inputs_embeds"][0, at][: len(chunk.features)]  # a lone frame may be there twice
        torch.testing.assert_close(chunk.features, embeds, rtol=0, atol=1e-5)


def test_a_video_of_fewer_groups_of_pixels_says_so(before: tuple[Any, Any], clip: Path) -> None:
    model, processor = before
    every = vidsieve.encode(model, processor, clip, 0.25, num_frames=FRAMES, chunk=6)
    half = vidsieve.encode(model, processor, clip, 0.25, pixels=0.25, num_frames=FRAMES, chunk=6)
    all_of_them = vidsieve.encode(model, processor, clip, 0.25, pixels=1, num_frames=FRAMES, chunk=6)
    assert half.fingerprint.method == f"{every.fingerprint.method} after KCenter(keep=0.25, holds_keys=True)"
    assert half.at(0.1).fingerprint.method.endswith("after KCenter(keep=0.25, holds_keys=True)")
    assert len(half.selection.kept) == len(every.selection.kept)
    assert half.ask(model, processor, QUESTIONS[0], **GREEDY)
    assert torch.equal(all_of_them.selection.kept, every.selection.kept)
    torch.testing.assert_close(all_of_them.selection.features, every.selection.features, rtol=0, atol=1e-5)
    for wrong in (0, 1.5, "half"):
        with pytest.raises((ValueError, WrongArgument), match="keep"):
            vidsieve.encode(model, processor, clip, 0.25, pixels=wrong, num_frames=FRAMES)


def test_a_tower_that_takes_no_fewer_groups_is_refused_before_anything_is_decoded(clip: Path) -> None:
    model, processor = tiny.fresh("smolvlm"), processor_of("qwen2_5_vl")
    with pytest.raises(UnsupportedCall, match="a selector cannot act before the vision tower of SmolVLM"):
        vidsieve.encode(model, processor, clip, 0.25, pixels=0.5, num_frames=FRAMES)


def test_few_chunks_of_pixels_are_alive_at_a_time(
    internvl: tuple[Any, Any], clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = internvl
    alive = {"decoded": weakref.WeakSet[Any](), "processed": weakref.WeakSet[Any]()}
    most = dict.fromkeys(alive, 0)
    came = 0

    def watch(kind: str, tensor: Any) -> None:
        alive[kind].add(tensor.untyped_storage())
        most[kind] = max(most[kind], len(alive[kind]))

    def reading(*args: Any, **kwargs: Any) -> Iterator[Any]:
        nonlocal came
        for chunk in read(*args, **kwargs):
            came += 1
            watch("decoded", chunk.pixels)
            yield chunk
            del chunk

    def preparing(*args: Any) -> Any:
        inputs = make(*args)
        if not inputs["pixel_values"].is_meta:
            watch("processed", inputs["pixel_values"])
        return inputs

    read, make = module.read_chunks, module.prepare
    monkeypatch.setattr(module, "read_chunks", reading)
    monkeypatch.setattr(module, "prepare", preparing)
    vidsieve.encode(model, processor, clip, 0.25, num_frames=60, chunk=2)
    assert came == 31  # the first has one frame
    # One is being made, some wait, one is being used.
    assert most["decoded"] <= 4
    assert most["processed"] <= 3
    assert not [*alive["decoded"], *alive["processed"]]


def test_a_failure_leaves_the_model_free_at_once(internvl: tuple[Any, Any], clip: Path) -> None:
    model, processor = internvl
    hook = model.base_model.multi_modal_projector.register_forward_hook(lambda *args: args[-1] * float("nan"))
    with pytest.raises(NonFiniteFeatures) as caught:
        vidsieve.encode(model, processor, clip, 0.25, num_frames=40, chunk=2)
    hook.remove()
    assert caught.value.__traceback__ is not None  # as a notebook keeps it
    encoded = vidsieve.encode(model, processor, clip, 0.25, num_frames=4, chunk=2)
    assert len(encoded.selection) == round(0.25 * sum(encoded.tokens))


@pytest.mark.parametrize(
    "fails", [(module._Chunks, "__call__"), (ChunkedPrune, "add")], ids=["processing", "selection"]
)
def test_a_failure_frees_its_memory_before_garbage_is_collected(
    internvl: tuple[Any, Any], clip: Path, fails: tuple[Any, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[Any] = []

    def out_of_memory(self: Any, *args: Any) -> None:
        pixels = torch.zeros(1)
        held.append(weakref.ref(pixels))
        raise MemoryError

    monkeypatch.setattr(*fails, out_of_memory)
    gc.disable()  # it may come late, and the next clip of a folder needs the memory
    try:
        with suppress(MemoryError):
            vidsieve.encode(*internvl, clip, 0.25, num_frames=4, chunk=2)
        assert [ref() for ref in held] == [None]
    finally:
        gc.enable()


def test_progress_counts_to_the_last_frame(internvl: tuple[Any, Any], clip: Path) -> None:
    told: list[vidsieve.encoded.Progress] = []
    vidsieve.encode(*internvl, clip, num_frames=FRAMES, chunk=6, progress=told.append)
    assert [(one.frames, one.total) for one in told] == [(count, FRAMES) for count in (2, 8, 14, 20, 23)]
    assert told[-1].seconds_left == 0 < told[0].seconds_left


def test_a_processor_that_chooses_tokens_by_their_pixels_is_refused(clip: Path) -> None:
    processor = processor_of("video_llama_3")
    processor.video_processor.use_token_compression = True
    with pytest.raises(UnsupportedCall, match="use_token_compression"):
        vidsieve.encode(tiny.model("video_llama_3"), processor, clip, 0.25, num_frames=8)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"chunk": 0}, "chunk is a whole number of frames"),
        ({"keep": 0}, "keep is the fraction"),
        ({"method": "cdpruner"}, "needs the whole video or a prompt"),
        ({"method": "fastv"}, "does not reduce before the language model alone; expected a Prune"),
        ({"num_frames": 4, "fps": 1.0}, "give one of num_frames, fps"),
        ({"processor": None}, "expected the model's processor, with a video processor, got None"),
        ({"clip": "absent.mp4"}, "absent.mp4: no such file"),
    ],
)
def test_what_cannot_be_is_refused(internvl: tuple[Any, Any], clip: Path, options: dict[str, Any], says: str) -> None:
    model, processor = internvl
    given = {"processor": processor, "clip": clip, **options}
    with pytest.raises((ValueError, TypeError, OSError), match=says) as caught:
        vidsieve.encode(model, given.pop("processor"), given.pop("clip"), **given)
    assert "\n" not in str(caught.value)


def test_the_bundled_model_answers_from_a_stored_clip_as_it_does_hooked(tmp_path: Path) -> None:
    processor, model = load(demo.BUNDLED, "cpu", bar=False)
    clip = demo.render_clip(tmp_path / "clip.mp4")
    encoded = vidsieve.encode(model, processor, clip, 0.1, num_frames=demo.FRAMES)
    asked = generate(demo.SPLIT, [demo.NUMBER]).questions
    questions = [asked.text(0, number) for number in range(len(KINDS))]
    frames, expected = read_video(clip, num_frames=demo.FRAMES), []
    for question in questions:
        inputs = prepare(processor, frames, question)
        with vidsieve.attach(model, Fixed(encoded.selection.kept)):
            out = model.generate(**inputs, max_new_tokens=16, do_sample=False)
        text = processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        expected.append(text[0].strip())
    assert encoded.ask(model, processor, questions, max_new_tokens=16, do_sample=False) == expected
    assert expected == [asked.reply(0, number) for number in range(len(KINDS))]
