"""Stages for the tests of reduction inside the language model, and their answers by hand."""

from typing import Any

from tests.engines.hf import by_hand, tiny
from tests.engines.hf.reducers import LouderThanMean, Loudest, MergeIntoLoudest
from tests.engines.hf.truth import STEPS, question_length
from vidsieve import Chain, Prune, Reducer, Staged
from vidsieve.engines.hf import attach
from vidsieve.methods.budget import Proportional
from vidsieve.methods.merge import TemporalMerge
from vidsieve.methods.relevance import PromptAttention
from vidsieve.methods.segment import Whole
from vidsieve.methods.selection import TopRelevance

TOLERANCE = 1e-4  # float32


def attended(keep: float, queries: Any = "question") -> Prune:
    return Prune(keep, Whole(), Proportional(), PromptAttention(queries), TopRelevance())


STAGES: dict[str, dict[int, Reducer]] = {
    "two layers": {1: Loudest(0.5), 2: Loudest(0.25)},
    "merge at 0": {0: TemporalMerge(0.2, Whole()), 1: LouderThanMean(), 2: Loudest(0.05)},
    "merges everywhere": {0: MergeIntoLoudest(0.7), 1: MergeIntoLoudest(0.5), 2: MergeIntoLoudest(0.25)},
    "attention": {1: attended(0.5), 2: attended(0.25, "last")},
    "late": {2: LouderThanMean()},
    "chains": {1: Chain(Loudest(0.7), attended(0.4)), 2: Chain(TemporalMerge(keep=0.3), attended(0.2, "last"))},
}


def truth(family: str, inputs: tiny.Inputs, stages: dict[int, Reducer], row: int = 0) -> Any:
    return by_hand.staged(family, inputs, stages, STEPS, question_length(family) + 5 * row)


def answer(model: Any, inputs: Any, stages: dict[int, Reducer] | None = None, **options: Any) -> list[list[int]]:
    """The answer to every prompt of a batch, with stages attached."""
    with attach(model, Staged(stages or STAGES["two layers"])):
        out = model.generate(**inputs, **{"max_new_tokens": STEPS, **options})
    return out[:, inputs["input_ids"].shape[1] :].tolist()


def expected(family: str, inputs: tiny.Inputs, name: str = "two layers", row: int = 0) -> list[int]:
    return truth(family, inputs, STAGES[name], row)[0]
