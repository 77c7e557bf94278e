"""A reduced model answers as the same model does, without hooks and cache, to a prompt that was cut by hand."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.engines.hf import newer, shortened, tiny
from tests.engines.hf.reducers import LouderThanMean, MergeIntoLoudest
from vidsieve.engines.hf import attach
from vidsieve.methods.base import Reducer
from vidsieve.types.reduction import Reduction
from vidsieve.types.tokens import Prompt, VideoTokens

STEPS = 6
UNSAID = [tiny.IMAGE, tiny.VIDEO, tiny.SPARE]  # without a cache these would be counted as part of a video
ELSEWHERE = ("gemma4", "gemma4_unified", "molmo2", "llava_onevision")  # test_body_masks.py, test_ground_truth.py
FAMILIES = [family for family in tiny.FAMILIES if family not in ELSEWHERE]
QUICK = (*newer.NEWER, "video_llama_3", "llava_next_video", "video_llava", "smolvlm", "internvl")
each_family = pytest.mark.parametrize("family", FAMILIES)


def compare(family: str, prompts: list[tiny.Inputs], reducer: Reducer) -> None:
    """Compare tokens and the logits of every step; of a family of `newer.TOLERANCE`, without a cache too."""
    model: Any = tiny.model(family)
    inputs = tiny.batch(*prompts)
    cuts = [shortened.cut(family, prompt, reducer) for prompt in prompts]
    for use_cache in (True, False) if family in newer.TOLERANCE else (True,):
        with attach(model, reducer):
            out = model.generate(
                **inputs,
                max_new_tokens=STEPS,
                use_cache=use_cache,
                return_dict_in_generate=True,
                output_logits=True,
                suppress_tokens=UNSAID,
            )
        tolerance = newer.TOLERANCE.get(family, 1e-4) if use_cache or len(prompts) > 1 else 1e-4
        for row, prompt in enumerate(cuts):
            said = out.sequences[row, inputs["input_ids"].shape[1] :].tolist()
            expected = shortened.logits(family, prompt, said)
            torch.testing.assert_close(torch.stack(out.logits, 1)[row], expected, atol=tolerance, rtol=0)
            expected[:, UNSAID] = -torch.inf
            assert said == expected.argmax(-1).tolist()


@pytest.mark.parametrize("reducer", [LouderThanMean(), MergeIntoLoudest()], ids=repr)
@pytest.mark.parametrize(
    ("family", "kind"),
    [
        pytest.param(family, kind, marks=pytest.mark.matrix)
        for family in FAMILIES
        for kind in tiny.KINDS_OF_PROMPTS
        if kind != "an image and a video" or family not in newer.NO_IMAGE_BESIDE
    ],
)
def test_each_kind_of_prompt(family: str, kind: str, reducer: Reducer) -> None:
    compare(family, tiny.kinds_of_prompts(family)[kind], reducer)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family in QUICK])
def test_every_kind_of_prompt_in_one_batch(family: str) -> None:
    compare(family, tiny.kinds_of_prompts(family)["all"], LouderThanMean())


@pytest.mark.parametrize("family", [family for family in newer.NO_IMAGE_BESIDE if family in FAMILIES])
def test_where_transformers_refuses_an_image_beside_a_video_so_do_hooks(family: str) -> None:
    model, inputs = tiny.model(family), tiny.prompt(family, images=1)
    said = "Image features and image tokens do not match|provided at the same time"
    with torch.no_grad(), pytest.raises(ValueError, match=said) as stock:
        model(**inputs)
    attached = attach(model, LouderThanMean())
    with torch.no_grad(), attached, pytest.raises(ValueError, match=said) as hooked:
        model(**inputs)
    assert str(hooked.value) == str(stock.value)


@dataclass(frozen=True)
class Without(Reducer):
    """What another reducer keeps, but for the first of it."""

    of: Reducer

    def reduce(self, tokens: VideoTokens, prompt: Prompt | None = None) -> Reduction:
        return Reduction.select(self.of.reduce(tokens, prompt).kept[1:], len(tokens))


@each_family
def test_another_token_or_other_positions_are_other_logits(family: str) -> None:
    def difference(other: shortened.CutPrompt) -> float:
        return float((shortened.logits(family, other, [7]) - expected).abs().max())

    inputs = tiny.prompt(family)
    prompt = shortened.cut(family, inputs, LouderThanMean())
    expected: Tensor = shortened.logits(family, prompt, [7])
    assert difference(shortened.cut(family, inputs, Without(LouderThanMean()))) > 1e-3
    closed_up = torch.arange(prompt.positions.shape[-1]).expand_as(prompt.positions)
    assert (difference(replace(prompt, positions=closed_up)) > 1e-3) == (family != "glm5_next")  # which has none
