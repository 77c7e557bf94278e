"""What is wrapped on an instance is taken by transformers for what it wraps."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.engines.hf import tiny
from tests.engines.hf.truth import each_family
from vidsieve.engines.hf.intercept import Interceptions


@pytest.mark.parametrize("name", ["forward", "generate", "_prefill", "prepare_inputs_for_generation"])
def test_a_wrapped_method_has_the_signature_of_its_own(name: str) -> None:
    model = tiny.model("qwen2_5_vl")
    own = inspect.signature(getattr(model, name))
    with Interceptions() as hooks:
        hooks.wrap(model, name, lambda inner, *args, **kwargs: inner(*args, **kwargs))
        assert name in vars(model)
        assert inspect.signature(getattr(model, name)) == own
    assert name not in vars(model)


@each_family
@torch.no_grad()
def test_what_the_vision_tower_says_is_seen_in_a_forward_pass_and_in_generate(family: str) -> None:
    model, inputs = tiny.model(family), tiny.prompt(family)
    features = "get_image_features" if family == "internvl" else "get_video_features"
    logits, answer = model(**inputs).logits, model.generate(**inputs, max_new_tokens=3)
    seen: list[int] = []

    def look(inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        output = inner(*args, **kwargs)
        seen.append(sum(map(len, output.pooler_output)))
        return output

    with Interceptions() as hooks:
        hooks.wrap(model.base_model, features, look)
        assert torch.equal(model(**inputs).logits, logits)
        assert torch.equal(model.generate(**inputs, max_new_tokens=3), answer)
    assert len(seen) == 2
    assert seen[0] == seen[1] > 0
