"""A stream is remembered in a bounded number of tokens, however it was cut, and answers as its frames would."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("torchvision", reason="transformers' video processors need torchvision")
pytest.importorskip("av", reason="the package that has streams reads video files too")

import vidsieve
from tests.engines.hf import processors, tiny
from tests.engines.hf.test_replay import blind
from vidsieve.encoded import written
from vidsieve.encoded.chunks import encode_chunks
from vidsieve.encoded.video import EncodedVideo
from vidsieve.engines.hf import adapter_for, families, register
from vidsieve.engines.hf.loading import prepare
from vidsieve.engines.hf.processing import resizing_to
from vidsieve.errors import UnsupportedCall, UnsupportedModel, VidsieveError, WrongArgument
from vidsieve.methods.base import Reducer
from vidsieve.types.frames import Frames
from vidsieve.types.reduction import Reduction
from vidsieve.types.tokens import Prompt, VideoTokens

COUNT, HEIGHT, WIDTH, TOKENS = 51, 72, 100, 60
QUESTION = "What moves?"


@dataclass(frozen=True)
class Fixed(Reducer):
    """Keeps these tokens."""

    kept: Tensor

    def reduce(self, tokens: VideoTokens, prompt: Prompt | None = None) -> Reduction:
        return Reduction.select(self.kept, len(tokens))


def shown(count: int = COUNT, seed: int = 0) -> Tensor:
    """Scenes of seven frames, that change a little from frame to frame."""
    generator = torch.Generator().manual_seed(seed)
    scenes = torch.randint(0, 200, (count // 7 + 1, HEIGHT, WIDTH, 3), generator=generator)
    noise = torch.randint(0, 50, (count, HEIGHT, WIDTH, 3), generator=generator)
    return (scenes.repeat_interleave(7, 0)[:count] + noise).to(torch.uint8)


def at(count: int) -> list[float]:
    """Time stamps at uneven distances."""
    return [0.5 * i + 0.1 * (i % 3) for i in range(count)]


class World:
    def __init__(self, family: str) -> None:
        self.family, self.model, self.processor = family, tiny.model(family), processors.processor(family)
        self.frames, self.seconds = shown(), at(COUNT)

    def stream(self, tokens: int = TOKENS, **options: Any) -> vidsieve.Stream:
        return vidsieve.Stream(self.model, self.processor, tokens, **options)

    def fed(self, cuts: list[int], tokens: int = TOKENS) -> vidsieve.Stream:
        memory = self.stream(tokens)
        for begin, end in zip([0, *cuts], [*cuts, COUNT], strict=True):
            memory.add(self.frames[begin:end], self.seconds[begin:end])
        return memory


@pytest.fixture(scope="module", params=processors.FAMILIES)
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param)


@pytest.fixture(scope="module")
def qwen() -> World:
    return World("qwen3_vl")


def same(a: EncodedVideo, b: EncodedVideo) -> None:
    assert torch.equal(a.selection.kept, b.selection.kept)
    assert torch.equal(a.selection.features, b.selection.features)
    assert a.selection.others.keys() == b.selection.others.keys()
    assert all(torch.equal(x, b.selection.others[name]) for name, x in a.selection.others.items())
    assert (a.tokens, a.grid, a.size, a.frames.index, a.frames.seconds) == (
        *(b.tokens, b.grid, b.size),
        *(b.frames.index, b.frames.seconds),
    )


def test_the_same_stream_gives_the_same_tokens_however_it_is_cut(world: World) -> None:
    whole = world.fed([]).snapshot()
    assert len(whole.selection) == TOKENS
    assert len(whole.frames) < COUNT  # some are forgotten, or nothing of this is tested
    assert len(whole.tokens) * whole.tokens[0] == sum(whole.tokens)
    for cuts in (list(range(1, COUNT)), [0, 3, 3, 20, 37]):
        same(world.fed(cuts).snapshot(), whole)


def test_a_question_on_the_way_changes_nothing_and_sees_all_so_far(qwen: World) -> None:
    memory, whole = qwen.stream(), qwen.fed([]).snapshot()
    for begin in range(0, COUNT, 13):
        end = min(begin + 13, COUNT)
        memory.add(qwen.frames[begin:end], qwen.seconds[begin:end])
        once = memory.snapshot()
        assert once is memory.snapshot()
        assert len(once.selection) <= TOKENS
        other = qwen.stream()
        other.add(qwen.frames[:end], qwen.seconds[:end])
        same(other.snapshot(), once)
        assert set(once.frames.seconds) <= set(qwen.seconds[:end])
        assert [qwen.seconds.index(second) for second in once.frames.seconds] == list(once.frames.index)
    same(memory.snapshot(), whole)
    assert len(memory) == COUNT
    assert (whole.frames.total, whole.frames.duration) == (COUNT, qwen.seconds[-1])


def remembered(world: World, video: EncodedVideo) -> tuple[Any, Any]:
    """The processor's inputs of the frames that a snapshot describes, and the pixels' processor."""
    processor = world.processor if video.size is None else resizing_to(world.processor, *video.size)
    pixels = world.frames[list(video.frames.index)]
    described = {name: getattr(video.frames, name) for name in ("index", "seconds", "fps", "total", "duration")}
    return prepare(processor, Frames(pixels, **described), QUESTION), processor


def test_the_answer_is_that_of_the_frames_that_are_remembered(world: World) -> None:
    memory = world.fed([10, 11])
    video = memory.snapshot()
    inputs, _ = remembered(world, video)
    options = {"max_new_tokens": 6, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    with vidsieve.attach(world.model, Fixed(video.selection.kept)):
        expected = world.model.generate(**inputs, **options)
    with blind(world.model), video.on(world.model):
        found = world.model.generate(**video.inputs(world.model, world.processor, QUESTION), **options)
    torch.testing.assert_close(torch.stack(found.logits), torch.stack(expected.logits), atol=1e-4, rtol=0)
    with blind(world.model):
        answer = memory.ask(QUESTION, max_new_tokens=6)
        assert answer == video.ask(world.model, world.processor, QUESTION, max_new_tokens=6)
        several = memory.ask([QUESTION, "Who?"], history=[("And?", "So.")], max_new_tokens=3)
    text = world.processor.batch_decode(expected.sequences[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answer == text[0].strip()
    assert len(several) == 2


def test_a_long_prompt_is_repeated_instead_of_spelled_out(qwen: World, monkeypatch: pytest.MonkeyPatch) -> None:
    video = qwen.fed([10, 11]).snapshot()
    expected = video.inputs(qwen.model, qwen.processor, QUESTION)
    token, written_out = qwen.model.config.video_token_id, []
    prepare_turns = written.prepare_turns

    def noted(*args: Any) -> Any:
        made = prepare_turns(*args)
        written_out.append(int((made["input_ids"] == token).sum()))
        return made

    monkeypatch.setattr(written, "prepare_turns", noted)
    monkeypatch.setattr(written, "LONG", 0)
    found = replace(video).inputs(qwen.model, qwen.processor, QUESTION)
    assert len(video.tokens) in written_out
    assert sum(video.tokens) not in written_out
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], x) for name, x in expected.items())


def test_a_snapshot_comes_back_from_its_file(world: World, tmp_path: Path) -> None:
    video = world.fed([]).snapshot()
    video.save(tmp_path / "a")
    loaded = EncodedVideo.load(tmp_path / "a")
    same(loaded, video)
    both = (world.model, world.processor)
    assert loaded.ask(*both, QUESTION, max_new_tokens=4) == video.ask(*both, QUESTION, max_new_tokens=4)
    with pytest.raises(UnsupportedCall, match="not known, so it cannot be cut"):
        video.at(0.01)


def test_a_frame_or_two_are_enough(world: World) -> None:
    memory = world.stream()
    with pytest.raises(WrongArgument, match=r"expected at least \d frames?, which make a token frame, got 0; add more"):
        memory.snapshot()
    memory.add(world.frames[:1], [0.0])
    if world.family.startswith("qwen"):
        with pytest.raises(WrongArgument, match="expected at least 2 frames, which make a token frame, got 1"):
            memory.ask(QUESTION)
        memory.add(world.frames[1:2], [0.5])
    video = memory.snapshot()
    inputs, _ = remembered(world, video)
    with vidsieve.attach(world.model, Fixed(video.selection.kept)):
        out = world.model.generate(**inputs, max_new_tokens=4, do_sample=False)
    text = world.processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]
    assert memory.ask(QUESTION, max_new_tokens=4) == text.strip()


def test_neither_prompt_nor_memory_grows(qwen: World) -> None:
    memory = qwen.stream(12)
    prompts, held = [], []
    for part in range(6):
        memory.add(shown(32, part), [100.0 * part + second for second in at(32)])
        prompts.append(memory.snapshot().inputs(qwen.model, qwen.processor, QUESTION)["input_ids"].shape[1])
        state = memory._state
        assert len(state.waiting) < 16
        assert len(state.memory) <= 12
        assert len(memory.snapshot().frames) <= 2 * 12
        rows = state.memory._memory.rows
        assert rows is not None
        held.append(len(rows.kept))
    assert max(held) == 12
    assert max(prompts) - min(prompts) < 12 * 20  # the words that a frame's time takes, of the frames that are shown


def test_one_chunk_is_encoded_at_a_time(qwen: World, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def counted(model: Any, processor: Any, frames: Frames, size: int) -> Any:
        sizes.append(len(frames))
        return encode_chunks(model, processor, frames, size)

    monkeypatch.setattr("vidsieve.encoded.stream.encode_chunks", counted)
    memory = qwen.stream(12)
    memory.add(shown(57), at(57))
    memory.snapshot()
    assert sizes == [16, 16, 16, 8]  # and the last frame waits for another


@pytest.mark.parametrize(
    ("frames", "seconds", "says"),
    [
        (torch.zeros(2, 72, 100, 3), [1, 2], r"expected frames uint8 \(T, H, W, 3\), RGB, got a tensor float32"),
        (torch.zeros(2, 3, 72, 100, dtype=torch.uint8), [1, 2], r"expected frames uint8 \(T, H, W, 3\)"),
        ([1], [1], r"expected frames uint8 \(T, H, W, 3\), RGB, got \[1\]"),
        (torch.zeros(2, 0, 100, 3, dtype=torch.uint8), [30, 31], "expected frames with pixels"),
        (torch.zeros(2, 72, 98, 3, dtype=torch.uint8), [30, 31], "expected frames of 72 x 100, as all .* got 72 x 98;"),
        (shown(2), 4.0, "expected a time stamp for each of 2 frames, got 4.0"),
        (shown(2), [30], "expected a time stamp for each of 2 frames, got 1"),
        (shown(2), [30, "a"], "expected a number of seconds as time stamp, got 'a'"),
        (shown(2), [30, 30], "that rise, got 30; expected one above 30, the one before"),
        (shown(2), [1, 30], "that rise, got 1; expected one above 9.5, the one before"),
        (shown(2), [30, float("nan")], "that rise, got nan"),
        (shown(2), [30, float("inf")], "that rise, got inf"),
    ],
)
def test_what_is_no_more_of_the_stream_is_refused_and_adds_nothing(
    qwen: World, frames: Any, seconds: Any, says: str
) -> None:
    memory = qwen.stream()
    memory.add(qwen.frames[:19], [*at(18), 9.5])
    before = memory.snapshot()
    with pytest.raises(WrongArgument, match=says) as caught:
        memory.add(frames, seconds)
    assert "\n" not in str(caught.value)
    assert memory.snapshot() is before
    with pytest.raises(WrongArgument, match="that rise, got -1; expected one from 0 on"):
        qwen.stream().add(shown(1), [-1])


def test_a_call_that_fails_adds_nothing(qwen: World) -> None:
    memory, twin = qwen.stream(), qwen.stream()
    for one in (memory, twin):
        one.add(qwen.frames[:20], qwen.seconds[:20])

    def fail(*_: Any) -> None:
        raise MemoryError("no room")

    hook = qwen.model.base_model.visual.register_forward_pre_hook(fail)
    with pytest.raises(MemoryError, match="no room"):
        memory.add(qwen.frames[20:], qwen.seconds[20:])
    hook.remove()
    for one in (memory, twin):
        assert len(one) == 20
        one.add(qwen.frames[20:], qwen.seconds[20:])
    same(memory.snapshot(), twin.snapshot())


def test_a_first_call_that_fails_leaves_no_size(qwen: World) -> None:
    memory = qwen.stream()

    def fail(*_: Any) -> None:
        raise MemoryError("no room")

    hook = qwen.model.base_model.visual.register_forward_pre_hook(fail)
    with pytest.raises(MemoryError, match="no room"):
        memory.add(torch.zeros(20, 200, 60, 3, dtype=torch.uint8), at(20))
    hook.remove()
    memory.add(qwen.frames, qwen.seconds)
    same(memory.snapshot(), qwen.fed([]).snapshot())


def test_frames_may_be_written_over_after_the_call(qwen: World) -> None:
    memory, buffer = qwen.stream(), torch.empty_like(qwen.frames[:3])
    for begin in range(0, COUNT, 3):
        buffer.copy_(qwen.frames[begin : begin + 3])
        memory.add(buffer, torch.tensor(qwen.seconds[begin : begin + 3], dtype=torch.float64))
        buffer.zero_()
    same(memory.snapshot(), qwen.fed([]).snapshot())


def test_what_cannot_be_a_stream_is_refused(qwen: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="tokens is how many the memory holds, at least 1"):
        qwen.stream(0)
    with pytest.raises(VidsieveError, match="needs the whole video or a prompt"):
        qwen.stream(method="cdpruner")
    with pytest.raises(WrongArgument, match="Within needs the length of the video"):
        qwen.stream(method=vidsieve.Prune(0.1, vidsieve.methods.Within()))
    model = tiny.fresh("qwen2_5_vl")
    monkeypatch.setattr(families, "_ADAPTERS", dict(families._ADAPTERS))  # where the type is forgotten again
    register(replace(adapter_for(model), model_types=("another_one",), by_frame=False))
    model.config.model_type = "another_one"
    with pytest.raises(UnsupportedModel, match="model type 'another_one' cannot be encoded in chunks"):
        vidsieve.Stream(model, qwen.processor)


def test_snapshots_of_other_sizes_are_not_in_one_prompt(qwen: World) -> None:
    video = qwen.fed([]).snapshot()
    assert len((video + video).videos) == 2
    assert (video + video).ask(qwen.model, qwen.processor, QUESTION, max_new_tokens=2) is not None
    with pytest.raises(WrongArgument, match=r"expected videos with frames of one size, got \d+ x \d+ and one that the"):
        video + replace(video, size=None)


def test_two_threads_wait_for_one_another(qwen: World) -> None:
    whole, memory, failed = qwen.fed([]).snapshot(), qwen.stream(), []
    memory.add(qwen.frames[:4], qwen.seconds[:4])

    def asking(act: Callable[[], Any]) -> None:
        try:
            act()
        except BaseException as error:
            failed.append(error)

    def feed() -> None:
        for i in range(4, COUNT):
            memory.add(qwen.frames[i : i + 1], qwen.seconds[i : i + 1])

    def ask() -> None:
        for _ in range(5):
            answer = memory.ask(QUESTION, max_new_tokens=2)
            assert isinstance(answer, str)

    threads = [threading.Thread(target=asking, args=(act,)) for act in (feed, ask)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    same(memory.snapshot(), whole)
