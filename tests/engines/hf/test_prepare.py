"""What a prompt says of time is when its frames are shown, and one frame is a video too."""

import re
from typing import Any

import pytest
import torch

pytest.importorskip("torchvision", reason="transformers' video processors need torchvision")

from tests.engines.hf import processors, tiny
from tests.engines.hf.reducers import Loudest
from vidsieve.engines.hf import attach, loading
from vidsieve.engines.hf.loading import prepare
from vidsieve.errors import VidsieveError, WrongArgument
from vidsieve.types.frames import Frames

UNEVEN = (0.0, 0.4, 2.0, 2.8, 3.0, 9.01)  # 6 of 60 frames in 12 seconds: a mean rate knows nothing of them


def frames(*seconds: float, fps: float = 5.0, total: int = 60) -> Frames:
    pixels = torch.arange(len(seconds), dtype=torch.uint8).mul(40).view(-1, 1, 1, 1).expand(-1, 64, 64, 3)
    return Frames(pixels.contiguous(), tuple(range(len(seconds))), seconds, fps, total, total / fps)


class Listening:
    """Stands in for a processor and keeps what it is given."""

    def __init__(self, patch: int = 1, **attributes: int) -> None:
        self.video_processor = type("VideoProcessor", (), {"temporal_patch_size": patch})()
        self.tokenizer = type("Tokenizer", (), {"bos_token": None})()
        self.__dict__.update(attributes)

    def apply_chat_template(self, messages: Any, **_: Any) -> str:
        return "text"

    def __call__(self, **given: Any) -> dict[str, Any]:
        self.given = given
        return dict(given)


def given(processor: Listening, *seconds: float) -> dict[str, Any]:
    """What `prepare` gives a processor of frames at these times."""
    prepare(processor, frames(*seconds), "?")
    return processor.given


@pytest.mark.parametrize("question", [None, 5, "", " \n", ["What happens?"], b"?"], ids=repr)
def test_what_is_no_question_is_refused(question: Any) -> None:
    with pytest.raises(
        WrongArgument, match=rf"expected a question, such as 'What happens\?'; got {re.escape(repr(question))}"
    ):
        prepare(Listening(), frames(*UNEVEN), question)


def test_the_time_stamps_that_any_processor_computes_are_those_of_the_frames() -> None:
    [metadata] = given(Listening(), *UNEVEN)["video_metadata"]
    assert metadata.timestamps == list(UNEVEN)
    assert 1 / metadata.sampled_fps == pytest.approx(9.01 / 5)
    assert metadata.duration == 12


@pytest.mark.parametrize("rate", [2, 5, 24, 30, 30000 / 1001])
def test_at_a_constant_rate_they_print_as_number_over_rate(rate: float) -> None:
    seconds = [number / rate for number in range(0, 4000, 7)]
    [metadata] = given(Listening(), *seconds)["video_metadata"]
    assert metadata.timestamps == pytest.approx(seconds, abs=6e-7)
    assert [f"{a:.1f} {int(a)}" for a in metadata.timestamps] == [f"{a:.1f} {int(a)}" for a in seconds]
    assert metadata.sampled_fps == pytest.approx(rate / 7)


def test_qwen3_writes_the_mean_time_of_each_pair_of_frames() -> None:
    processor = processors.processor("qwen3_vl")
    text = processor.decode(prepare(processor, frames(*UNEVEN), "What happens?")["input_ids"][0])
    assert re.findall(r"<([\d.]+) seconds>", text) == ["0.2", "2.4", "6.0"]


def test_qwen2_5_is_told_how_far_apart_the_frames_are() -> None:
    processor = processors.processor("qwen2_5_vl")
    spacing = lambda *seconds: float(prepare(processor, frames(*seconds), "?")["second_per_grid_ts"][0])  # noqa: E731
    assert spacing(*UNEVEN) == pytest.approx(2 * 9.01 / 5)
    assert spacing(*(number / 2 for number in range(32))) == 1  # exactly: transformers rounds it down to whole seconds
    assert spacing(3.0) == spacing(3.0, 3.0) == pytest.approx(0.4)  # as the file's own frames


@pytest.mark.parametrize("family", processors.FAMILIES)
def test_one_frame_is_reduced_and_answered(family: str) -> None:
    processor, model = processors.processor(family), tiny.model(family)
    inputs = prepare(processor, frames(1.5), "What happens?")
    with attach(model, Loudest(0.5)) as trace:
        model.generate(**inputs, max_new_tokens=2)
    [video] = trace.videos
    assert 0 < video.after < video.before
    if family != "llava_onevision":  # which needs no second one
        again = frames(1.5, 1.5)
        again.pixels[1] = again.pixels[0]
        twice = prepare(processor, again, "What happens?")
        assert inputs.keys() == twice.keys()
        assert all(torch.equal(inputs[name], twice[name]) for name in inputs)


@pytest.mark.parametrize(
    ("processor", "shown"),
    [
        (Listening(), 1),
        (Listening(patch=2), 2),
        (Listening(image_seq_length=256), 2),
        (Listening(image_seq_len=169), 2),
    ],
    ids=["plain", "patches-of-two", "internvl", "smolvlm"],
)
def test_a_frame_is_shown_as_often_as_it_must(processor: Listening, shown: int) -> None:
    nested = hasattr(processor, "image_seq_len")  # SmolVLM's takes a list of videos for each prompt
    one = given(processor, 1.5)
    assert len(one["videos"][0][0] if nested else one["videos"][0]) == shown
    assert one["video_metadata"][0].timestamps == [1.5] * shown
    many = given(processor, 0.0, 1.0, 2.0)
    pixels = many["videos"][0][0] if nested else many["videos"][0]
    assert len(pixels) == len(many["video_metadata"][0].frames_indices) == 3


def test_triton_hashes_its_library_while_a_model_is_loaded_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    began: list[str] = []
    monkeypatch.setattr(loading, "start_hashing", lambda: began.append("hash"))
    monkeypatch.setattr(loading, "usable_device", torch.device)
    for device, found in (("cpu", []), ("cuda", ["hash"])):
        with pytest.raises(VidsieveError):  # after which nothing is read
            loading.load("/nonexistent/model", device)
        assert began == found
