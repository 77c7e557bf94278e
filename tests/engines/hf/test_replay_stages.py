"""Stages inside the model, on stored rows: what `Staged({0: ..., 1: ...})` gives on a video that the model sees."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from tests.engines.hf import fake_flash, tiny
from tests.engines.hf.reducers import Loudest
from tests.engines.hf.staged import attended
from tests.engines.hf.test_replay import ENCODED, GENERATE, Stored, answers, blind, padded, state
from vidsieve import Reducer, Staged
from vidsieve.engines.hf import attach, contract
from vidsieve.engines.hf.replay import Replay
from vidsieve.errors import UnsupportedCall, WrongArgument
from vidsieve.methods import Pixels, RunLength
from vidsieve.telemetry.trace import Trace
from vidsieve.types.reduction import Reduction
from vidsieve.types.tokens import Prompt, VideoTokens

STAGES: dict[Any, Reducer] = {1: Loudest(0.2), 2: attended(0.1, "question")}
FEW = ("qwen2_5_vl", "qwen3_vl", "llava_onevision", "qwen3_5")


def whole(stages: dict[Any, Reducer] = STAGES) -> Staged:
    return Staged({0: Loudest(), **stages})


@contextmanager
def both(stored: Stored, attached_first: bool, stages: dict[Any, Reducer] = STAGES) -> Iterator[Trace]:
    """Stages and stored rows on the model, in either order."""
    with ExitStack() as stack:
        if not attached_first:
            stack.enter_context(stored.on())
        trace = stack.enter_context(attach(stored.model, Staged(stages)))
        if attached_first:
            stack.enter_context(stored.on())
        yield trace


def close(found: Any, expected: Any, row: int = 0) -> None:
    found, expected = (torch.stack(out.logits) for out in (found, expected))
    torch.testing.assert_close(found[:, row : row + 1], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=tiny.marks(f)) for f in ENCODED if f in tiny.FAMILIES and tiny.served(f, inside=True)],
)
def test_they_act_as_they_do_behind_a_stage_at_0(family: str) -> None:
    stored = Stored(family)
    model = stored.model
    both = stored.full, stored.asked(33, 44, 55)
    with attach(model, whole()) as seen:
        expected = [model.generate(**full, **GENERATE) for full in both]
    before = state(model)
    prompts = [stored.reduced(full) for full in both]
    with blind(model), attach(model, Staged(STAGES)) as trace, stored.on():
        found = [model.generate(**inputs, **GENERATE) for inputs in prompts]
        batch = model.generate(**padded(*prompts), **GENERATE)
    assert state(model) == before
    assert [video.kept for video in trace.videos] == 2 * [video.kept for video in seen.videos]
    assert [s.after for s in trace.videos[0].stages] == [s.after for s in seen.videos[0].stages]
    assert trace.calls[0].cost == pytest.approx(seen.calls[0].cost)
    for row, (got, inputs, want, full) in enumerate(zip(found, prompts, expected, both, strict=True)):
        close(got, want)
        close(batch, want, row)
        assert torch.equal(answers(got, inputs), answers(want, full))


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "llava_onevision"])
def test_other_ways_to_decode(family: str) -> None:
    stored = Stored(family)
    model, inputs = stored.model, stored.reduced(stored.full)
    with attach(model, whole()):
        plain = model.generate(**stored.full, max_new_tokens=6)
        beams = model.generate(**stored.full, max_new_tokens=6, num_beams=3)
    with attach(model, Staged(STAGES)), stored.on():
        for expected, options in (
            (plain, {}),
            (plain, {"use_cache": False}),
            (plain, {"prompt_lookup_num_tokens": 2}),
            (beams, {"num_beams": 3}),
        ):
            found = model.generate(**inputs, max_new_tokens=6, **options)
            assert torch.equal(answers(found, inputs), answers(expected, stored.full)), options
        with pytest.raises(UnsupportedCall, match="use a dynamic cache"):
            model.generate(**inputs, max_new_tokens=6, cache_implementation="static")


@dataclass(frozen=True)
class Noting(Reducer):
    """Keeps what `Loudest` does, and notes how long the question is."""

    lengths: list[int] = field(default_factory=list)

    def reduce(self, tokens: VideoTokens, prompt: Prompt | None = None) -> Reduction:
        assert prompt is not None
        self.lengths.append(len(prompt.embeddings))
        return Loudest(0.2).reduce(tokens)


@pytest.mark.parametrize("attached_first", [True, False])
def test_candidates_after_the_prompt_are_no_question(attached_first: bool) -> None:
    stored, noting = Stored("qwen2_5_vl"), Noting()
    model, ids = stored.model, stored.full["input_ids"][0]
    begin = int((ids == stored.token).nonzero()[0])
    # A look-up follows these into words of the prompt, and then into the placeholders, which are left out.
    inputs = stored.reduced(stored.asked(*ids[begin - 4 : begin - 2].tolist()))
    with both(stored, attached_first, {1: noting}) as trace:
        expected = model.generate(**inputs, max_new_tokens=6)
        assert torch.equal(model.generate(**inputs, max_new_tokens=6, prompt_lookup_num_tokens=3), expected)
    plain, looked = trace.calls
    assert looked.sequence[0] > plain.sequence[0]
    assert noting.lengths[0] == noting.lengths[1]


@pytest.mark.parametrize("family", FEW)
def test_a_later_turn_goes_on_from_the_cache(family: str) -> None:
    stored = Stored(family)
    model, first = stored.model, stored.reduced(stored.full)
    stages: dict[Any, Reducer] = {1: Loudest(0.2), 2: Loudest(0.1)}  # the same whatever is asked
    with blind(model), attach(model, Staged(stages)), stored.on():
        out = model.generate(**first, max_new_tokens=5, return_dict_in_generate=True)
        turn = torch.cat([answers(out, first), torch.tensor([[33, 44, 55]])], 1)[0].tolist()
        full = stored.asked(*turn)
        later = stored.reduced(full)
        on = model.generate(**later, **GENERATE, **{contract.CACHE: out[contract.CACHE]})
    with attach(model, whole(stages)):
        expected = model.generate(**full, **GENERATE)
    close(on, expected)
    assert torch.equal(answers(on, later), answers(expected, full))


@pytest.mark.parametrize("attached_first", [True, False])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision", "internvl"])
def test_flash_attention(family: str, attached_first: bool) -> None:
    stored = Stored(family, tiny.fresh(family))
    inputs = stored.reduced(stored.full)
    with both(stored, attached_first):
        expected = stored.model.generate(**inputs, **GENERATE)
    with fake_flash.used_by(stored.model) as calls, both(stored, attached_first):
        found = stored.model.generate(**inputs, **GENERATE)
    assert calls
    close(found, expected)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_text_before_the_video_may_be_in_the_cache_already(family: str) -> None:
    stored = Stored(family)
    model, inputs = stored.model, stored.reduced(stored.full)
    cut = lambda where: {name: inputs[name][..., where] for name in ("input_ids", "position_ids")}  # noqa: E731
    with torch.no_grad(), attach(model, Staged(STAGES)), stored.on():
        expected = model(**inputs).logits[:, -1]
        cache = model(**cut(slice(0, 4)), use_cache=True)[contract.CACHE]
        found = model(**cut(slice(4, None)), **{contract.CACHE: cache}).logits[:, -1]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_text_in_the_batch_and_calls_with_a_video_of_their_own_are_what_they_are() -> None:
    stored = Stored("qwen3_vl")
    model, inputs = stored.model, stored.reduced(stored.full)
    ids = torch.tensor([[9, 8, 7, 6]])
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "position_ids": torch.arange(4).expand(4, 1, 4)}
    pixels = tiny.prompt("qwen3_vl", seed=1)
    with torch.no_grad():
        alone = model(**text).logits
        with attach(model, Staged(STAGES)):
            own = model(**pixels).logits
            with stored.on():
                expected = model(**inputs).logits[:, -1]
                rows = model(**padded(inputs, text)).logits[:, -1]
                assert torch.equal(model(**pixels).logits, own)
                assert torch.equal(model(**text).logits, alone)
    torch.testing.assert_close(rows, torch.cat([expected, alone[:, -1]]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("cost", [0.42, 0.38])
def test_a_share_of_the_cost_is_of_the_whole_video(cost: float) -> None:
    stored = Stored("qwen2_5_vl")
    model, stages = stored.model, {1: Loudest(0.9)}
    with torch.no_grad(), attach(model, Staged({0: Loudest(), **stages}, cost)) as seen:
        model(**stored.full)
    with torch.no_grad(), attach(model, Staged(stages, cost)) as trace, stored.on():
        model(**stored.reduced(stored.full))
    assert trace.videos[0].kept == seen.videos[0].kept
    assert trace.flops == seen.flops
    assert trace.cost == pytest.approx(cost, abs=0.02)


def test_a_failure_leaves_nothing_behind() -> None:
    stored = Stored("qwen2_5_vl")
    model, inputs = stored.model, stored.reduced(stored.full)
    before = state(model)
    wrong = {**inputs, "position_ids": inputs["position_ids"][..., :3]}
    with attach(model, Staged(STAGES)), stored.on():
        expected = model.generate(**inputs, max_new_tokens=3)
        with pytest.raises((RuntimeError, ValueError, IndexError)):
            model(**wrong)
        assert torch.equal(model.generate(**inputs, max_new_tokens=3), expected)
        packed = {
            **inputs,
            "position_ids": torch.cat([inputs["position_ids"][..., :-2], 0 * inputs["position_ids"][..., -2:]], -1),
        }
        with pytest.raises(UnsupportedCall, match="expected one sample a row"):
            model(**packed)
        custom = inputs["attention_mask"][:, None, None, :].bool()
        with pytest.raises(UnsupportedCall, match="needs a 2D attention_mask"):
            model(**{**inputs, "attention_mask": custom})
    assert state(model) == before


def test_what_acts_before_the_layers_is_refused() -> None:
    stored = Stored("qwen2_5_vl")
    inputs, selector = stored.reduced(stored.full), RunLength(0.5)
    says = r"acts before the layers .*, where an encoded video is reduced already; remove\(\) it, or use stages"
    for reducer in (Loudest(), whole(), Staged({Pixels(): selector}), Staged({Pixels(): selector, 1: Loudest()})):
        with attach(stored.model, reducer), pytest.raises(UnsupportedCall, match=says), stored.on():
            pass
        with stored.on(), attach(stored.model, reducer), pytest.raises(UnsupportedCall, match=says):
            stored.model.generate(**inputs, max_new_tokens=3)


def test_rows_of_which_nobody_knows_the_videos_are_not_reduced() -> None:
    stored = Stored("qwen2_5_vl")
    replay = Replay(stored.model, stored.features, stored.others)
    with (
        attach(stored.model, Staged(STAGES)),
        pytest.raises(UnsupportedCall, match="nothing says which videos"),
        replay,
    ):
        pass
    with pytest.raises(WrongArgument, match="expected the videos that 3 rows are of"):
        Replay(stored.model, stored.features[:3], stored.others, [stored.video])
