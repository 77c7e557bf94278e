"""Losses and gradients of a reduced prompt."""

from typing import Any

import pytest
import torch

from tests.engines.hf import by_hand, tiny
from tests.engines.hf.reducers import LouderThanMean, Loudest, NearestToQuestion
from tests.engines.hf.truth import each_family, question_length
from vidsieve import Prune, Staged
from vidsieve.engines.hf import attach
from vidsieve.methods.budget import Proportional
from vidsieve.methods.relevance import PromptAttention
from vidsieve.methods.segment import Whole
from vidsieve.methods.selection import TopRelevance
from vidsieve.types.tokens import Prompt, VideoTokens


@each_family
def test_labels_follow_the_kept_tokens(family: str) -> None:
    model, inputs = tiny.model(family), tiny.prompt(family)
    labels = inputs["input_ids"].clone()
    labels[:, :-3] = -100
    with attach(model, NearestToQuestion()) as trace:
        loss = model(**inputs, labels=labels).loss
    [video] = trace.videos
    stays = torch.ones(labels.shape[1], dtype=torch.bool)
    stays[video.at] = False
    stays[video.at[video.kept]] = True
    merged = by_hand.merge(model, inputs)
    question = Prompt(merged.embeddings[-question_length(family) : -3])  # the answer is no part of it
    features = merged.embeddings[merged.video]
    expected = NearestToQuestion().reduce(VideoTokens(features, (len(features),)), question)
    assert video.kept == expected.kept.tolist()
    reduced = merged.keep(stays)
    length = len(reduced.embeddings)
    logits = []
    for end in range(length - 3, length):
        logits += [by_hand.decode(model, reduced.keep(torch.arange(length) < end), 1)[1][0]]
    by_definition = torch.nn.functional.cross_entropy(torch.stack(logits), inputs["input_ids"][0, -3:])
    torch.testing.assert_close(loss, by_definition, atol=1e-4, rtol=0)


@pytest.mark.parametrize("queries", ["question", "last"])
@pytest.mark.parametrize("padding", [0, 3])  # on the right
@each_family
def test_an_answer_that_is_trained_has_no_say_in_what_is_kept(family: str, padding: int, queries: Any) -> None:
    model, asked = tiny.model(family), tiny.prompt(family)
    columns, kept = asked["input_ids"].shape[1], []
    method = Staged({2: Prune(0.3, Whole(), Proportional(), PromptAttention(queries), TopRelevance())})
    for answer in ([], [7, 8, 9], [50, 60, 70]):
        more = [*answer, *[tiny.PAD] * padding]
        inputs = {**asked, "input_ids": torch.cat([asked["input_ids"], torch.tensor([more], dtype=torch.long)], 1)}
        inputs["attention_mask"] = (torch.arange(columns + len(more)) < columns + len(answer)).long()[None]
        if "mm_token_type_ids" in asked:
            inputs["mm_token_type_ids"] = torch.nn.functional.pad(asked["mm_token_type_ids"], (0, len(more)))
        labels = inputs["input_ids"].clone()
        labels[:, :columns] = labels[:, columns + len(answer) :] = -100
        with attach(model, method) as trace, torch.no_grad():
            model(**inputs, labels=labels if answer else None)
        kept.append(trace.videos[0].kept)
    assert kept[0] == kept[1] == kept[2]


@pytest.mark.parametrize("queries", ["question", "last"])
def test_labels_that_leave_no_question_are_refused(queries: Any) -> None:
    model, inputs = tiny.model("qwen2_5_vl"), tiny.prompt("qwen2_5_vl")
    method = Staged({2: Prune(0.3, Whole(), Proportional(), PromptAttention(queries), TopRelevance())})
    with attach(model, method), pytest.raises(ValueError, match="which labels do not call the answer"):
        model(**inputs, labels=inputs["input_ids"])


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
@each_family
def test_gradients_with_and_without_checkpointing(family: str) -> None:
    model, inputs, gradients = tiny.fresh(family).train(), tiny.prompt(family), []
    for checkpointing in (False, True):
        model.zero_grad()
        if checkpointing:
            model.gradient_checkpointing_enable()
        with attach(model, Loudest(), outputs="left"):
            model(**inputs, use_cache=False).logits[:, -1].square().mean().backward()
        gradients.append(
            {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
        )
    assert gradients[0].keys() == gradients[1].keys()
    assert any("vis" in name and grad.abs().sum() > 0 for name, grad in gradients[0].items())
    for name, grad in gradients[0].items():
        torch.testing.assert_close(grad, gradients[1][name])


@each_family
def test_the_loss_of_a_ragged_batch_is_that_of_its_rows(family: str) -> None:
    model, singles = tiny.model(family), [tiny.prompt(family, seed=4 * row, text=6 + 5 * row) for row in range(2)]
    losses, weights = [], []
    inputs = tiny.batch(*singles)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    labels.scatter_(1, inputs["attention_mask"].argmax(1, keepdim=True), -100)  # nothing but padding foretells it
    labels[:, -2:] = -100
    with torch.no_grad(), attach(model, LouderThanMean()) as trace:
        for row, single in enumerate(singles):
            own = labels[row : row + 1, -single["input_ids"].shape[1] :]
            losses.append(model(**single, labels=own).loss)
            weights.append(trace.calls[-1].sequence[1] - 3)
        found = model(**inputs, labels=labels).loss
    assert weights[0] != weights[1]
    torch.testing.assert_close(found, sum(map(torch.mul, losses, torch.tensor(weights))) / sum(weights))
