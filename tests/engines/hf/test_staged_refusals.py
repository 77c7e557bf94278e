"""Stages that cannot be, and calls that a cache reduced inside the model cannot serve."""

import copy

import pytest
import torch

from tests.engines.hf import tiny
from tests.engines.hf.reducers import Loudest
from tests.engines.hf.staged import STAGES, answer, attended
from tests.engines.hf.truth import STEPS
from vidsieve import Chain, Staged
from vidsieve.engines.hf import attach
from vidsieve.engines.hf.contract import CACHE
from vidsieve.errors import UnsupportedCall
from vidsieve.methods import RunLength
from vidsieve.methods.merge import TemporalMerge


def test_a_cache_reduced_inside_the_model_is_not_continued_without_stages() -> None:
    model, inputs = tiny.model("qwen2_5_vl"), tiny.prompt("qwen2_5_vl")
    with attach(model, Staged(STAGES["two layers"])):
        out = model.generate(**inputs, max_new_tokens=STEPS, return_dict_in_generate=True)
    more = {"input_ids": out.sequences, "attention_mask": torch.ones_like(out.sequences), "max_new_tokens": 2}
    with pytest.raises(UnsupportedCall, match="an attached Staged"):
        model.generate(**more, **{CACHE: copy.deepcopy(out[CACHE])})
    with attach(model, Loudest()), pytest.raises(UnsupportedCall, match="an attached Staged"):
        model.generate(**more, **{CACHE: copy.deepcopy(out[CACHE])})
    with attach(model, Staged({1: Loudest()})):  # which stages does not matter: the cache knows its own
        model.generate(**more, **{CACHE: copy.deepcopy(out[CACHE])})


def test_a_cache_is_not_cropped_into_the_reduced_prompt() -> None:
    model, inputs = tiny.model("qwen2_5_vl"), tiny.prompt("qwen2_5_vl")
    with torch.no_grad(), attach(model, Staged(STAGES["late"])):
        cache = model(**inputs, use_cache=True)[CACHE]
        cache.crop(-4)  # of the six tokens of the question
        with pytest.raises(UnsupportedCall, match="cannot be cropped"):
            cache.crop(-10)


def test_a_static_cache_is_refused() -> None:
    with pytest.raises(UnsupportedCall, match="use a dynamic cache"):
        answer(tiny.model("qwen2_5_vl"), tiny.prompt("qwen2_5_vl"), cache_implementation="static")


def test_stages_are_validated() -> None:
    stage = Loudest()
    for stages, message in (
        ({}, "at least one stage"),
        ({-1: stage}, "a stage is at a layer"),
        ({1.5: stage}, "a stage is at a layer"),
        ({True: stage}, "a stage is at a layer"),
        ({1: 0.5}, "expected a reducer at layer 1, got 0.5"),
        ({1: Staged({1: stage})}, "expected a reducer at layer 1"),
    ):
        with pytest.raises(ValueError, match=message):
            Staged(stages)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="make it the stage at 0 of a Staged"):
        Chain(stage, Staged({1: stage}))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"it acts before the vision tower, as Staged\(\{Pixels\(\): RunLength\(...\)"):
        attach(tiny.model("qwen2_5_vl"), RunLength(0.5))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected a Reducer or a Staged"):
        attach(tiny.model("qwen2_5_vl"), 0.3)  # type: ignore[arg-type]


def test_stages_that_a_model_has_no_layers_for() -> None:
    model = tiny.model("qwen2_5_vl")
    with pytest.raises(ValueError, match="this model has 3, 0 to 2"):
        attach(model, Staged({3: Loudest()}))
    with pytest.raises(ValueError, match="two stages at layer 1 of 3"):
        attach(model, Staged({1: Loudest(), 0.33: Loudest()}))
    with pytest.raises(UnsupportedCall, match="attention of layer 0, which is linear"):
        attach(tiny.model("qwen3_5"), Staged({1: attended(0.5)}))
    attach(tiny.model("qwen3_5"), Loudest()).remove()  # a failed attachment leaves the model free
    for early in (attended(0.5), Staged({0.0: attended(0.5)}), Chain(Loudest(), attended(0.5))):
        with pytest.raises(UnsupportedCall, match="at layer 1 or later"):
            attach(model, early)
    with pytest.raises(ValueError, match="cost sets the keep of the last stage"):
        attach(model, Staged({1: TemporalMerge(0.4)}, cost=0.9))
    attach(model, Loudest()).remove()
