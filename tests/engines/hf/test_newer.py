"""The families of newer.py: every kind of prompt in one batch, by hooks and by hand. The rest: `make test-matrix`."""

import re
from typing import Any

import pytest
import torch

from tests.engines.hf import newer, tiny
from tests.engines.hf.reducers import LouderThanMean, MergeIntoLoudest
from vidsieve.engines.hf import adapter_for, attach, verify
from vidsieve.errors import UnsupportedCall
from vidsieve.methods import Pixels, RunLength, Staged
from vidsieve.methods.base import Reducer

NEWER = [family for family in newer.NEWER if newer.exists(family)]


@pytest.mark.parametrize("reducer", [LouderThanMean(), MergeIntoLoudest()], ids=repr)
@pytest.mark.parametrize("kind", tiny.KINDS_OF_PROMPTS)
@pytest.mark.parametrize("family", [pytest.param(family, marks=pytest.mark.matrix) for family in NEWER])
def test_each_kind_of_prompt(family: str, kind: str, reducer: Reducer) -> None:
    inputs = tiny.batch(*tiny.kinds_of_prompts(family)[kind])
    report = verify(tiny.model(family), inputs, reducer, 6, newer.TOLERANCE.get(family, 1e-4))
    assert report.ok, report


@pytest.mark.parametrize("family", NEWER)
def test_every_kind_of_prompt_in_one_batch(family: str) -> None:
    model: Any = tiny.model(family)
    inputs = tiny.batch(*tiny.kinds_of_prompts(family)["all"])
    report = verify(model, inputs, MergeIntoLoudest(0.5), 4, newer.TOLERANCE.get(family, 1e-4))
    assert report.ok, report
    assert {video.row for video in report.trace.videos} == {0, 1}
    tokens = 4 if family == "perception_lm" else 6
    assert report.trace.totals["tokens_before"] == 3 * 4 * tokens  # of three videos of four frames


@pytest.mark.parametrize("family", NEWER)
def test_the_loss_is_of_the_tokens_that_are_left(family: str) -> None:
    """Some models pass logits and labels to their loss by name, and some in order."""
    model, inputs = tiny.model(family), tiny.prompt(family)
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, -4:] = inputs["input_ids"][:, -4:]
    with attach(model, LouderThanMean()), torch.no_grad():
        found = model(**inputs, labels=labels)
    answer = found.logits[0, -5:-1]
    assert found.logits.shape[1] < labels.shape[1]
    torch.testing.assert_close(found.loss, torch.nn.functional.cross_entropy(answer, labels[0, -4:]))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_tower_is_run_as_the_adapter_says(family: str) -> None:
    model, inputs = tiny.model(family), tiny.prompt(family)
    with torch.no_grad():
        plain = model(**inputs).logits
        with attach(model, vision="auto") as trace:
            found = model(**inputs).logits
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-5)
    assert ("packed" if trace.tower == "packed" else "batched" if not trace.tower_slow else "stock") == adapter_for(
        model
    ).tower


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_what_the_adapter_says_is_not_served_is_refused(family: str) -> None:
    model = tiny.model(family)
    adapter = adapter_for(model)
    for reason, method in (
        (adapter.not_inside, Staged({2: LouderThanMean()})),
        (adapter.not_before_tower, Staged({Pixels(): RunLength(0.5)})),
    ):
        if reason:
            with pytest.raises(UnsupportedCall, match=re.escape(reason)):
                attach(model, method)
        else:
            attach(model, method).remove()
