"""A reduced model answers as if the dropped tokens had never been: logit by logit against by_hand.py."""

from typing import Any

import pytest
import torch
from torch import nn

from tests.engines.hf import by_hand, newer, tiny
from tests.engines.hf.reducers import LouderThanMean, Loudest, MergeIntoLoudest
from tests.engines.hf.truth import prompts
from vidsieve.engines.hf import attach, verify
from vidsieve.engines.hf.contract import CACHE
from vidsieve.methods.base import Reducer

STEPS = 6
TOLERANCE = 1e-4  # float32
BY_HAND = ("qwen2_5_vl", "qwen3_vl", "llava_onevision", "internvl")


def generate(model: Any, inputs: tiny.Inputs, **options: Any) -> Any:
    return model.generate(**inputs, max_new_tokens=STEPS, return_dict_in_generate=True, output_logits=True, **options)


@pytest.mark.parametrize("reducer", [Loudest(), LouderThanMean(), MergeIntoLoudest()], ids=repr)
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", BY_HAND)
def test_every_step_equals_the_ground_truth(family: str, attention: str, rows: int, reducer: Reducer) -> None:
    model, singles = tiny.model(family, attention), prompts(family, rows)
    inputs = tiny.batch(*singles)
    with attach(model, reducer) as trace:
        out = generate(model, inputs)
    kept = []
    for row, single in enumerate(singles):
        merged = by_hand.reduce(model, single, reducer)
        tokens, logits = by_hand.decode(model, merged, STEPS)
        assert out.sequences[row, inputs["input_ids"].shape[1] :].tolist() == tokens
        torch.testing.assert_close(torch.stack(out.logits, 1)[row], logits, atol=TOLERANCE, rtol=0)
        kept.append(len(merged.embeddings))
    if rows == 2 and reducer == LouderThanMean():
        counts = {video.after for video in trace.videos}
        assert len(counts) == 2, "the batch was meant to be ragged"
    assert trace.kv_length == max(kept)


@pytest.mark.parametrize("family", [family for family in tiny.FIRST if family not in BY_HAND])
def test_every_other_family_equals_its_observed_inputs_reduced_by_hand(family: str) -> None:
    report = verify(tiny.model(family), tiny.batch(*prompts(family, 2)), LouderThanMean(), STEPS, TOLERANCE)
    assert report.ok, report


@tiny.every_family
def test_the_answer_changes_and_the_cache_is_really_shorter(family: str) -> None:
    model, inputs = tiny.model(family), tiny.prompt(family)
    length, tokens = inputs["input_ids"].shape[1], int(tiny.is_video(family, inputs["input_ids"]).sum())
    whole = generate(model, inputs)
    with attach(model, Loudest(0.25)) as trace:
        out = generate(model, inputs)
    assert not torch.allclose(out.logits[0], whole.logits[0], atol=1e-2)
    [video] = trace.videos
    assert (video.before, video.after) == (tokens, round(0.25 * tokens))
    keys = [layer.keys for layer in out[CACHE].layers if getattr(layer, "keys", None) is not None]
    assert trace.kv_length == length - tokens + video.after
    assert max(x.shape[2] for x in keys) == trace.kv_length + STEPS - 1  # a layer with a window holds fewer


@tiny.every_family
def test_keep_everything_is_the_unreduced_model(family: str) -> None:
    model, inputs = tiny.model(family), tiny.batch(*prompts(family, 2))
    whole = generate(model, inputs)
    with attach(model, Loudest(1.0), vision="stock" if family in newer.ROUNDED else "auto") as trace:
        out = generate(model, inputs)
    assert torch.equal(out.sequences, whole.sequences)
    assert torch.equal(torch.stack(out.logits), torch.stack(whole.logits))
    assert trace.totals["tokens_before"] == trace.totals["tokens_after"] > 0


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Every hook and every instance attribute of every submodule."""
    return {
        name: {
            key: sorted(value) if isinstance(value, dict) else id(value)
            for key, value in vars(module).items()
            if key != "rope_deltas"  # transformers' own, rewritten by every prompt
        }
        for name, module in model.named_modules()
    }


@tiny.every_family
def test_detaching_leaves_nothing_behind(family: str) -> None:
    model, inputs = tiny.model(family), tiny.prompt(family)
    whole, clean = generate(model, inputs), snapshot(model)
    with attach(model, Loudest()):
        assert snapshot(model) != clean
        generate(model, inputs)
    assert snapshot(model) == clean
    again = generate(model, inputs)
    assert torch.equal(torch.stack(again.logits), torch.stack(whole.logits))
