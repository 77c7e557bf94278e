"""The attention that `PromptAttention` reads is the model's own, and what is attended is kept."""

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from tests.engines.hf import by_hand, fake_flash, tiny
from tests.engines.hf.reducers import Loudest
from tests.engines.hf.staged import attended
from tests.engines.hf.truth import each_family, prompts, question_length
from vidsieve import Prompt, Prune, Reducer, Reduction, Staged, VideoTokens, ops
from vidsieve.engines.hf import attach
from vidsieve.methods.budget import Proportional
from vidsieve.methods.relevance import PromptAttention
from vidsieve.methods.segment import Whole
from vidsieve.methods.selection import TopRelevance


@dataclass(frozen=True)
class Note(Reducer):
    """Keeps everything, and notes the attention it was given."""

    parts: tuple[PromptAttention, ...] = (PromptAttention(), PromptAttention("last"))
    seen: list[Any] = field(default_factory=list)

    def reduce(self, tokens: VideoTokens, prompt: Prompt | None = None) -> Reduction:
        self.seen.append(tokens.attended)
        return Reduction.identity(len(tokens), tokens.features.device)


@pytest.mark.parametrize("attention", ["sdpa", "eager", "flash"])
@each_family
def test_it_equals_what_eager_attention_reports(family: str, attention: str) -> None:
    eager = tiny.model(family, "eager")
    model = tiny.fresh(family) if attention == "flash" else tiny.model(family, attention)
    singles, note = prompts(family, 2), Note()
    kernels = fake_flash.used_by(model) if attention == "flash" else nullcontext()
    with torch.no_grad(), kernels, attach(model, Staged({2: note})):
        model(**tiny.batch(*singles))
    for row, single in enumerate(singles):
        with torch.no_grad():
            weights = eager(**single, output_attentions=True).attentions[1][0]  # (H, L, L)
        video = by_hand.merge(eager, single).video
        question = weights[:, -(question_length(family) + 5 * row) :].mean((0, 1))[video]
        torch.testing.assert_close(note.seen[row]["question"], question, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(note.seen[row]["last"], weights[:, -1].mean(0)[video], atol=1e-6, rtol=1e-4)


def test_with_padding_on_the_right_the_last_token_is_still_the_prompts() -> None:
    model, single, note = tiny.model("qwen2_5_vl"), tiny.prompt("qwen2_5_vl"), Note()
    pads = {"input_ids": tiny.PAD, "attention_mask": 0, "mm_token_type_ids": 0}
    right = {name: torch.nn.functional.pad(single[name], (0, 4), value=pad) for name, pad in pads.items()}
    with torch.no_grad(), attach(model, Staged({1: note})):
        model(**single)
        model(**{**single, **right})
    for kind, mass in note.seen[0].items():
        torch.testing.assert_close(note.seen[1][kind], mass)


def test_after_an_earlier_stage_it_is_of_what_is_left() -> None:
    note = Note((PromptAttention("last"),))
    with torch.no_grad(), attach(tiny.model("qwen2_5_vl"), Staged({0: Loudest(0.5), 1: Loudest(0.25), 2: note})):
        tiny.model("qwen2_5_vl")(**tiny.prompt("qwen2_5_vl"))
    [seen] = note.seen
    assert set(seen) == {"last"}
    assert seen["last"].shape == (6,)


def test_a_stage_that_reads_none_costs_none() -> None:
    for reducer, reads in ((Loudest(0.25), False), (attended(0.25), True)):
        with torch.no_grad(), attach(tiny.model("qwen2_5_vl"), Staged({1: Loudest(0.5), 2: reducer})), ops.spy() as ran:
            tiny.model("qwen2_5_vl")(**tiny.prompt("qwen2_5_vl"))
        assert ("received_attention" in dict(ran)) == reads


@pytest.mark.parametrize("queries", ["question", "last"])
def test_the_most_attended_tokens_are_all_kept(queries: Any) -> None:
    """Heavy-tailed attention: with the sign turned round, as some code has it, none of the top ones would stay."""
    generator = torch.Generator().manual_seed(0)
    mass = torch.rand(400, generator=generator) ** 8
    tokens = VideoTokens(torch.randn(400, 16, generator=generator), (100,) * 4, attended={queries: mass})
    top = set(mass.topk(20).indices.tolist())
    exact = Prune(0.25, relevance=PromptAttention(queries))
    plain = Prune(0.25, Whole(), Proportional(), PromptAttention(queries), TopRelevance())
    for method in (exact, plain):
        assert top <= set(method.reduce(tokens).kept.tolist())


def test_it_says_where_it_can_be_used() -> None:
    tokens = VideoTokens(torch.randn(4, 8), (4,))
    with pytest.raises(ValueError, match="in a stage of Staged at layer 1 or later"):
        attended(0.5).reduce(tokens)
    with pytest.raises(ValueError, match='"question" or the "last"'):
        PromptAttention("first")  # type: ignore[arg-type]


def test_scale_and_soft_cap_are_those_of_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    eager, model, note = tiny.fresh("qwen2_5_vl", "eager"), tiny.fresh("qwen2_5_vl"), Note()
    for layer in (*eager.get_decoder().layers, *model.get_decoder().layers):
        layer.self_attn.scaling = 0.6
    inputs = tiny.prompt("qwen2_5_vl")
    with torch.no_grad(), attach(model, Staged({2: note})):
        model(**inputs)
    with torch.no_grad():
        matrix = eager(**inputs, output_attentions=True).attentions[1][0]
    video = by_hand.merge(eager, inputs).video
    torch.testing.assert_close(note.seen[0]["last"], matrix[:, -1].mean(0)[video], atol=1e-6, rtol=1e-4)
    caps, received = [], ops.received_attention
    monkeypatch.setattr(ops, "received_attention", lambda given: (caps.append(given.softcap), received(given))[1])
    with torch.no_grad(), attach(eager, Staged({2: Note()})):  # sdpa refuses a cap since transformers 5.24
        eager(**inputs, softcap=2.0)
    assert caps == [2.0, 2.0]
