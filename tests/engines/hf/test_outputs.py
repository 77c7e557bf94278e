"""Outputs whose rows are counted in the columns of the prompt: of the tokens that are left, or of all."""

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from tests.engines.hf import by_hand, tiny
from tests.engines.hf.reducers import LouderThanMean, Loudest, MergeIntoLoudest
from tests.engines.hf.staged import STAGES
from tests.engines.hf.test_masks import LONG
from tests.engines.hf.truth import each_family, prompts
from vidsieve import Staged
from vidsieve.engines.hf import attach
from vidsieve.engines.hf.contract import CACHE
from vidsieve.errors import UnsupportedCall

METHODS = [LouderThanMean(), Staged(STAGES["two layers"]), Staged(STAGES["merge at 0"])]
each_method = pytest.mark.parametrize("method", METHODS, ids=["before", "inside", "both"])


def rows_of(kept: list[int], at: Tensor, length: int) -> list[int]:
    """The columns of a prompt whose video tokens `at` are left where they are `kept`."""
    left = set(range(length)) - set(at.tolist()) | set(at[kept].tolist())
    return sorted(left)


def completed(singles: list[tiny.Inputs], answers: list[list[int]]) -> tiny.Inputs:
    """Prompts padded on the left, and an answer after each, padded on the right: the layout of GRPO."""
    inputs, longest = tiny.batch(*singles), max(map(len, answers))
    ids = torch.tensor([[*answer, *[tiny.PAD] * (longest - len(answer))] for answer in answers])
    said = torch.tensor([[1] * len(answer) + [0] * (longest - len(answer)) for answer in answers])
    more = {"input_ids": ids, "attention_mask": said, "mm_token_type_ids": torch.zeros_like(ids)}
    return {**inputs, **{name: torch.cat([inputs[name], more[name]], 1) for name in LONG if name in inputs}}


@each_method
@each_family
@torch.no_grad()
def test_a_trace_tells_the_column_of_each_row(family: str, method: Any) -> None:
    model, singles = tiny.model(family), prompts(family, 2)
    inputs = completed(singles, [[5, 6, 7], [8]])
    with attach(model, method) as trace:
        out = model(**inputs)
    columns, length = trace.calls[-1].columns, inputs["input_ids"].shape[1]
    assert columns.shape == out.logits.shape[:2]
    for row, (video, real) in enumerate(zip(trace.videos, inputs["attention_mask"].bool(), strict=True)):
        left = [column for column in rows_of(video.kept, video.at, length) if real[column]]
        assert columns[row][columns[row] >= 0].tolist() == left
    with attach(model, Loudest(1.0)) as trace:
        model(**inputs)
    whole = torch.arange(length).expand(2, -1).where(inputs["attention_mask"] == 1, -1)
    assert torch.equal(trace.calls[-1].columns, whole)


def by_row(model: Any, method: Any, singles: list[tiny.Inputs], answers: list[list[int]]) -> list[Tensor]:
    """Log-probabilities of each answer's tokens, of each prompt by itself and whole, without its columns being used."""
    found = []
    for single, said in zip(singles, answers, strict=True):
        inputs = completed([single], [said])
        labels = inputs["input_ids"].clone()
        labels[:, : -len(said)] = -100  # an answer that is scored is no part of the question
        with attach(model, method):
            logits = model(**inputs, labels=labels).logits[0, -len(said) - 1 : -1]
        found.append(logits.log_softmax(-1)[torch.arange(len(said)), torch.tensor(said)])
    return found


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("asked", [True, False])
@each_method
@each_family
@torch.no_grad()
def test_log_probabilities_in_the_layout_of_grpo(family: str, method: Any, asked: bool, attention: str) -> None:
    model, singles, answers = tiny.model(family, attention), prompts(family, 3), [[5, 6, 7], [8], [9, 10]]
    expected = by_row(model, method, singles, answers)
    inputs = completed(singles, answers)
    count = 3  # as trl: one row more, the last of them dropped
    for outputs in ("left", "prompt"):
        with attach(model, method, outputs=outputs):
            logits = model(**inputs, **({"logits_to_keep": count + 1} if asked else {})).logits
        found = logits[:, :-1][:, -count:].log_softmax(-1)
        found = found.gather(2, inputs["input_ids"][:, -count:, None])[..., 0]
        for row, said in enumerate(answers):
            torch.testing.assert_close(found[row, : len(said)], expected[row], atol=1e-4, rtol=0)


