"""A packed tower gives the bits of a stock one in float32 on a CPU, by one attention call a layer, and is undone."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import vidsieve
from tests.engines.hf import tiny
from vidsieve.engines.hf.vision.tower import attentions, vision_tower

SPLITTING = tuple(f for f in tiny.FAMILIES if f.startswith(("qwen", "glm", "video_llama_3")))
BATCHED = tuple(f for f in tiny.FAMILIES if f not in SPLITTING)


def logits(model: Any, inputs: tiny.Inputs) -> Tensor:
    with torch.no_grad():
        answer: Tensor = model(**inputs).logits
    return answer


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch, model: Any) -> Iterator[list[int]]:
    """Count the attention calls of the tower: those of as many heads, in its block."""
    calls = [0]
    real = functional.scaled_dot_product_attention

    def count(*args: Any, **kwargs: Any) -> Tensor:
        calls[0] += inside[0]
        return real(*args, **kwargs)

    inside = [0]
    tower = vision_tower(model)
    hooks = (
        tower.register_forward_pre_hook(lambda *_: inside.__setitem__(0, 1)),
        tower.register_forward_hook(lambda *_: inside.__setitem__(0, 0)),
    )
    with monkeypatch.context() as patch:
        patch.setattr(functional, "scaled_dot_product_attention", count)
        patch.setattr("vidsieve.ops.vision.eager.scaled_dot_product_attention", count)
        yield calls
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("videos", [1, 2])
@pytest.mark.parametrize("family", SPLITTING)
def test_the_logits_are_the_bits_of_stock(family: str, videos: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = tiny.model(family), tiny.prompt(family, frames=6, videos=videos)
    with counted(monkeypatch, model) as stock_calls:
        stock = logits(model, inputs)
    with vidsieve.attach(model, vision="packed") as trace, counted(monkeypatch, model) as calls:
        packed = logits(model, inputs)
    assert torch.equal(packed, stock)
    assert trace.tower == "packed"
    layers = len(attentions(vision_tower(model)))
    assert calls[0] <= 2 * layers * videos < stock_calls[0]
    assert torch.equal(logits(model, inputs), stock)
