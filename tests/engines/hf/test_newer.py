"""The families of newer.py: every kind of prompt in one batch, by hooks and by hand. The rest: `make test-matrix`."""

from typing import Any

import pytest
import torch

from tests.engines.hf import newer, tiny
from tests.engines.hf.reducers import LouderThanMean, MergeIntoLoudest
from vidsieve.engines.hf import verify
from vidsieve.methods.base import Reducer

NEWER = [family for family in newer.NEWER if newer.exists(family)]
# Their own answer with a cache and without one differ by some 1e-5, which grows over the steps.
TOLERANCE = dict.fromkeys(("glm5_next",), 1e-3)


def text(family: str) -> tiny.Inputs:
    """A prompt of text alone, with the arguments that the family wants of every prompt."""
    ids = torch.tensor([[7, 8, 9, 10]])
    kinds = [name for name in newer.KINDS if name in tiny.prompt(family)]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **{name: torch.zeros_like(ids) for name in kinds}}


def kinds_of_prompts(family: str) -> dict[str, tiny.Inputs]:
    images = 0 if family in newer.NO_IMAGE_BESIDE else 1
    one = tiny.prompt(family)
    return {
        "a video": one,
        "two videos": tiny.prompt(family, videos=2),
        "an image and a video": tiny.prompt(family, images=images, seed=2),
        "padded on the left": tiny.batch(one, tiny.prompt(family, seed=4, text=11)),
        "text beside it": tiny.batch(one, text(family)),
        "all": tiny.batch(
            tiny.prompt(family, images=images, videos=2), tiny.prompt(family, seed=4, text=11), text(family)
        ),
    }


@pytest.mark.parametrize("reducer", [LouderThanMean(), MergeIntoLoudest()], ids=repr)
@pytest.mark.parametrize(
    "kind", ["a video", "two videos", "an image and a video", "padded on the left", "text beside it"]
)
@pytest.mark.parametrize("family", [pytest.param(family, marks=pytest.mark.matrix) for family in NEWER])
def test_each_kind_of_prompt(family: str, kind: str, reducer: Reducer) -> None:
    report = verify(tiny.model(family), kinds_of_prompts(family)[kind], reducer, 6, TOLERANCE.get(family, 1e-4))
    assert report.ok, report


@pytest.mark.parametrize("family", NEWER)
def test_every_kind_of_prompt_in_one_batch(family: str) -> None:
    model: Any = tiny.model(family)
    inputs = kinds_of_prompts(family)["all"]
    report = verify(model, inputs, MergeIntoLoudest(0.5), 4, TOLERANCE.get(family, 1e-4))
    assert report.ok, report
    assert {video.row for video in report.trace.videos} == {0, 1}
    assert report.trace.totals["tokens_before"] == 3 * 4 * 6  # videos, frames, tokens