@each_method
@pytest.mark.parametrize("family", ["qwen3_vl", "llava_onevision", "smolvlm"])
@torch.no_grad()
def test_logits_to_keep_counts_the_columns_of_the_prompt(family: str, method: Any) -> None:
    model, singles = tiny.model(family), prompts(family, 2)
    inputs = tiny.batch(*singles)
    length = inputs["input_ids"].shape[1]
    last = int(tiny.is_video(family, inputs["input_ids"]).nonzero()[:, 1].max())
    with attach(model, method) as trace:
        logits = model(**inputs).logits
        where = [{int(c): i for i, c in enumerate(row)} for row in trace.calls[-1].columns]
        videos = trace.videos
        early = torch.tensor([length - 1, 3, length - 3])  # 3: text of the longer row, padding of the other
        inside = next(int(at) for at in videos[1].at if int(at) not in where[1])
        found = model(**inputs, logits_to_keep=early).logits
        for row, column in ((0, length - 1), (1, length - 1), (1, 3), (0, length - 3)):
            if column in where[row]:
                place = early.tolist().index(column)
                torch.testing.assert_close(found[row, place], logits[row, where[row][column]], atol=1e-5, rtol=0)
        kept = model(**inputs, logits_to_keep=length - 1 - last).logits
        torch.testing.assert_close(kept, logits[:, last + 1 - length :], atol=1e-5, rtol=0)
        calls = trace.totals["calls"]
        for gone in (torch.tensor([inside]), length - inside, [inside, length - 1]):
            with pytest.raises(UnsupportedCall, match="logits_to_keep counts the columns of the prompt"):
                model(**inputs, logits_to_keep=gone)
        assert trace.totals["calls"] == calls
    with attach(model, method, outputs="prompt"):
        whole = model(**inputs).logits
        assert whole.shape[1] == length
        torch.testing.assert_close(model(**inputs, logits_to_keep=early).logits, whole[:, early], atol=1e-5, rtol=0)
    for row, places in enumerate(where):
        before = None
        for column in range(length):
            before = places.get(column, before)
            if before is not None and inputs["attention_mask"][row, column]:
                torch.testing.assert_close(whole[row, column], logits[row, before], atol=1e-5, rtol=0)


def ending(family: str, more: int) -> tiny.Inputs:
    """A prompt that ends `more` tokens after its last video token."""
    inputs = tiny.prompt(family)
    end = int(tiny.is_video(family, inputs["input_ids"]).nonzero()[-1, 1]) + 1 + more
    return inputs | {name: inputs[name][:, :end] for name in LONG if name in inputs}


@pytest.mark.parametrize("method", [Loudest(), Staged({1: Loudest()})], ids=["before", "inside"])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "internvl"])
@torch.no_grad()
def test_the_row_before_the_tail_is_that_of_the_last_token_left(family: str, method: Any) -> None:
    model, inputs = tiny.model(family), ending(family, 2)
    with attach(model, method) as trace:
        whole = model(**inputs).logits
        assert inputs["input_ids"].shape[1] - 3 not in trace.calls[-1].columns  # the video's last token is gone
        for count in (1, 2, 3):
            found = model(**inputs, logits_to_keep=count).logits
            torch.testing.assert_close(found, whole[:, -count:], atol=1e-5, rtol=0)
        with pytest.raises(UnsupportedCall, match="the last 3"):
            model(**inputs, logits_to_keep=4)


@torch.no_grad()
def test_a_video_that_begins_its_prompt() -> None:
    model, rows = tiny.model("llava_onevision"), [tiny.prompt("llava_onevision", seed=seed) for seed in (6, 5)]
    for row in rows:
        row |= {name: row[name][:, 5:] for name in LONG if name in row}
    with attach(model, LouderThanMean()) as trace:
        model(**tiny.batch(*rows))
        gone = [0 not in video.kept for video in trace.videos]
        assert gone[1]  # of the row that is padded, once reduced
        assert len(trace.videos[1].kept) < len(trace.videos[0].kept)
        with pytest.raises(UnsupportedCall, match=f"and {sum(gone)} of the tokens"):
            model(**tiny.batch(*rows), logits_to_keep=torch.tensor([0]))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("column", [2, -3])  # before the video and after it
@each_method
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "llava_onevision"])
@torch.no_grad()
def test_padding_amid_a_prompt_stays_there_and_changes_nothing(
    family: str, method: Any, column: int, attention: str
) -> None:
    model, single = tiny.model(family, attention), tiny.prompt(family)
    pads = {"input_ids": tiny.PAD, "attention_mask": 0, "mm_token_type_ids": 0}
    inputs = dict(single)
    for name, pad in pads.items():
        if name in single:
            parts = single[name][:, :column], torch.full((1, 4), pad), single[name][:, column:]
            inputs[name] = torch.cat(parts, 1)
    if family == "llava_onevision":
        inputs["position_ids"] = inputs["attention_mask"].cumsum(1) - 1
    step = torch.tensor([[40]])
    with attach(model, method):
        plain, padded = (model(**given, use_cache=True) for given in (single, inputs))
        torch.testing.assert_close(padded.logits[:, -3:], plain.logits[:, -3:], atol=1e-4, rtol=0)
        if column > 0 and method != METHODS[1]:  # what a cache knows that was reduced from its first layer on
            after = single["input_ids"].shape[1] + torch.zeros(3, 1, 1, dtype=torch.long)
            after = after[0] if family == "llava_onevision" else after
            found = [model(step, **{CACHE: x[CACHE]}, position_ids=after).logits for x in (plain, padded)]
            torch.testing.assert_close(*found, atol=1e-4, rtol=0)


