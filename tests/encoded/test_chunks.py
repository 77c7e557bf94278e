"""A video encoded in chunks has the features of the whole, from threads that overlap, fail once and never stay."""

import gc
import itertools
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("torchvision", reason="transformers' video processors need torchvision")
pytest.importorskip("av", reason="reading a video file needs av")

import vidsieve
from tests.clips import write
from tests.engines.hf import newer, processors, tiny
from tests.engines.hf.reducers import Loudest
from vidsieve.encoded.chunks import FeatureChunk, _Chunks, _split, by_frame, encode_chunks, pinned
from vidsieve.engines.hf import families, register
from vidsieve.engines.hf.families import adapter_for
from vidsieve.engines.hf.loading import prepare
from vidsieve.errors import AlreadyAttached, UnsupportedModel, VideoError, WrongArgument
from vidsieve.stages import Stages
from vidsieve.video import plan_video, read_video, scaling

# Processors of GLM and MiniCPM make numpy arrays of torch tensors, of which numpy 2 warns.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

KIND = {
    "qwen2_vl": "qwen2_5_vl",
    "qwen3_vl_moe": "qwen3_vl",
    "qwen3_5": "qwen3_vl",
    "qwen3_5_moe": "qwen3_vl",
    "glm4v_moe": "glm4v",
}
QUICK = ("cosmos3_omni", "muse_glimmer")  # of newer.py: the others are compared by `make test-matrix`
FRAMES = 23  # an odd number; the last chunk of 6 is odd too, and after one of 22 a frame is left alone


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("video") / "clip.mp4", count=60)


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    def made(family: str) -> Any:
        if family == "smolvlm":  # which spells the number of frames by an optional package
            import transformers.models.smolvlm.processing_smolvlm as module

            monkeypatch.setattr(module, "num2words", str)
        processor = processors.processor(KIND.get(family, family))
        processors.skip_unless_told_of_frames(processor)
        if family == "video_llama_3":
            processor.video_processor.use_token_compression = False
        return processor

    return made


def whole(model: Any, processor: Any, clip: Path) -> tuple[dict[str, Any], Tensor, Any]:
    """What the decoder is given of the whole video, where its tokens are, and the processor's inputs."""
    inputs = prepare(processor, read_video(clip, num_frames=FRAMES), "What happens?")
    given: dict[str, Any] = {}
    hook = model.get_decoder().register_forward_pre_hook(lambda _, __, kwargs: given.update(kwargs), with_kwargs=True)
    with torch.no_grad():
        model(**inputs)
    hook.remove()
    at = (inputs["input_ids"][0] == getattr(model.config, adapter_for(model).token)).nonzero().flatten()
    return given, at, inputs


def joined(chunks: list[FeatureChunk]) -> FeatureChunk:
    names = chunks[0].others
    return FeatureChunk(
        torch.cat([chunk.features for chunk in chunks]),
        sum((chunk.tokens for chunk in chunks), ()),
        chunks[0].grid,
        {name: torch.cat([chunk.others[name] for chunk in chunks], 1) for name in names},
        torch.cat([chunk.trailing for chunk in chunks]),
        chunks[0].total,
    )


@pytest.mark.parametrize(
    "family",
    [*tiny.FIRST, *(pytest.param(f, marks=() if f in QUICK else tiny.marks(f)) for f in processors.NEWER)],
)
def test_chunks_have_the_features_of_the_whole(family: str, clip: Path, make: Callable[[str], Any]) -> None:
    model, processor = tiny.model(family), make(family)
    given, at, inputs = whole(model, processor, clip)
    planned = plan_video(clip, num_frames=FRAMES)
    for size, first, count in ((6, None, 4), (22, None, 2), (8, 2, 4)):
        chunks = list(encode_chunks(model, processor, planned, size, first=first))
        assert len(chunks) == count
        assert first is None or 3 * len(chunks[0].features) < len(chunks[1].features)
        one = joined(chunks)
        assert one.total == len(one.features)
        rows, expected = torch.cat([one.features, one.trailing]), given["inputs_embeds"][0, at]
        if size == 6:
            assert torch.equal(rows, expected) or family not in tiny.FIRST
        torch.testing.assert_close(
            rows, expected, rtol=0, atol=1e-5
        )  # products of few rows are summed in another order
        assert len(one.trailing) == len(chunks[-1].trailing) == adapter_for(model).trailing
        deepstack = given.get("deepstack_visual_embeds")
        assert (deepstack is not None) == ("deepstack_visual_embeds" in one.others)
        if deepstack is not None:
            stacked = torch.stack(list(deepstack))
            torch.testing.assert_close(one.others["deepstack_visual_embeds"], stacked, rtol=0, atol=1e-5)
        with vidsieve.attach(model, Loudest(0.5)) as trace, torch.no_grad():
            model(**inputs)
        [video] = trace.videos
        assert (one.tokens, one.grid) == (video.frames, video.grid)
        assert all(sum(chunk.tokens) == len(chunk.features) for chunk in chunks)


