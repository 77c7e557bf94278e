"""Stages in every way of decoding: caches, beams, later turns, threads. All against the answer by hand."""

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from tests.engines.hf import by_hand, fake_flash, tiny
from tests.engines.hf.reducers import Loudest
from tests.engines.hf.staged import STAGES, TOLERANCE, answer, expected
from tests.engines.hf.test_masks import second_turn
from tests.engines.hf.truth import STEPS, each_family, prompts, question_length
from vidsieve import Staged
from vidsieve.engines.hf import attach
from vidsieve.engines.hf.contract import CACHE


@each_family
@pytest.mark.parametrize("options", [{"use_cache": False}, {"do_sample": True, "top_k": 1}], ids=str)
def test_without_a_cache_and_sampled(family: str, options: dict[str, Any]) -> None:
    inputs = tiny.prompt(family)
    assert answer(tiny.model(family), inputs, **options) == [expected(family, inputs)]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["merge at 0", "attention"])
@each_family
def test_a_decoding_loop_of_ones_own_without_any_mask(family: str, name: str, attention: str) -> None:
    model, inputs, tokens = tiny.model(family, attention), tiny.prompt(family), []
    del inputs["attention_mask"]
    with torch.no_grad(), attach(model, Staged(STAGES[name])):
        out = model(**inputs, use_cache=True)
        for _ in range(STEPS):
            tokens.append(int(out.logits[0, -1].argmax()))
            step = torch.tensor([tokens[-1:]])
            out = model(input_ids=step, **{CACHE: out[CACHE]}, use_cache=True)
    assert tokens == expected(family, tiny.prompt(family), name)


@each_family
def test_assisted_decoding(family: str) -> None:
    inputs = tiny.prompt(family)
    assert answer(tiny.model(family), inputs, assistant_model=tiny.fresh(family)) == [expected(family, inputs)]


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
@torch.no_grad()
def test_beam_search(family: str) -> None:
    """Every step's scores of every beam equal those of the sequence it stands for, recomputed without a cache."""
    model, inputs = tiny.model(family), tiny.prompt(family)
    length = inputs["input_ids"].shape[1]
    beams = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 4, "length_penalty": 0.0}
    with attach(model, Staged(STAGES["two layers"])):
        out = model.generate(**inputs, **beams, return_dict_in_generate=True, output_scores=True)
    for sequence, score in zip(out.sequences, out.sequences_scores, strict=True):
        said = sequence[length:].tolist()
        merged, decisions, total = by_hand.merge(model, inputs), {}, 0.0
        for token in said:
            hidden = by_hand._layers(tiny.model(family, "eager"), merged, STAGES["two layers"], decisions, 6, 4, [])
            logits = model.lm_head(model.get_decoder().norm(hidden[-1:]))[0]
            total += float(logits.log_softmax(-1)[token])
            merged = by_hand.append(model, merged, [token])
        assert total == pytest.approx(float(score), abs=1e-3)
    assert len({tuple(sequence.tolist()) for sequence in out.sequences}) == 3


@each_family
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("full_ids", [True, False])
def test_a_follow_up_turn_on_a_kept_cache(family: str, full_ids: bool, attention: str) -> None:
    model, inputs, question = tiny.model(family, attention), tiny.prompt(family), [40, 41, 42, 43]
    stages = STAGES["merge at 0"]
    with attach(model, Staged(stages)):
        out = model.generate(**inputs, max_new_tokens=STEPS, return_dict_in_generate=True)
        ids = torch.cat([out.sequences, torch.tensor([question])], 1)
        given = ids if full_ids else ids[:, out.sequences.shape[1] - 1 :]  # the last token is not in the cache yet
        more = {"input_ids": given, "attention_mask": torch.ones_like(ids), CACHE: out[CACHE]}
        found = model.generate(**more, max_new_tokens=STEPS)[0, given.shape[1] :].tolist()
    said = ids[0, inputs["input_ids"].shape[1] :].tolist()
    assert found == by_hand.staged(family, inputs, stages, STEPS, question_length(family), said=said)[0]


def test_a_padded_follow_up_turn() -> None:
    family = "qwen2_5_vl"
    model, singles = tiny.model(family), prompts(family, 2)
    inputs, stages = tiny.batch(*singles), STAGES["merge at 0"]
    length = inputs["input_ids"].shape[1]
    with attach(model, Staged(stages)):
        out = model.generate(**inputs, max_new_tokens=STEPS, return_dict_in_generate=True)
        ids = torch.cat([out.sequences, torch.tensor([[40, 41]] * 2)], 1)
        mask = torch.cat([inputs["attention_mask"], torch.ones(2, STEPS + 2, dtype=torch.long)], 1)
        more = {"input_ids": ids, "attention_mask": mask, CACHE: copy.deepcopy(out[CACHE])}
        found = model.generate(**more, max_new_tokens=STEPS)[:, ids.shape[1] :].tolist()
    for row, single in enumerate(singles):
        said, asked = ids[row, length:].tolist(), question_length(family) + 5 * row
        assert found[row] == by_hand.staged(family, single, stages, STEPS, asked, said=said)[0]


@each_family
def test_a_second_video_on_a_filled_cache(family: str) -> None:
    """The same answer from three paths whose masks have nothing in common; not the one without any reduction."""
    stages = Staged(STAGES["merge at 0"])
    model = tiny.fresh(family)
    try:
        whole = second_turn(model, family, Loudest(1.0))
    except StopIteration:
        pytest.skip("this version of transformers cannot take a second video on a filled cache, reduced or not")
    found = second_turn(model, family, stages)
    assert found != whole
    assert second_turn(tiny.model(family, "eager"), family, stages) == found
    with fake_flash.used_by(model):
        assert second_turn(model, family, stages) == found


@each_family
def test_eight_threads_on_one_model(family: str) -> None:
    model = tiny.fresh(family)
    work = [tiny.prompt(family, seed=n % 3) for n in range(12)]
    answers = [expected(family, tiny.prompt(family, seed=n), "attention") for n in range(3)]

    def run(inputs: tiny.Inputs) -> list[int]:
        return model.generate(**inputs, max_new_tokens=STEPS)[0, inputs["input_ids"].shape[1] :].tolist()

    with attach(model, Staged(STAGES["attention"])), ThreadPoolExecutor(8) as threads:
        found = list(threads.map(run, work))
    assert found == [answers[n % 3] for n in range(12)]


@pytest.mark.parametrize("name", ["merge at 0", "attention", "two layers"])
@each_family
@torch.no_grad()
def test_beams_of_a_padded_batch_are_those_of_each_prompt(family: str, name: str) -> None:
    model, singles = tiny.model(family), prompts(family, 2)
    inputs, length = tiny.batch(*singles), tiny.batch(*singles)["input_ids"].shape[1]
    beams: dict[str, Any] = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 4, "length_penalty": 0.0}
    beams |= {"return_dict_in_generate": True, "output_scores": True}
    with attach(model, Staged(STAGES[name])):
        together = model.generate(**inputs, **beams)
        alone = [model.generate(**single, **beams) for single in singles]
    for row, one in enumerate(alone):
        mine, begin = slice(3 * row, 3 * row + 3), singles[row]["input_ids"].shape[1]
        assert together.sequences[mine, length:].tolist() == one.sequences[:, begin:].tolist()
        torch.testing.assert_close(together.sequences_scores[mine], one.sequences_scores, atol=TOLERANCE, rtol=0)
