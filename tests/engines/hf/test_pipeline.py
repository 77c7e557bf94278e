"""`pipeline("image-text-to-text")` of transformers with a method attached, on the bundled model."""

from typing import Any

import pytest
import torch
from transformers import Pipeline, pipeline

import vidsieve
from vidsieve.engines.hf import prepare
from vidsieve.evaluation.needles import generate
from vidsieve.evaluation.needles.clip import as_frames
from vidsieve.evaluation.needles.tiny import BUNDLED

VIDEO = generate("test", range(1))
QUESTION = VIDEO.questions.text(0, 0)
FRAMES = as_frames(VIDEO.frames[0])


@pytest.fixture(scope="module")
def ask() -> Pipeline:
    return pipeline("image-text-to-text", model=str(BUNDLED), device="cpu")


def answer(ask: Pipeline, **options: Any) -> str:
    content = [{"type": "video", "video": FRAMES.pixels.numpy()}, {"type": "text", "text": QUESTION}]
    said = ask(text=[{"role": "user", "content": content}], max_new_tokens=2, return_full_text=False, **options)
    return said[0]["generated_text"].strip()


def test_attached_pipeline_answers_from_what_is_kept(ask: Pipeline) -> None:
    every = answer(ask)
    with vidsieve.attach(ask, "vidsieve", keep=0.25) as trace:
        reduced = answer(ask)
    assert reduced == every
    (call,) = [call for call in trace.calls if call.videos]
    assert (call.videos[0].before, call.videos[0].after) == (576, 144)


def test_attached_pipeline_is_its_model_attached(ask: Pipeline) -> None:
    inputs = prepare(ask.processor, FRAMES, QUESTION)
    made = {}
    for name, target in (("pipeline", ask), ("model", ask.model)):
        with vidsieve.attach(target, "divprune", keep=0.1):
            made[name] = ask.model.generate(**inputs, max_new_tokens=2)
    assert torch.equal(made["pipeline"], made["model"])


def test_detach_takes_the_pipeline_too(ask: Pipeline) -> None:
    vidsieve.attach(ask, "uniform", keep=0.5)
    assert vidsieve.detach(ask)
    assert not vidsieve.detach(ask.model)
