"""Frames that are processed as they come give the inputs of all of them at once, bit for bit."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch

pytest.importorskip("torchvision", reason="transformers' video processors need torchvision")
pytest.importorskip("av", reason="reading a video file needs av")

from tests.clips import write
from tests.engines.hf import processors
from vidsieve.engines.hf import loading
from vidsieve.engines.hf.loading import prepare
from vidsieve.engines.hf.processing import by_frame
from vidsieve.errors import VideoError, WrongArgument
from vidsieve.types.coming import Come, ComingFrames
from vidsieve.types.frames import Frames
from vidsieve.video import begin_video, read_video

# Processors of GLM make numpy arrays of torch tensors, of which numpy 2 warns.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
LONG = 60  # seconds after which a test that hangs fails
QUESTION = "What happens?"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("video") / "clip.mp4", count=60)


@pytest.fixture(autouse=True)
def cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many this machine has, some are left."""
    monkeypatch.setattr(loading, "cores_are_left", lambda: True)


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Any:
    def made(family: str) -> Any:
        if family == "smolvlm":  # which spells the number of frames by an optional package
            import transformers.models.smolvlm.processing_smolvlm as module

            monkeypatch.setattr(module, "num2words", str)
        processor = processors.processor(family)
        processors.skip_unless_told_of_frames(processor)
        return processor

    return made


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Of each call for pixels alone, the frames that it was given."""
    seen: list[int] = []
    prepare_video = loading.prepare_video

    def counted(processor: Any, frames: Frames, device: Any = None) -> Any:
        if not frames.pixels.is_meta:
            seen.append(len(frames))
        return prepare_video(processor, frames, device)

    monkeypatch.setattr(loading, "prepare_video", counted)
    return seen


def frames_of(count: int, height: int = 72, width: int = 100) -> Frames:
    generator = torch.Generator().manual_seed(count)
    pixels = torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=generator)
    seconds = tuple(0.5 * i + 0.01 * (i % 3) for i in range(count))
    return Frames(pixels, tuple(range(count)), seconds, 2.0, count, count / 2)


class OneByOne(ComingFrames):
    """Tells of these frames one after the other, and does not end before somebody looks, if anybody will."""

    def __init__(
        self,
        frames: Frames,
        *before: Frames,
        looked_at: bool = True,
        error: Exception | None = None,
        order: Callable[[int], Iterable[int]] = range,
    ) -> None:
        """before: frames of which it tells first, as if they had been miscounted.  error: what it ends with.

        order: of the places of so many frames.
        """
        self.looked = Event()

        def decode(come: Come) -> Frames:
            for some in (*before, frames):
                for place in order(len(some)):
                    come(some, place)
                assert not looked_at or self.looked.wait(LONG)
            if error is not None:
                raise error
            return frames

        super().__init__(lambda check: decode)

    def spans(self, parts: int, shortest: int, joined: int = 1) -> Iterator[tuple[Frames, list[int]]]:
        for span in super().spans(parts, shortest, joined):
            self.looked.set()
            yield span


def same(made: Any, expected: Any) -> None:
    assert type(made) is type(expected)
    assert list(made) == list(expected)
    for name, value in expected.items():
        assert torch.equal(torch.as_tensor(made[name]), torch.as_tensor(value)), name
        assert getattr(made[name], "dtype", None) == getattr(value, "dtype", None), name


def in_turns(count: int) -> Iterator[int]:
    """As of four decoders side by side."""
    return (place for start in range(4) for place in range(start, count, 4))


@pytest.mark.parametrize("order", [range, in_turns], ids=["in order", "in turns"])
@pytest.mark.parametrize("count", [1, 2, 9, 23, 64])
@pytest.mark.parametrize("family", processors.EACH)
def test_the_inputs_are_those_of_all_frames_at_once(
    family: str, count: int, order: Callable[[int], Iterable[int]], make: Any, calls: list[int]
) -> None:
    processor, frames = make(family), frames_of(count)
    expected, looked_at = prepare(processor, frames, QUESTION), by_frame(processor)
    same(prepare(processor, OneByOne(frames, looked_at=looked_at, order=order), QUESTION), expected)
    in_parts = looked_at and family != "video_llama_3"  # which drops tokens by what all of the frames show
    assert sum(calls) == in_parts * count
    assert len(calls) <= 8
    assert not in_parts or len(calls) > 1 or count <= 4


@pytest.mark.skipif("glm5_next" not in processors.NEWER, reason="this release of transformers has no GLM-5")
def test_a_processor_that_pads_does_so_in_parts(make: Any, calls: list[int]) -> None:
    processor, frames = make("glm5_next"), frames_of(23, 90, 130)
    grid = loading.grid_of(processor, frames)
    assert grid is not None
    assert grid.content == (56, 80) != grid.size
    same(prepare(processor, OneByOne(frames), QUESTION), prepare(processor, frames, QUESTION))
    assert sum(calls) == 23


def test_a_processor_that_keeps_all_tokens_is_asked_in_parts(make: Any, calls: list[int]) -> None:
    processor, frames = make("video_llama_3"), frames_of(23)
    processor.video_processor.use_token_compression = False
    same(prepare(processor, OneByOne(frames), QUESTION), prepare(processor, frames, QUESTION))
    assert sum(calls) == 23


@pytest.mark.parametrize("family", processors.FAMILIES)
@pytest.mark.parametrize(
    "options", [{}, {"num_frames": 7}, {"sampling": "keyframes"}, {"index": [5, 3, 3, 40]}], ids=str
)
def test_a_file_gives_the_frames_and_inputs_of_read_video(
    family: str, options: dict[str, Any], clip: Path, make: Any
) -> None:
    frames, coming = read_video(clip, **options), begin_video(clip, **options)
    same(prepare(make(family), coming, QUESTION), prepare(make(family), frames, QUESTION))
    found = coming.result()
    assert torch.equal(found.pixels, frames.pixels)
    others = [{name: value for name, value in vars(one).items() if name != "pixels"} for one in (found, frames)]
    assert others[0] == others[1]


def test_frames_that_were_miscounted_are_forgotten(make: Any) -> None:
    processor, frames, wrong = make("qwen3_vl"), frames_of(23), frames_of(21)
    same(prepare(processor, OneByOne(frames, wrong), QUESTION), prepare(processor, frames, QUESTION))


def test_frames_that_are_there_are_processed_at_once(make: Any, calls: list[int]) -> None:
    processor, frames = make("qwen3_vl"), frames_of(23)
    coming = OneByOne(frames, looked_at=False)
    coming.result()
    same(prepare(processor, coming, QUESTION), prepare(processor, frames, QUESTION))
    assert not calls


def test_cores_that_all_decode_are_left_to_it(make: Any, calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "cores_are_left", lambda: False)
    prepare(make("qwen3_vl"), OneByOne(frames_of(23), looked_at=False), QUESTION)
    assert not calls


def test_what_the_decoder_raises_is_raised(make: Any) -> None:
    with pytest.raises(VideoError, match="frame 3 is gone"):
        prepare(make("qwen3_vl"), OneByOne(frames_of(9), error=VideoError("frame 3 is gone")), QUESTION)


def test_a_question_is_looked_at_before_the_frames() -> None:
    with pytest.raises(WrongArgument, match="expected a question"):
        prepare(processors.processor("qwen3_vl"), OneByOne(frames_of(9), looked_at=False), " ")


@pytest.mark.gpu
@pytest.mark.parametrize("family", processors.FAMILIES)
def test_on_cuda_the_values_are_those_of_all_frames_at_once(family: str, make: Any, calls: list[int]) -> None:
    processor, frames = make(family), frames_of(23)
    expected = prepare(processor, frames, QUESTION, "cuda")
    same(prepare(processor, OneByOne(frames), QUESTION, "cuda"), expected)
    assert sum(calls) == 23
    assert [x.device for x in prepare(processor, OneByOne(frames), QUESTION, "cuda").values()] == [
        x.device for x in expected.values()
    ]
