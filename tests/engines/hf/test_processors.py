"""From a video file through the real processor to an answer with a quarter of the video tokens."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("torchvision", reason="transformers' video processors need torchvision")
av = pytest.importorskip("av", reason="reading a video file needs av")

from tests.engines.hf import processors, tiny  # noqa: E402
from tests.engines.hf.reducers import Loudest, NearestToQuestion  # noqa: E402
from vidsieve.engines.hf import attach, verify  # noqa: E402

CLIPS = os.environ.get("VIDSIEVE_CLIPS")
QUESTION = "What happens?"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of a square that moves over a changing ground."""
    path = tmp_path_factory.mktemp("clips") / "square.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 160, 128, "yuv420p"
        for i in range(16):
            image = np.zeros((128, 160, 3), np.uint8)
            image[..., 0] = 7 * i
            image[20:60, 6 * i : 6 * i + 40, 1] = 255
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


@pytest.mark.parametrize("family", [*processors.FAMILIES, *processors.GEMMA])
def test_a_clip_through_the_real_processor(family: str, clip: Path) -> None:
    inputs = processors.inputs(processors.processor(family), clip, QUESTION)
    report = verify(tiny.model(family), inputs, Loudest(0.25), steps=4)
    assert report.ok, report
    [video] = report.trace.videos
    assert len(video.frames) == (4 if family.startswith("qwen") else 8)
    assert video.grid is not None
    assert video.after == round(0.25 * video.before)


@pytest.mark.parametrize("family", [*processors.FAMILIES, *processors.GEMMA])
def test_the_question_is_found_in_a_chat_template(family: str, clip: Path) -> None:
    processor, model = processors.processor(family), tiny.fresh(family)
    model.generation_config.eos_token_id = tiny.END_OF_TURN
    asked: list[torch.Tensor] = []

    class Listening(NearestToQuestion):
        def reduce(self, tokens, prompt=None):  # type: ignore[no-untyped-def]
            asked.append(prompt.embeddings)
            return super().reduce(tokens, prompt)

    with attach(model, Listening(0.25)):
        model.generate(**processors.inputs(processor, clip, QUESTION), max_new_tokens=1)
    expected = model.get_input_embeddings()(torch.tensor(processor.tokenizer.encode(QUESTION)))
    assert torch.equal(asked[0][-len(expected) :], expected)
    # InternVL's config does not name the marker that ends a frame.
    assert len(asked[0]) == len(expected) + (family == "internvl")


@pytest.mark.skipif(not CLIPS, reason="VIDSIEVE_CLIPS names no folder of real clips")
@pytest.mark.parametrize("family", processors.FAMILIES)
def test_real_clips(family: str) -> None:
    processor, model = processors.processor(family), tiny.model(family)
    for path in sorted(Path(str(CLIPS)).glob("*.mp4")):
        inputs = processors.inputs(processor, path, QUESTION)
        with attach(model, Loudest(0.1)) as trace:
            model.generate(**inputs, max_new_tokens=2)
        [video] = trace.videos
        assert video.after == round(0.1 * video.before), path.name
        assert trace.kv_length == inputs["input_ids"].shape[1] - video.before + video.after, path.name