@each_method
@each_family
def test_a_row_for_each_column_serves_what_a_trainer_computes(family: str, method: Any) -> None:
    from transformers.trainer_pt_utils import LabelSmoother

    model, singles, answers = tiny.fresh(family).train(), prompts(family, 2), [[5, 6, 7], [8]]
    inputs, labels = completed(singles, answers), None
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[0, -3:], labels[1, -3] = torch.tensor(answers[0]), answers[1][0]
    losses, smooth, gradients = [], [], []
    for outputs in ("left", "prompt"):
        model.zero_grad()
        with attach(model, method, outputs=outputs):
            out = model(**inputs, labels=labels)
        losses.append(out.loss)
        logits = out.logits[:, -labels.shape[1] :]
        columns = labels[:, -logits.shape[1] :]  # all the answer is in the tail
        smooth.append(LabelSmoother(0.1)({"logits": logits}, columns, shift_labels=True))
        (losses[-1] + smooth[-1]).backward()
        gradients.append({name: w.grad.clone() for name, w in model.named_parameters() if w.grad is not None})
    assert out.logits.shape[1] == labels.shape[1]
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(smooth[0], smooth[1])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-5, rtol=1e-4)


def smoothed(model: Any, inputs: tiny.Inputs, labels: Tensor) -> Tensor:
    """The loss of `Trainer` with label smoothing, which keeps the labels from the model."""
    from transformers.trainer_pt_utils import LabelSmoother

    loss: Tensor = LabelSmoother(0.1)(model(**inputs), labels, shift_labels=True)
    return loss


def in_training(family: str) -> tuple[Any, tiny.Inputs, Tensor]:
    """A model, a prompt, and the labels of its last three tokens."""
    inputs = tiny.prompt(family)
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, -3:] = inputs["input_ids"][:, -3:]
    return tiny.fresh(family).train(), inputs, labels


@each_method
@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_a_training_pass_whose_labels_the_trainer_kept_is_refused(family: str, method: Any) -> None:
    model, inputs, labels = in_training(family)
    cache = transformers.DynamicCache(config=model.config.get_text_config())
    with attach(model, method) as trace:
        with pytest.raises(UnsupportedCall, match=r"Pass labels .* outputs='prompt'\) .* or outputs='left'"):
            smoothed(model, inputs, labels)
        with pytest.raises(UnsupportedCall, match="a training pass without labels"):
            model(**inputs, logits_to_keep=0, **{CACHE: cache})
        assert not trace.calls
        assert cache.get_seq_length() == 0
        assert model(**inputs, labels=labels).loss.isfinite()
    with attach(model, method, outputs="prompt"):
        found = smoothed(model, inputs, labels)
    with attach(model, method, outputs="left") as trace:
        logits = model(**inputs).logits
    left = labels.gather(1, trace.calls[-1].columns)
    torch.testing.assert_close(found, smoothed(lambda logits: {"logits": logits}, {"logits": logits}, left))


@each_method
def test_what_is_no_training_pass_without_labels_is_not_refused(method: Any) -> None:
    model, inputs, labels = in_training("qwen2_5_vl")
    with attach(model, method) as trace:
        model(**inputs, labels=labels)
        model(**inputs, logits_to_keep=3)
        model.base_model(**inputs)
        with torch.no_grad():
            model(**inputs)
        model.eval()(**inputs)
        assert len(trace.calls) == 5
    with attach(model.train(), Loudest(1.0)):
        assert model(**inputs).logits.shape[1] == inputs["input_ids"].shape[1]


@torch.no_grad()
def test_labels_of_dropped_tokens_count_in_neither_layout() -> None:
    model, inputs = tiny.model("qwen2_5_vl"), tiny.prompt("qwen2_5_vl")
    found = []
    for outputs in ("left", "prompt"):
        with attach(model, MergeIntoLoudest(), outputs=outputs):
            found.append(model(**inputs, labels=inputs["input_ids"]).loss)
    torch.testing.assert_close(*found)


@torch.no_grad()
def test_a_tuple_and_the_body_alone_have_a_row_for_each_column() -> None:
    model, inputs = tiny.model("llava_onevision"), tiny.prompt("llava_onevision")
    with attach(model, Loudest(), outputs="prompt"):
        named = model(**inputs).logits
        assert torch.equal(model(**inputs, return_dict=False)[0], named)
        assert torch.equal(model.lm_head(model.base_model(**inputs).last_hidden_state), named)
    expected = by_hand.decode(model, by_hand.reduce(model, inputs, Loudest()), 1)[1][0]
    torch.testing.assert_close(named[0, -1], expected, atol=1e-4, rtol=0)


def test_layouts_have_a_name() -> None:
    with pytest.raises(ValueError, match="expected outputs to be 'left' or 'prompt', got 'all'"):
        attach(tiny.model("qwen2_5_vl"), Loudest(), outputs="all")


def test_router_logits_are_refused_where_tokens_were_removed() -> None:
    model, inputs = tiny.model("qwen3_vl_moe"), tiny.prompt("qwen3_vl_moe")
    with torch.no_grad():
        with attach(model, Loudest()), pytest.raises(UnsupportedCall, match="output_router_logits=False"):
            model(**inputs, output_router_logits=True)
        with attach(model, Loudest(1.0)):
            assert model(**inputs, output_router_logits=True).aux_loss is not None
