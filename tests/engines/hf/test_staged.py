"""Reduction inside the language model: every step's logits equal those of layers called and sliced by hand."""

from dataclasses import dataclass

import pytest
import torch
import transformers

from tests.engines.hf import configs, fake_flash, tiny
from tests.engines.hf.reducers import LouderThanMean, Loudest, MergeIntoLoudest
from tests.engines.hf.staged import STAGES, TOLERANCE, answer, attended, expected, truth
from tests.engines.hf.test_ground_truth import snapshot
from tests.engines.hf.truth import STEPS, each_family, prompts
from vidsieve import Reducer, Staged
from vidsieve.engines.hf import attach, verify
from vidsieve.engines.hf.contract import CACHE
from vidsieve.types.reduction import Reduction
from vidsieve.types.tokens import Prompt, VideoTokens


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
    held = [layer.keys.shape[2] - (STEPS - 1) for layer in out[CACHE].layers]
    assert held == longest
    assert len(set(held)) > 1
    assert trace.calls[0].sequence == (inputs["input_ids"].shape[1], longest[-1])


@pytest.mark.parametrize(("attention", "rows"), [("sdpa", 1), ("sdpa", 2), ("eager", 2)])
@tiny.every_family_inside
def test_every_family_verifies(family: str, attention: str, rows: int) -> None:
    linear = family.startswith(("qwen3_5", "minicpm"))  # layer 0 has no attention to read
    middle: Reducer = LouderThanMean() if linear else attended(0.5)
    stages = Staged({0: MergeIntoLoudest(0.8), 1 / 3: middle, 2: attended(0.1)})
    inputs = tiny.batch(*prompts(family, rows))
    # A linear layer accumulates in float32 whatever the model's type: a quarter of the difference stays in float64.
    tolerance = 2e-4 if linear else TOLERANCE
    report = verify(tiny.model(family, attention), inputs, stages, STEPS, tolerance)
    assert report.ok, report
    assert [stage.layer for stage in report.trace.videos[0].stages] == [0, 1, 2]


@pytest.mark.parametrize("name", ["two layers", "merge at 0", "attention"])
@each_family
def test_flash_attention(family: str, name: str) -> None:
    model, singles = tiny.fresh(family), prompts(family, 2)
    with fake_flash.used_by(model) as calls:
        assert answer(model, singles[0], STAGES[name]) == [expected(family, singles[0], name)]
        assert calls
        found = answer(model, tiny.batch(*singles), STAGES[name])
    assert found == [expected(family, single, name, row) for row, single in enumerate(singles)]


@each_family
def test_prompts_of_one_length_that_keep_different_counts(family: str) -> None:
    singles = [tiny.prompt(family, seed=seed) for seed in (0, 4)]  # no padding: the logical mask is all ones
    found = answer(tiny.model(family), tiny.batch(*singles), STAGES["merge at 0"])
    assert found == [expected(family, single, "merge at 0") for single in singles]


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_padding_on_the_right_stays_there_and_changes_nothing(family: str, name: str) -> None:
    model, single = tiny.model(family), tiny.prompt(family)
    pads = {"input_ids": tiny.PAD, "attention_mask": 0, "mm_token_type_ids": 0}
    right = {key: torch.nn.functional.pad(single[key], (0, 4), value=pad) for key, pad in pads.items()}
    with torch.no_grad(), attach(model, Staged(STAGES[name])) as trace:
        plain = model(**single).logits
        padded = model(**{**single, **right}).logits
    assert trace.videos[0].kept == trace.videos[1].kept
    torch.testing.assert_close(padded[:, :-4], plain, atol=TOLERANCE, rtol=0)


@each_family
def test_a_row_of_text_and_text_alone(family: str) -> None:
    model, video = tiny.model(family), tiny.prompt(family)
    ids = torch.tensor([[7, 8, 9, 10]])
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    said = model.generate(**text, max_new_tokens=STEPS)[0, 4:].tolist()
    assert answer(model, text, STAGES["attention"]) == [said]
    if family != "internvl":
        if "mm_token_type_ids" in video:
            text["mm_token_type_ids"] = torch.zeros_like(ids)
        batch = tiny.batch(video, text)
        assert answer(model, batch, STAGES["attention"]) == [expected(family, video, "attention"), said]


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_two_videos_and_images_verify(family: str) -> None:
    report = verify(tiny.model(family), tiny.prompt(family, videos=2, images=2), Staged(STAGES["merges everywhere"]))
    assert report.ok, report
    assert len(report.trace.videos) == 2


@tiny.every_family_inside
def test_detaching_leaves_nothing_behind(family: str) -> None:
    model, inputs = tiny.model(family), tiny.prompt(family)
    whole, clean, registered = model.generate(**inputs, max_new_tokens=2), snapshot(model), registry()
    with attach(model, Staged({2: attended(0.5)})):
        assert snapshot(model) != clean
        assert registry() != registered
        model.generate(**inputs, max_new_tokens=2)
    assert snapshot(model) == clean
    assert registry() == registered
    assert torch.equal(model.generate(**inputs, max_new_tokens=2), whole)


def registry() -> set[str]:
    return set(transformers.AttentionInterface._global_mapping)


def test_linear_attention_after_a_stage_sees_no_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    config = configs.CONFIGS["qwen3_5"]()
    config.text_config.layer_types = ["full_attention", "linear_attention", "full_attention"]
    monkeypatch.setitem(configs.CONFIGS, "qwen3_5", lambda: config)
    model, inputs = tiny.fresh("qwen3_5"), tiny.batch(*prompts("qwen3_5", 2))
    for stages in ({1: LouderThanMean()}, {0: Loudest(0.8), 1: LouderThanMean(), 2: Loudest(0.1)}):
        assert verify(model, inputs, Staged(stages), STEPS, TOLERANCE).ok


@dataclass(frozen=True)
class Nothing(Reducer):
    """Removes nothing, as a merge that finds too little to join."""

    def reduce(self, tokens: VideoTokens, prompt: Prompt | None = None) -> Reduction:
        return Reduction.identity(len(tokens), tokens.features.device)


def test_a_stage_that_removes_nothing_leaves_the_sequence_alone() -> None:
    model, inputs = tiny.model("qwen2_5_vl"), tiny.prompt("qwen2_5_vl")
    with attach(model, Staged({1: Nothing(), 2: Loudest()})) as trace, torch.no_grad():
        found = model(**inputs).logits
    with attach(model, Staged({2: Loudest()})), torch.no_grad():
        assert torch.equal(model(**inputs).logits, found)
    [video] = trace.videos
    assert [stage.layer for stage in video.stages] == [1, 2]
    assert video.stages[0].after == video.before
