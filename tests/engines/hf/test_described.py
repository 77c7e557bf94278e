"""A processor that is asked about frames without pixels says what it says of the frames."""

from typing import Any

import pytest
import torch

pytest.importorskip("torchvision", reason="transformers' video processors need torchvision")

from tests.engines.hf import processors, tiny
from vidsieve.engines.hf import adapter_for
from vidsieve.engines.hf.loading import prepare, prepare_video
from vidsieve.errors import UnsupportedCall
from vidsieve.types.frames import Frames

# Processors of GLM and MiniCPM make numpy arrays of torch tensors, of which numpy 2 warns.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
QUESTION = "What happens?"


def frames(count: int, height: int = 72, width: int = 100) -> Frames:
    generator = torch.Generator().manual_seed(count)
    pixels = torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=generator)
    seconds = tuple(0.5 * i + 0.01 * (i % 3) for i in range(count))
    return Frames(pixels, tuple(range(count)), seconds, 2.0, count, count / 2)


def described(of: Frames) -> Frames:
    return Frames(of.pixels.to("meta"), of.index, of.seconds, of.fps, of.total, of.duration)


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


@pytest.mark.parametrize("count", [1, 8, 23])
@pytest.mark.parametrize("family", processors.EACH)
def test_the_prompt_of_frames_without_pixels_is_that_of_the_frames(family: str, count: int, make: Any) -> None:
    processor = make(family)
    if family == "video_llama_3":
        processor.video_processor.use_token_compression = False
    before = dict(vars(processor.video_processor))
    real, asked = prepare(processor, frames(count), QUESTION), prepare(processor, described(frames(count)), QUESTION)
    assert asked.keys() == real.keys()
    for name, value in real.items():
        if name.startswith("pixel_"):
            assert asked[name].is_meta
            assert (asked[name].shape, asked[name].dtype) == (value.shape, value.dtype)
        else:
            assert torch.equal(torch.as_tensor(asked[name]), torch.as_tensor(value)), name
    assert vars(processor.video_processor) == before


@pytest.mark.parametrize("family", processors.EACH)
def test_a_prompt_has_all_that_the_model_takes_and_the_video_has_its_size(family: str, make: Any) -> None:
    """Some have to be asked for the times of frames, or the kinds of tokens; some classes set the size."""
    processor = make(family)
    if family == "video_llama_3":
        processor.video_processor.use_token_compression = False
    inputs = prepare(processor, frames(8), QUESTION)
    with torch.no_grad():
        assert tiny.model(family)(**inputs).logits.shape[:2] == inputs["input_ids"].shape
    if adapter_for(tiny.model(family)).layout == "grid":
        alone = prepare_video(processor, frames(8))
        assert torch.equal(alone["video_grid_thw"], inputs["video_grid_thw"])


def test_an_hour_is_asked_about_without_memory(make: Any) -> None:
    count = 7200
    pixels = torch.empty(count, 720, 1280, 3, dtype=torch.uint8, device="meta")
    hour = Frames(pixels, tuple(range(count)), tuple(i / 2 for i in range(count)), 2.0, count, count / 2)
    inputs = prepare(make("qwen2_5_vl"), hour, QUESTION)
    assert inputs["pixel_values_videos"].is_meta
    assert inputs["video_grid_thw"][0, 0] == count // 2


def test_a_processor_that_drops_tokens_by_their_pixels_is_refused(make: Any) -> None:
    with pytest.raises(UnsupportedCall, match=r"VideoLlama3Processor leaves .*use_token_compression = False"):
        prepare(make("video_llama_3"), described(frames(4)), QUESTION)
