"""Stages in training: gradients and labels."""

import pytest
import torch

from tests.engines.hf import tiny
from tests.engines.hf.staged import STAGES
from tests.engines.hf.truth import each_family
from vidsieve import Staged
from vidsieve.engines.hf import attach


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
@each_family
@pytest.mark.parametrize("name", ["merges everywhere", "attention"])
def test_gradients_with_and_without_checkpointing(family: str, name: str) -> None:
    model, inputs, gradients = tiny.fresh(family).train(), tiny.prompt(family), []
    for checkpointing in (False, True):
        model.zero_grad()
        if checkpointing:
            model.gradient_checkpointing_enable()
        with attach(model, Staged(STAGES[name]), outputs="left"):
            model(**inputs, use_cache=False).logits[:, -1].square().mean().backward()
        weights = model.named_parameters()
        gradients.append({key: weight.grad.clone() for key, weight in weights if weight.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert any("vis" in key and grad.abs().sum() > 0 for key, grad in gradients[0].items())
    for key, grad in gradients[0].items():
        torch.testing.assert_close(grad, gradients[1][key])


@each_family
def test_labels_follow_the_kept_tokens(family: str) -> None:
    model, inputs = tiny.model(family), tiny.prompt(family)
    labels = inputs["input_ids"].clone()
    labels[:, :-3] = -100
    with attach(model, Staged(STAGES["merge at 0"])), torch.no_grad():
        out = model(**inputs, labels=labels)
        plain = model(**inputs).logits
    by_definition = torch.nn.functional.cross_entropy(plain[0, -4:-1], inputs["input_ids"][0, -3:])
    torch.testing.assert_close(out.loss, by_definition)
