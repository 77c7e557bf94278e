"""Encoded videos for tests: a tiny model of each family, its processor, frames, and what was encoded of them."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch

pytest.importorskip("torchvision", reason="transformers' video processors need torchvision")

import transformers
from transformers.models.smolvlm import processing_smolvlm

from tests.engines.hf import processors, tiny
from tests.engines.hf.reducers import Loudest
from vidsieve.encoded.at_once import encode_frames
from vidsieve.encoded.video import EncodedVideo
from vidsieve.engines.hf import adapter_for, attach
from vidsieve.engines.hf.loading import prepare
from vidsieve.methods.base import Reducer
from vidsieve.types.frames import Frames
from vidsieve.types.reduction import Reduction
from vidsieve.types.tokens import Prompt, VideoTokens

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
    if (
        family.startswith("glm") and family != "glm5_next"
    ):  # tells videos from images by marks that this vocabulary has no room for
        processor.video_start_id, processor.video_end_id = tiny.TURN, tiny.END_OF_TURN
    return processor


def side_by_side(model: Any) -> bool:
    """Whether videos with nothing between them in a prompt are taken for one: then a reducer sees all their frames."""
    return adapter_for(model).layout == "runs" or model.config.model_type == "minicpmv4_7"


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


@pytest.fixture(scope="module", params=processors.EACH)
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
