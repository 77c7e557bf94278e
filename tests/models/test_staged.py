"""Reduction inside the language model: every step's logits equal those of layers called and sliced by hand."""

from typing import Any

import pytest
import torch

from tests.models import by_hand, fake_flash, tiny
from tests.models.reducers import LouderThanMean, Loudest, MergeIntoLoudest
from tests.models.truth import BY_HAND, STEPS, each_family, question_length
from vidsieve import Prune, Reducer, Staged
from vidsieve.budget import Proportional
from vidsieve.merge import TemporalMerge
from vidsieve.models import attach
from vidsieve.relevance import PromptAttention
from vidsieve.segment import Whole
from vidsieve.selection import TopRelevance

TOLERANCE = 1e-4  # float32


def attended(keep: float, queries: Any = "question") -> Prune:
    return Prune(keep, Whole(), Proportional(), PromptAttention(queries), TopRelevance())


STAGES: dict[str, dict[int, Reducer]] = {
    "two layers": {1: Loudest(0.5), 2: Loudest(0.25)},
    "merge at 0": {0: TemporalMerge(0.2, Whole()), 1: LouderThanMean(), 2: Loudest(0.05)},
    "merges everywhere": {0: MergeIntoLoudest(0.7), 1: MergeIntoLoudest(0.5), 2: MergeIntoLoudest(0.25)},
    "attention": {1: attended(0.5), 2: attended(0.25, "last")},
    "late": {2: LouderThanMean()},
}


def prompts(family: str, rows: int) -> list[tiny.Inputs]:
    return [tiny.prompt(family, seed=4 * row, text=6 + 5 * row) for row in range(rows)]


def truth(family: str, inputs: tiny.Inputs, stages: dict[int, Reducer], row: int = 0) -> Any:
    return by_hand.staged(family, inputs, stages, STEPS, question_length(family) + 5 * row)


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@each_family
def test_every_step_equals_the_layers_by_hand(family: str, attention: str, rows: int, name: str) -> None:
    model, singles = tiny.model(family, attention), prompts(family, rows)
    inputs = tiny.batch(*singles)
    with attach(model, Staged(STAGES[name])) as trace:
        out = model.generate(**inputs, max_new_tokens=STEPS, return_dict_in_generate=True, output_logits=True)
    longest = [0] * 3
    for row, single in enumerate(singles):
        tokens, logits, seen = truth(family, single, STAGES[name], row)
        torch.testing.assert_close(torch.stack(out.logits, 1)[row], logits, atol=TOLERANCE, rtol=0)
        assert out.sequences[row, inputs["input_ids"].shape[1] :].tolist() == tokens
        longest = [max(pair) for pair in zip(longest, seen, strict=True)]
    held = [layer.keys.shape[2] - (STEPS - 1) for layer in out.past_key_values.layers]
    assert held == longest
    assert len(set(held)) > 1
    assert trace.calls[0].sequence == (inputs["input_ids"].shape[1], longest[-1])
