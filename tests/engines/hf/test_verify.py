"""The self-test passes where all is right, and notices where something is not."""

from typing import Any

import pytest
import torch

from tests.engines.hf import tiny
from tests.engines.hf.reducers import LouderThanMean, Loudest, MergeIntoLoudest
from tests.engines.hf.test_masks import LONG
from vidsieve import Staged
from vidsieve.engines.hf import verify
from vidsieve.errors import UnsupportedModel, WrongArgument
from vidsieve.methods import Pixels, RunLength


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_it_agrees_when_tokens_are_merged(family: str) -> None:
    report = verify(tiny.model(family), tiny.prompt(family, images=1, videos=2), MergeIntoLoudest(), steps=4)
    assert report.ok
    assert report
    assert repr(report).startswith("<Verification ok: 4 of 4 tokens equal, largest logit difference ")


@pytest.mark.parametrize("inside", [0, 1])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "llava_onevision"])
def test_by_hand_the_tower_sees_what_a_selector_before_it_leaves(family: str, inside: int) -> None:
    reducer = Staged({Pixels(): RunLength(0.5), inside: Loudest()})
    report = verify(tiny.model(family), tiny.prompt(family, videos=2), reducer, steps=4)
    assert report.ok, report
    assert "computed" in report.trace.tower


@tiny.every_family
def test_the_models_it_is_tested_on_have_the_same_weights_whatever_was_drawn_before(family: str) -> None:
    torch.rand(3)
    one = tiny.fresh(family).state_dict()
    torch.rand(5)
    other = tiny.fresh(family).state_dict()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize("reducer", [Loudest(), Staged({1: Loudest()})], ids=["before", "inside"])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_next_video", "internvl"])
def test_it_agrees_on_a_prompt_that_ends_in_its_last_placeholder(family: str, reducer: Any) -> None:
    inputs = tiny.prompt(family)
    end = int(tiny.is_video(family, inputs["input_ids"]).nonzero()[-1, 1]) + 1
    inputs |= {name: inputs[name][:, :end] for name in LONG if name in inputs}
    report = verify(tiny.model(family), inputs, reducer)
    assert report.ok, report
    assert report.trace.videos[0].kept[-1] < report.trace.videos[0].before - 1  # the last token is gone


def test_it_notices_a_mask_left_at_its_logical_length(monkeypatch: pytest.MonkeyPatch) -> None:
    def untouched(kwargs: dict[str, Any]) -> dict[str, Any]:
        return kwargs

    monkeypatch.setattr("vidsieve.engines.hf.seams.input.continued", untouched)
    inputs = tiny.batch(*[tiny.prompt("llava_onevision", seed=4 * row, text=6 + 5 * row) for row in range(2)])
    report = verify(tiny.model("llava_onevision"), inputs, LouderThanMean())
    assert not report.ok
    assert "FAILED" in repr(report)


def test_it_refuses_what_it_cannot_judge() -> None:
    with pytest.raises(ValueError, match="evaluation mode"):
        verify(tiny.fresh("qwen2_5_vl").train(), tiny.prompt("qwen2_5_vl"), Loudest())
    with pytest.raises(ValueError, match="which drops no token: there is nothing to verify"):
        verify(tiny.model("qwen2_5_vl"), tiny.prompt("qwen2_5_vl"), Staged({Pixels(): RunLength(0.5)}))
    inputs = tiny.prompt("qwen2_5_vl")
    inputs["attention_mask"][:, -2:] = 0
    with pytest.raises(ValueError, match="padding on the right"):
        verify(tiny.model("qwen2_5_vl"), inputs, Loudest())
    ids = torch.tensor([[3, 4, 5]])
    with pytest.raises(ValueError, match="no video"):
        verify(tiny.model("qwen2_5_vl"), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, Loudest())


def test_inputs_that_are_none_and_models_that_are_not_known_are_named() -> None:
    model = tiny.model("qwen2_5_vl")
    with pytest.raises(WrongArgument, match="have no input_ids, attention_mask"):
        verify(model, {}, Loudest())
    with pytest.raises(UnsupportedModel, match="Linear"):
        verify(torch.nn.Linear(2, 2), tiny.prompt("qwen2_5_vl"), Loudest())