@pytest.mark.parametrize("kind", processors.EACH)
def test_chunks_have_the_pixels_of_the_whole(kind: str, clip: Path, make: Callable[[str], Any]) -> None:
    processor, model = make(kind), tiny.model(kind)
    frames = read_video(clip, num_frames=FRAMES)
    expected = prepare(processor, frames, "?")
    name = "pixel_values_videos" if "pixel_values_videos" in expected else "pixel_values"
    along = -1 if "target_sizes_videos" in expected else 1 if expected[name].ndim == 5 else 0
    process = _Chunks(adapter_for(model), model, processor, frames, by_frame(model, processor)[1])
    made = [process(chunk)[0][name] for chunk in _split(frames, 6)]
    assert torch.equal(torch.cat(made, along), expected[name])


@pytest.mark.parametrize("kind", [one for one in ("qwen3_vl", "glm5_next") if newer.exists(one) or one in tiny.FIRST])
def test_a_pinned_processor_makes_what_it_made_of_the_frames_it_was_pinned_to(
    kind: str, clip: Path, make: Callable[[str], Any]
) -> None:
    model, processor, frames = tiny.model(kind), make(kind), read_video(clip, num_frames=FRAMES)
    expected, [short, *_] = prepare(processor, frames, "?"), list(_split(frames, 6))
    like, size = pinned(model, processor, frames)
    made = prepare(like, short, "?")
    assert torch.equal(made["pixel_values_videos"], expected["pixel_values_videos"][: len(made["pixel_values_videos"])])
    assert made["video_grid_thw"][0, 1:].tolist() == expected["video_grid_thw"][0, 1:].tolist()
    assert pinned(model, like, short)[1] == size
    assert prepare(processor, short, "?")["video_grid_thw"][0, 1:].tolist() != made["video_grid_thw"][0, 1:].tolist()


def test_chunks_of_decoded_frames(clip: Path, make: Callable[[str], Any]) -> None:
    model, processor = tiny.model("qwen3_vl"), make("qwen3_vl")
    planned = joined(list(encode_chunks(model, processor, plan_video(clip, num_frames=FRAMES), 6)))
    decoded = joined(list(encode_chunks(model, processor, read_video(clip, num_frames=FRAMES), 6)))
    assert torch.equal(planned.features, decoded.features)


