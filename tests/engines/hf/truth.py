"""What the tests of single traps share: an answer by hooks, and the same by hand."""

from typing import Any

import pytest

from tests.engines.hf import by_hand, tiny
from tests.engines.hf.reducers import Loudest
from vidsieve.engines.hf import attach

STEPS = 6
BY_HAND = ("qwen2_5_vl", "qwen3_vl", "llava_onevision", "internvl")
each_family = pytest.mark.parametrize("family", BY_HAND)


def truth(family: str, inputs: tiny.Inputs, reducer: Any = None, videos: int = 1) -> list[int]:
    """The answer to one prompt, by hand."""
    model = tiny.model(family)
    return by_hand.decode(model, by_hand.reduce(model, inputs, reducer or Loudest(), videos), STEPS)[0]


def answer(model: Any, inputs: Any, reducer: Any = None, **options: Any) -> list[list[int]]:
    """The answer to every prompt of a batch, with a reducer attached."""
    with attach(model, reducer or Loudest()):
        out = model.generate(**inputs, **{"max_new_tokens": STEPS, **options})
    return out[:, inputs["input_ids"].shape[1] :].tolist()


def question_length(family: str) -> int:
    """Text after the last video token of a prompt with six tokens of question, markers that the config names aside."""
    return 6 if family.startswith("qwen") else 7


def prompts(family: str, rows: int) -> list[tiny.Inputs]:
    """Prompts of one video each, that differ in it and in length."""
    return [tiny.prompt(family, seed=4 * row, text=6 + 5 * row) for row in range(rows)]
