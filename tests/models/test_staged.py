"""Reduction inside the language model: every step's logits equal those of layers called and sliced by hand."""

import copy
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers

from tests.models import by_hand, fake_flash, tiny
from tests.models.reducers import LouderThanMean, Loudest, MergeIntoLoudest
from tests.models.test_ground_truth import snapshot
from tests.models.test_masks import second_turn
from tests.models.truth import STEPS, each_family, question_length
from vidsieve import Chain, Prune, Reducer, Staged
from vidsieve.engines.hf import attach, verify
from vidsieve.engines.hf.contract import CACHE
from vidsieve.errors import UnsupportedCall
from vidsieve.methods.budget import Proportional
from vidsieve.methods.merge import TemporalMerge
from vidsieve.methods.relevance import PromptAttention
from vidsieve.methods.segment import Whole
from vidsieve.methods.selection import TopRelevance
from vidsieve.types.reduction import Reduction
from vidsieve.types.tokens import Prompt, VideoTokens

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
    held = [layer.keys.shape[2] - (STEPS - 1) for layer in out[CACHE].layers]
    assert held == longest
    assert len(set(held)) > 1
    assert trace.calls[0].sequence == (inputs["input_ids"].shape[1], longest[-1])


@pytest.mark.parametrize(("attention", "rows"), [("sdpa", 1), ("sdpa", 2), ("eager", 2)])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_verifies(family: str, attention: str, rows: int) -> None:
    linear = family.startswith("qwen3_5")  # layer 0 has no attention to read
    middle: Reducer = LouderThanMean() if linear else attended(0.5)
    stages = Staged({0: MergeIntoLoudest(0.8), 1 / 3: middle, 2: attended(0.1)})
    inputs = tiny.batch(*prompts(family, rows))
    # A linear layer accumulates in float32 whatever the model's type: a quarter of the difference stays in float64.
    tolerance = 2e-4 if linear else TOLERANCE
    report = verify(tiny.model(family, attention), inputs, stages, STEPS, tolerance)
    assert report.ok, report
    assert [stage.layer for stage in report.trace.videos[0].stages] == [0, 1, 2]


def answer(model: Any, inputs: Any, stages: dict[int, Reducer] | None = None, **options: Any) -> list[list[int]]:
    """The answer to every prompt of a batch, with stages attached."""
    with attach(model, Staged(stages or STAGES["two layers"])):
        out = model.generate(**inputs, **{"max_new_tokens": STEPS, **options})
    return out[:, inputs["input_ids"].shape[1] :].tolist()