def test_a_chunk_has_the_size_of_the_whole_video(clip: Path, make: Callable[[str], Any]) -> None:
    processor = make("qwen3_vl")
    alone = prepare(processor, read_video(clip, num_frames=4), "?")["video_grid_thw"][0, 1:].tolist()
    together = prepare(processor, read_video(clip, num_frames=FRAMES), "?")["video_grid_thw"][0, 1:].tolist()
    assert alone != together  # or the size need not be given
    for chunk in encode_chunks(tiny.model("qwen3_vl"), processor, plan_video(clip, num_frames=FRAMES), 4):
        assert chunk.grid == tuple(side // 2 for side in together)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
@pytest.mark.parametrize("vision", ["auto", "packed", "stock"])
def test_the_tower_is_the_one_that_was_asked_for(
    family: str, vision: str, clip: Path, make: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.model(family)
    asked: list[Any] = []
    attach = vidsieve.attach
    monkeypatch.setattr(
        "vidsieve.encoded.chunks.attach", lambda *args, **kwargs: asked.append(attach(*args, **kwargs)) or asked[-1]
    )
    chunks = encode_chunks(model, make(family), plan_video(clip, num_frames=4), 2, vision=vision)  # type: ignore[arg-type]
    if (family, vision) == ("llava_onevision", "packed"):
        with pytest.raises(vidsieve.errors.UnsupportedCall, match="vision='packed' cannot be"):
            next(chunks)
        return
    next(chunks)
    expected = "stock" if vision == "stock" or family == "llava_onevision" else "packed"
    assert asked[0].trace.tower.startswith(expected)
    with pytest.raises(AlreadyAttached):
        vidsieve.attach(model, Loudest(0.5))
    chunks.close()  # type: ignore[attr-defined]
    vidsieve.attach(model, Loudest(0.5)).remove()


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "vidsieve-stage"]


def test_a_closed_iterator_leaves_no_thread(clip: Path, make: Callable[[str], Any]) -> None:
    for taken in (1, 3):
        chunks = encode_chunks(tiny.model("internvl"), make("internvl"), plan_video(clip, num_frames=40), 2)
        for _ in range(taken):
            next(chunks)
        assert len(threads()) == 2
        chunks.close()  # type: ignore[attr-defined]
        assert threads() == []


def test_what_interrupts_the_caller_leaves_no_thread(clip: Path, make: Callable[[str], Any]) -> None:
    model = tiny.model("internvl")

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    hook = model.get_decoder().register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        list(encode_chunks(model, make("internvl"), plan_video(clip, num_frames=40), 2))
    hook.remove()
    assert threads() == []
    assert len(list(encode_chunks(model, make("internvl"), plan_video(clip, num_frames=4), 2))) == 2


def test_an_encode_that_fails_closes_its_file(
    clip: Path, make: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_files() -> list[str]:
        folder = Path("/proc/self/fd")
        return [link for file in folder.iterdir() if (link := _target(file)) == str(clip)]

    model = tiny.model("internvl")
    monkeypatch.setattr("vidsieve.encoded.chunks.decoder_arguments", _fail)
    chunks = encode_chunks(model, make("internvl"), plan_video(clip, num_frames=40), 2)
    gc.disable()
    try:
        with pytest.raises(VideoError, match="the tower") as kept:  # with its traceback
            next(iter(chunks))
        assert open_files() == []
        assert kept.value
    finally:
        gc.enable()


def _target(file: Path) -> str:
    try:
        return os.readlink(file)
    except OSError:  # that of the folder itself
        return ""


def _fail(*_: Any) -> None:
    raise VideoError("the tower fails")


@pytest.mark.parametrize("stage", ["decode", "process"])
def test_an_error_of_a_thread_is_raised_once_after_the_chunks_before_it(
    stage: str, clip: Path, make: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor, calls = tiny.model("internvl"), make("internvl"), itertools.count()

    def fail() -> None:
        if next(calls) == 5:
            raise MemoryError("no room")

    def failing(*args: Any) -> Any:
        fail()
        return prepare(*args)

    if stage == "process":
        monkeypatch.setattr("vidsieve.encoded.chunks.prepare", failing)
    else:
        scale = scaling.Scaling.__call__
        monkeypatch.setattr(scaling.Scaling, "__call__", lambda *args: (fail(), scale(*args))[1])
    chunks = encode_chunks(model, processor, plan_video(clip, num_frames=40), 2)
    came: list[FeatureChunk] = []
    with pytest.raises(MemoryError, match="no room"):
        came.extend(iter(chunks))
    assert len(came) == (2 if stage == "decode" else 4)  # the whole is asked about once, and each chunk
    assert threads() == []
    assert list(chunks) == []
    vidsieve.attach(model, Loudest(0.5)).remove()


def test_faults_of_the_file_are_warnings_to_the_caller(
    clip: Path, make: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vidsieve.encoded import chunks as module

    def damaged(*args: Any, warn: Callable[[str], None], **kwargs: Any) -> Iterator[Any]:
        warn("clip.mp4: 2 of 4 frames are damaged")
        yield from read(*args, warn=warn, **kwargs)

    read = module.read_chunks
    monkeypatch.setattr(module, "read_chunks", damaged)
    with pytest.warns(UserWarning, match="2 of 4 frames are damaged") as told:
        list(encode_chunks(tiny.model("internvl"), make("internvl"), plan_video(clip, num_frames=4), 2))
    assert len(told) == 1


def test_what_cannot_be_encoded_in_chunks_is_refused(
    clip: Path, make: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = tiny.fresh("qwen2_5_vl"), make("qwen2_5_vl")
    planned = plan_video(clip, num_frames=8)
    with pytest.raises(ValueError, match="expected size as a multiple of 2 frames, which the processor joins; got 3"):
        encode_chunks(model, processor, planned, 3)
    with pytest.raises(ValueError, match="expected first as a multiple of 2 frames, which the processor joins; got 1"):
        encode_chunks(model, processor, planned, 4, first=1)
    with pytest.raises(WrongArgument, match="expected first or read, not both"):
        encode_chunks(model, processor, planned, 4, first=2, read=lambda frames, size: iter(()))
    with pytest.raises(ValueError, match="size is a whole number of frames"):
        encode_chunks(model, processor, planned, 0)
    with pytest.raises(WrongArgument, match="expected frames, got"):
        encode_chunks(model, processor, str(clip), 4)  # type: ignore[arg-type]
    with pytest.raises(VideoError, match="no such file"):
        list(encode_chunks(model, processor, replace(planned, source=f"{clip}.gone"), 4))
    adapter = adapter_for(model)
    monkeypatch.setattr(families, "_ADAPTERS", dict(families._ADAPTERS))  # where the type is forgotten again
    register(replace(adapter, model_types=("its_own",), by_frame=False))
    model.config.model_type = "its_own"
    with pytest.raises(UnsupportedModel, match="model type 'its_own' cannot be encoded in chunks: nothing says"):
        encode_chunks(model, processor, planned, 4)
    register(replace(adapter, model_types=("its_own",), not_encoded="its processor pads"))
    with pytest.raises(UnsupportedModel, match="model type 'its_own' cannot be encoded: its processor pads; attach"):
        encode_chunks(model, processor, planned, 4)


def test_stages_overlap_and_wait_for_one_another() -> None:
    made: list[int] = []
    gate = threading.Event()

    def numbers() -> Iterator[int]:
        for number in range(9):
            made.append(number)
            yield number
        gate.set()

    with Stages() as stages:
        items = stages.ahead(numbers(), waiting=2)
        assert next(items) == 0
        assert not gate.wait(0.2)
        assert len(made) <= 3  # the one that was taken, and two ahead
        assert list(items) == list(range(1, 9))
        assert gate.is_set()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ZeroDivisionError), Stages() as stages:
            for _ in stages.ahead(1 // (3 - number) for number in range(9)):
                pass
    assert threads() == []
