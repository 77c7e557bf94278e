"""A compiled model is reduced, or refused."""

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import CompileConfig

from tests.engines.hf import by_hand, tiny
from tests.engines.hf.reducers import LouderThanMean, Loudest
from tests.engines.hf.staged import STAGES
from tests.engines.hf.truth import STEPS, answer, each_family, truth
from vidsieve import Staged
from vidsieve.engines.hf import attach
from vidsieve.engines.hf.vision.tower import vision_tower
from vidsieve.errors import UnsupportedCall


@pytest.fixture
def dynamo() -> Iterator[Any]:
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own making
        yield torch._dynamo
    torch._dynamo.reset()


@each_family
@pytest.mark.parametrize("rows", [1, 2])
def test_auto_compiled_decoding(family: str, rows: int, dynamo: Any) -> None:
    singles = [tiny.prompt(family, seed=4 * row, text=6 + 5 * row) for row in range(rows)]
    compiling = CompileConfig(backend="eager", fullgraph=True, mode="default")
    compiling._compile_all_devices = True
    dynamo.utils.counters.clear()
    options = {"cache_implementation": "static", "compile_config": compiling}
    found = answer(tiny.fresh(family), tiny.batch(*singles), LouderThanMean(), **options)
    assert found == [truth(family, single, LouderThanMean()) for single in singles]
    assert dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    assert not dynamo.utils.counters["graph_break"]


def test_attaching_after_an_auto_compiled_run_and_detaching(dynamo: Any) -> None:
    model, inputs = tiny.fresh("qwen2_5_vl"), tiny.prompt("qwen2_5_vl")
    compiling = CompileConfig(backend="eager", fullgraph=True, mode="default")
    compiling._compile_all_devices = True
    options = {"cache_implementation": "static", "compile_config": compiling, "max_new_tokens": STEPS}
    whole = model.generate(**inputs, **options)
    assert answer(model, inputs, **options) == [truth("qwen2_5_vl", inputs)]
    assert torch.equal(model.generate(**inputs, **options), whole)


@pytest.mark.parametrize("part", ["model", "forward", "body", "decoder", "wrapped"])
def test_a_model_compiled_before_is_refused(part: str, dynamo: Any) -> None:
    model = tiny.fresh("qwen2_5_vl")
    if part == "forward":
        model.forward = torch.compile(model.forward, backend="eager")
    elif part == "wrapped":
        model = torch.compile(model, backend="eager")
    else:
        {"model": model, "body": model.base_model, "decoder": model.get_decoder()}[part].compile(backend="eager")
    with pytest.raises(UnsupportedCall, match="attach to the plain model first"):
        attach(model, Loudest())


def test_a_decoder_compiled_after_attaching(dynamo: Any) -> None:
    model, inputs = tiny.fresh("qwen2_5_vl"), tiny.prompt("qwen2_5_vl")
    length = inputs["input_ids"].shape[1]
    whole = model.generate(**inputs, max_new_tokens=STEPS)
    with attach(model, Loudest()):
        model.get_decoder().compile(backend="eager")
        assert model.generate(**inputs, max_new_tokens=STEPS)[0, length:].tolist() == truth("qwen2_5_vl", inputs)
    assert torch.equal(model.generate(**inputs, max_new_tokens=STEPS), whole)


@pytest.mark.parametrize("name", ["merge at 0", "attention"])
def test_stages_in_a_decoder_compiled_after_attaching(name: str, dynamo: Any) -> None:
    model, inputs = tiny.fresh("qwen2_5_vl"), tiny.prompt("qwen2_5_vl")
    length = inputs["input_ids"].shape[1]
    whole = model.generate(**inputs, max_new_tokens=STEPS)
    expected = by_hand.staged("qwen2_5_vl", inputs, STAGES[name], STEPS, 6)[0]
    with attach(model, Staged(STAGES[name])):
        model.get_decoder().compile(backend="eager")
        assert model.generate(**inputs, max_new_tokens=STEPS)[0, length:].tolist() == expected
    assert torch.equal(model.generate(**inputs, max_new_tokens=STEPS), whole)


def test_a_tower_with_windows_that_is_compiled_after_attaching(dynamo: Any) -> None:
    model, inputs = tiny.fresh("qwen2_5_vl"), tiny.prompt("qwen2_5_vl")
    with torch.no_grad(), attach(model, vision="packed") as trace:
        true = model(**inputs).logits
        vision_tower(model).compile(backend="eager")
        assert torch.equal(model(**inputs).logits, true)
    assert trace.tower == "packed"