def expected(family: str, inputs: tiny.Inputs, name: str = "two layers", row: int = 0) -> list[int]:
    return truth(family, inputs, STAGES[name], row)[0]


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


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
@each_family
@pytest.mark.parametrize("name", ["merges everywhere", "attention"])
def test_gradients_with_and_without_checkpointing(family: str, name: str) -> None:
    model, inputs, gradients = tiny.fresh(family).train(), tiny.prompt(family), []
    for checkpointing in (False, True):
        model.zero_grad()
        if checkpointing:
            model.gradient_checkpointing_enable()
        with attach(model, Staged(STAGES[name])):
            model(**inputs, use_cache=False).logits[:, -1].square().mean().backward()
        weights = model.named_parameters()
        gradients.append({key: weight.grad.clone() for key, weight in weights if weight.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert any("vis" in key and grad.abs().sum() > 0 for key, grad in gradients[0].items())
    for key, grad in gradients[0].items():
        torch.testing.assert_close(grad, gradients[1][key])


@each_family
def test_labels_follow_the_kept_tokens(family: str) -> None:
    model, inputs = tiny.model(family), tiny.prompt(family)
    labels = inputs["input_ids"].clone()
    labels[:, :-3] = -100
    with attach(model, Staged(STAGES["merge at 0"])), torch.no_grad():
        out = model(**inputs, labels=labels)
        plain = model(**inputs).logits
    by_definition = torch.nn.functional.cross_entropy(plain[0, -4:-1], inputs["input_ids"][0, -3:])
    torch.testing.assert_close(out.loss, by_definition)


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


@pytest.mark.parametrize("family", tiny.FAMILIES)
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


# --- caches


def test_a_cache_reduced_inside_the_model_is_not_continued_without_stages() -> None:
    model, inputs = tiny.model("qwen2_5_vl"), tiny.prompt("qwen2_5_vl")
    with attach(model, Staged(STAGES["two layers"])):
        out = model.generate(**inputs, max_new_tokens=STEPS, return_dict_in_generate=True)
    more = {"input_ids": out.sequences, "attention_mask": torch.ones_like(out.sequences), "max_new_tokens": 2}
    with pytest.raises(UnsupportedCall, match="an attached Staged"):
        model.generate(**more, **{CACHE: copy.deepcopy(out[CACHE])})
    with attach(model, Loudest()), pytest.raises(UnsupportedCall, match="an attached Staged"):
        model.generate(**more, **{CACHE: copy.deepcopy(out[CACHE])})
    with attach(model, Staged({1: Loudest()})):  # which stages does not matter: the cache knows its own
        model.generate(**more, **{CACHE: copy.deepcopy(out[CACHE])})


def test_a_cache_is_not_cropped_into_the_reduced_prompt() -> None:
    model, inputs = tiny.model("qwen2_5_vl"), tiny.prompt("qwen2_5_vl")
    with torch.no_grad(), attach(model, Staged(STAGES["late"])):
        cache = model(**inputs, use_cache=True)[CACHE]
        cache.crop(-4)  # of the six tokens of the question
        with pytest.raises(UnsupportedCall, match="cannot be cropped"):
            cache.crop(-10)


def test_a_static_cache_is_refused() -> None:
    with pytest.raises(UnsupportedCall, match="use a dynamic cache"):
        answer(tiny.model("qwen2_5_vl"), tiny.prompt("qwen2_5_vl"), cache_implementation="static")


def test_what_a_trace_tells_of_stages() -> None:
    model, inputs = tiny.model("qwen2_5_vl"), tiny.prompt("qwen2_5_vl")
    with attach(model, Staged(STAGES["two layers"])) as trace:
        out = model.generate(**inputs, max_new_tokens=1, return_dict_in_generate=True)
    [video] = trace.videos
    assert [(s.layer, s.before, s.after) for s in video.stages] == [(1, 24, 12), (2, 12, 6)]
    assert (video.before, video.after, len(video.kept)) == (24, 6, 6)
    assert video.kept == sorted(set(video.kept))
    held = [40, 28, 22]  # 16 tokens of text
    assert trace.kv_bytes == tuple(2 * 2 * 16 * 4 * n for n in held)  # keys and values, heads, width, float32
    assert trace.kv_bytes == tuple(2 * layer.keys.nbytes for layer in out[CACHE].layers)
    assert "(12 from layer 1, 6 from layer 2), " in str(trace)
    assert str(trace).endswith(" % of the prefill FLOPs")
    assert json.loads(json.dumps(trace.to_dict()))["remembered_calls"][0]["kv_bytes"] == list(trace.kv_bytes)
    assert {"gather"} <= set(trace.stages_ms)


# --- what is refused


def test_stages_are_validated() -> None:
    stage = Loudest()
    for stages, message in (
        ({}, "at least one stage"),
        ({-1: stage}, "a stage is at a layer"),
        ({1.5: stage}, "a stage is at a layer"),
        ({True: stage}, "a stage is at a layer"),
        ({1: 0.5}, "expected a reducer at layer 1, got 0.5"),
        ({1: Staged({1: stage})}, "expected a reducer at layer 1"),
    ):
        with pytest.raises(ValueError, match=message):
            Staged(stages)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="make it the stage at 0"):
        Chain(stage, Staged({1: stage}))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected a Reducer or a Staged"):
        attach(tiny.model("qwen2_5_vl"), 0.3)  # type: ignore[arg-type]


def test_stages_that_a_model_has_no_layers_for() -> None:
    model = tiny.model("qwen2_5_vl")
    with pytest.raises(ValueError, match="this model has 3, 0 to 2"):
        attach(model, Staged({3: Loudest()}))
    with pytest.raises(ValueError, match="two stages at layer 1 of 3"):
        attach(model, Staged({1: Loudest(), 0.33: Loudest()}))
    with pytest.raises(UnsupportedCall, match="attention of layer 0, which is linear"):
        attach(tiny.model("qwen3_5"), Staged({1: attended(0.5)}))
    attach(tiny.model("qwen3_5"), Loudest()).remove()  # a failed attachment leaves the model free
    for early in (attended(0.5), Staged({0.0: attended(0.5)}), Chain(Loudest(), attended(0.5))):
        with pytest.raises(UnsupportedCall, match="at layer 1 or later"):
            attach(model, early)
    with pytest.raises(ValueError, match="cost sets the keep of the last stage"):
        attach(model, Staged({1: TemporalMerge(0.4)}, cost=0.9))
    attach(model, Loudest()).remove()


def test_linear_attention_after_a_stage_sees_no_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny._CONFIGS["qwen3_5"]()
    config.text_config.layer_types = ["full_attention", "linear_attention", "full_attention"]
    monkeypatch.setitem(tiny._CONFIGS, "qwen3_5", lambda: config)
    model, inputs = tiny.fresh("qwen3_5"), tiny.batch(*prompts("qwen3_5", 2))
    for stages in ({1: LouderThanMean()}, {0: Loudest(0.8), 1: LouderThanMean(), 2: Loudest(0.1)}):
        assert verify(model, inputs, Staged(stages), STEPS, TOLERANCE).ok


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


def test_fractions_of_the_depth() -> None:
    stages = Staged({0: Loudest(0.9), 0.25: Loudest(0.8), 0.5: Loudest(0.7), 0.75: Loudest(0.6)})
    assert [tuple(stages.layers(depth)) for depth in (4, 28, 80)] == [(0, 1, 2, 3), (0, 7, 14, 21), (0, 20, 40, 60)]
    assert stages.layers(28)[21] == Loudest(0.6)
    assert [*Staged({0.99: Loudest()}).layers(28)] == [27]


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
