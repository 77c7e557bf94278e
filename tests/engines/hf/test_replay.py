"""Stored rows written over placeholders give what the model gives with the same tokens of a video it sees."""

import copy
import inspect
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GenerationMixin

from tests.engines.hf import fake_flash, newer, tiny
from tests.engines.hf.reducers import Loudest
from vidsieve.encoded.chunks import by_frame
from vidsieve.encoded.until_decoder import reduced_arguments
from vidsieve.engines.hf import adapter_for, attach, contract
from vidsieve.engines.hf.families import table
from vidsieve.engines.hf.replay import Replay
from vidsieve.engines.hf.replayed import StoredVideo
from vidsieve.errors import AlreadyAttached, UnsupportedCall, UnsupportedModel, UnsupportedVersion, WrongArgument

GENERATE = {"max_new_tokens": 6, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
WAYS: dict[str, Any] = {"beams": {"num_beams": 3}, "drawn": {"do_sample": True, "num_return_sequences": 2}}
TOWERS = ("visual", "vision_tower", "vision_model", "video_tower", "image_tower")
PICTURES = {"pixel_values", "pixel_values_videos"}


class Stored:
    """A video of hand-made inputs, reduced once, and the reduced prompts of it."""

    def __init__(self, family: str, model: Any = None, seed: int = 0) -> None:
        self.family, self.model = family, tiny.model(family) if model is None else model
        self.full = tiny.prompt(family, seed, frames=8)
        with torch.no_grad(), (attachment := attach(self.model, Loudest())) as trace:
            given = reduced_arguments(attachment, self.full)
        video, adapter = trace.videos[0], adapter_for(self.model)
        self.token = getattr(self.model.config, adapter.token)
        dropped = set(video.at.tolist()) - set(video.at[video.reduction.kept].tolist())
        self.stays = torch.tensor([i not in dropped for i in range(self.full["input_ids"].shape[1])])
        visual = self.full["input_ids"][0, self.stays] == self.token
        self.features = given["inputs_embeds"][0, visual]
        self.others = {n: torch.stack(list(given[n])) for n in adapter.per_visual if given.get(n) is not None}
        kept, rows = video.reduction.kept, (video.frames, video.grid, adapter.trailing)
        self.video = StoredVideo.of(kept, *rows, averaged=False, like=self.features)

    def asked(self, *words: int) -> tiny.Inputs:
        """The full prompt with other text after its video."""
        full, tail = dict(self.full), torch.tensor([words])
        for name, value in (("input_ids", tail), ("attention_mask", 1), ("mm_token_type_ids", 0)):
            if name in full:
                more = torch.zeros_like(tail) + value
                full[name] = torch.cat([full[name], more], 1)
        return full

    def reduced(self, full: tiny.Inputs) -> tiny.Inputs:
        ids = full["input_ids"]
        stays = torch.cat([self.stays, torch.ones(ids.shape[1] - len(self.stays), dtype=torch.bool)])
        shape = {name: x for name, x in full.items() if name not in {*PICTURES, "input_ids"}}
        positions = type(self.model)._prepare_position_ids_for_generation(self.model, ids, shape)[..., stays]
        if positions.ndim == 3 and len(positions) == 4:  # cosmos3_edge has three
            positions = torch.cat([torch.arange(positions.shape[-1]).expand_as(positions[:1]), positions[1:]])
        ids = ids[:, stays]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "position_ids": positions}

    @contextmanager
    def reference(self) -> Iterator[Any]:
        """What to generate from in another way, with beams and several answers."""
        known = inspect.signature(self.model.prepare_inputs_for_generation).parameters
        if self.others or "inputs_embeds" not in known:  # `generate` cannot be given them
            with attach(self.model, Loudest()):
                yield self.full
            return
        inputs = self.reduced(self.full)  # several releases cannot expand a GLM's, or a VideoLLaMA's, pixels
        ids = inputs.pop("input_ids")
        embeds = self.model.get_input_embeddings()(ids).detach()
        embeds[ids == self.token] = self.features
        yield {"inputs_embeds": embeds, **inputs}

    def on(self) -> Replay:
        return Replay(self.model, self.features, self.others, [self.video])


def padded(*rows: tiny.Inputs) -> tiny.Inputs:
    longest = max(row["input_ids"].shape[1] for row in rows)
    fill = {"input_ids": tiny.PAD}
    pad = lambda n, x: nn.functional.pad(x, (longest - x.shape[-1], 0), value=fill.get(n, 0))  # noqa: E731
    return {name: torch.cat([pad(name, row[name]) for row in rows], -2) for name in rows[0]}


@contextmanager
def blind(model: Any) -> Iterator[None]:
    """Nothing that sees may run."""

    def fail(*_: Any, **__: Any) -> Any:
        raise AssertionError("the vision tower ran")

    body = model.base_model
    towers = [part for name, part in body.named_children() if name in TOWERS]
    assert towers
    with ExitStack() as undo:
        for tower in towers:
            undo.callback(tower.register_forward_pre_hook(fail).remove)
        for name in ("get_video_features", "get_image_features"):
            if hasattr(body, name):
                body.__dict__[name] = fail
                undo.callback(body.__dict__.pop, name)
        yield


def answers(out: Any, inputs: tiny.Inputs) -> Tensor:
    return (out if isinstance(out, Tensor) else out.sequences)[:, inputs["input_ids"].shape[1] :]


def state(model: Any) -> Any:
    """All that hooks could leave behind."""
    hooks = lambda m: (list(m._forward_pre_hooks), list(m._forward_hooks))  # noqa: E731
    skipped = ("_forward_pre_hooks", "_forward_hooks", "rope_deltas")
    return [
        (name, hooks(m), {k: id(v) for k, v in vars(m).items() if k not in skipped and not k.endswith("_kwargs")})
        for name, m in model.named_modules()
    ]


ENCODED = [row["type"] for row in table() if not row["encode"] and row["type"] not in newer.UNTOLD]
encoded = pytest.mark.parametrize(
    "family", [pytest.param(f, marks=tiny.marks(f)) for f in tiny.FAMILIES if f in ENCODED]
)


@encoded
def test_it_answers_as_the_model_does_with_the_same_tokens(family: str) -> None:
    stored = Stored(family)
    model = stored.model
    first, second = stored.full, stored.asked(33, 44, 55)
    with attach(model, Loudest()):
        expected = [model.generate(**full, **GENERATE) for full in (first, second)]
    before = state(model)
    one, other = stored.reduced(first), stored.reduced(second)
    both = padded(one, other)
    ways = {} if family in newer.NO_BEAMS else WAYS

    def generated(inputs: Any) -> dict[str, Tensor]:
        length = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
        made = {}
        for name, options in ways.items():
            torch.manual_seed(3)
            made[name] = model.generate(**inputs, max_new_tokens=6, **options)[:, length:]
        return made

    with stored.reference() as inputs:
        reference = generated(inputs)
    with blind(model), stored.on():
        found = [model.generate(**inputs, **GENERATE) for inputs in (one, other)]
        batch = model.generate(**both, **GENERATE)
        again = generated(one)
    assert state(model) == before
    for got, want, inputs, full in zip(found, expected, (one, other), (first, second), strict=True):
        torch.testing.assert_close(torch.stack(got.logits), torch.stack(want.logits), atol=1e-4, rtol=0)
        assert torch.equal(answers(got, inputs), answers(want, full))
    together = torch.stack(batch.logits)
    for row, want in enumerate(expected):
        torch.testing.assert_close(together[:, row], torch.stack(want.logits)[:, 0], atol=1e-4, rtol=0)
    for name in ways:
        assert torch.equal(again[name], reference[name]), name
    assert not torch.equal(torch.stack(found[0].logits), torch.stack(found[1].logits))


FEW = ("qwen2_5_vl", "qwen3_vl", "llava_onevision", "qwen3_5")


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "llava_onevision"])
@pytest.mark.parametrize(
    "options", [{"use_cache": False}, {"cache_implementation": "static"}, {"prompt_lookup_num_tokens": 2}], ids=str
)
def test_other_ways_to_decode_give_the_same(family: str, options: Any) -> None:
    stored = Stored(family)
    inputs = stored.reduced(stored.full)
    with stored.on():
        expected = stored.model.generate(**inputs, max_new_tokens=6)
        assert torch.equal(stored.model.generate(**inputs, max_new_tokens=6, **options), expected)


def test_a_look_up_that_finds_placeholders_proposes_none() -> None:
    stored = Stored("qwen2_5_vl")
    ids = stored.full["input_ids"][0]
    begin = int((ids == stored.token).nonzero()[0])
    inputs = stored.reduced(stored.asked(*ids[begin - 2 : begin].tolist()))  # which the video follows in the prompt
    with stored.on():
        expected = stored.model.generate(**inputs, max_new_tokens=6)
        assert torch.equal(stored.model.generate(**inputs, max_new_tokens=6, prompt_lookup_num_tokens=3), expected)


@pytest.mark.parametrize("family", FEW)
def test_a_later_turn_goes_on_from_the_cache(family: str) -> None:
    stored = Stored(family)
    model, first = stored.model, stored.reduced(stored.full)
    with blind(model), stored.on():
        out = model.generate(**first, max_new_tokens=5, return_dict_in_generate=True)
        turn = torch.cat([answers(out, first), torch.tensor([[33, 44, 55]])], 1)[0].tolist()
        full = stored.asked(*turn)
        later = stored.reduced(full)
        anew = model.generate(**later, **GENERATE)
        on = model.generate(**later, **GENERATE, **{contract.CACHE: out[contract.CACHE]})
    with attach(model, Loudest()):
        expected = model.generate(**full, **GENERATE)
    for got in (anew, on):
        assert torch.equal(answers(got, later), answers(expected, full))
        torch.testing.assert_close(torch.stack(got.logits), torch.stack(expected.logits), atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision", "internvl"])
def test_flash_attention_takes_gaps_in_the_positions_for_no_other_sample(family: str) -> None:
    stored = Stored(family, tiny.fresh(family))
    inputs = stored.reduced(stored.full)
    with stored.on():
        expected = stored.model.generate(**inputs, **GENERATE)
        with fake_flash.used_by(stored.model) as calls:
            found = stored.model.generate(**inputs, **GENERATE)
    assert calls
    torch.testing.assert_close(torch.stack(found.logits), torch.stack(expected.logits), atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_text_before_the_video_may_be_in_the_cache_already(family: str) -> None:
    stored = Stored(family, tiny.fresh(family))
    model, inputs = stored.model, stored.reduced(stored.full)
    cut = lambda where: {name: inputs[name][..., where] for name in ("input_ids", "position_ids")}  # noqa: E731
    with torch.no_grad(), stored.on():
        expected = model(**inputs).logits[:, -1]
        for flash in (False, True):
            with fake_flash.used_by(model) if flash else ExitStack():
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
        alone, own = model(**text).logits, model(**pixels).logits
        with stored.on():
            expected = model(**inputs).logits[:, -1]
            rows = model(**padded(inputs, text)).logits[:, -1]
            assert torch.equal(model(**pixels).logits, own)
            assert torch.equal(model(**text).logits, alone)
    torch.testing.assert_close(rows, torch.cat([expected, alone[:, -1]]), atol=1e-4, rtol=0)


def test_what_the_calls_of_a_generation_in_another_thread_get() -> None:
    stored = Stored("qwen2_5_vl")
    inputs, found = stored.reduced(stored.full), []
    with stored.on():
        expected = stored.model.generate(**inputs, max_new_tokens=4)
        thread = threading.Thread(target=lambda: found.append(stored.model.generate(**inputs, max_new_tokens=4)))
        thread.start()
        thread.join()
    assert torch.equal(found[0], expected)


def test_two_models_answer_at_the_same_time() -> None:
    both = Stored("qwen2_5_vl"), Stored("qwen3_vl", seed=1)
    expected = []
    for stored in both:
        with stored.on():
            expected.append(stored.model.generate(**stored.reduced(stored.full), max_new_tokens=4))
    with both[0].on(), both[1].on():
        found = [stored.model.generate(**stored.reduced(stored.full), max_new_tokens=4) for stored in both]
    assert all(map(torch.equal, found, expected))


def test_one_model_answers_from_one_video_at_a_time() -> None:
    stored = Stored("qwen2_5_vl")
    before = state(stored.model)
    with stored.on(), pytest.raises(AlreadyAttached, match="already answers from an encoded video"), stored.on():
        pass
    assert state(stored.model) == before


def test_a_failure_leaves_nothing_behind() -> None:
    stored = Stored("qwen2_5_vl")
    model, inputs = stored.model, stored.reduced(stored.full)
    before = state(model)
    wrong = {**inputs, "position_ids": inputs["position_ids"][..., :3]}
    with stored.on():
        expected = model.generate(**inputs, max_new_tokens=3)
        with pytest.raises((RuntimeError, ValueError, IndexError)):
            model(**wrong)
        assert torch.equal(model.generate(**inputs, max_new_tokens=3), expected)
    with pytest.raises((RuntimeError, ValueError, IndexError)), stored.on():
        model(**wrong)
    assert state(model) == before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x: {k: v[..., 10:] for k, v in x.items()}, r"expected 12 placeholders .*, got 11"),
        (lambda x: {"input_ids": x["input_ids"]}, "without position_ids they would be counted anew"),
        (lambda x: {**x, "prefill_chunk_size": 16}, "cuts a prompt with an encoded video into pieces"),
    ],
    ids=["fewer", "positions", "pieces"],
)
def test_prompts_that_are_not_of_the_video_are_refused(change: Any, says: str) -> None:
    stored = Stored("qwen2_5_vl")
    assert len(stored.features) == 12
    with stored.on(), pytest.raises(UnsupportedCall, match=says):
        stored.model.generate(**change(stored.reduced(stored.full)), max_new_tokens=2)


def test_a_loop_of_ones_own_needs_positions_too() -> None:
    stored = Stored("qwen2_5_vl")
    inputs = stored.reduced(stored.full)
    token = torch.tensor([[5]])
    with torch.no_grad(), stored.on():
        out = stored.model(**inputs, use_cache=True)
        cache = {contract.CACHE: out[contract.CACHE]}
        with pytest.raises(UnsupportedCall, match="without position_ids they would be counted anew"):
            stored.model(input_ids=token, **cache)
        with pytest.raises(UnsupportedCall, match="cannot be in one prompt with images"):
            stored.model(**inputs, pixel_values=torch.zeros(4, 4))
        with pytest.raises(UnsupportedCall, match="expected input_ids, got embeddings"):
            stored.model(inputs_embeds=torch.zeros(1, 4, 64), position_ids=torch.zeros(1, 4))
        step = stored.model(input_ids=token, position_ids=inputs["position_ids"][..., -1:] + 1, **cache)
    assert step.logits.isfinite().all()


def test_a_reducer_on_the_model_is_refused_and_a_fast_tower_is_not() -> None:
    stored = Stored("qwen2_5_vl")
    inputs = stored.reduced(stored.full)
    with stored.on():
        expected = stored.model.generate(**inputs, max_new_tokens=3)
    with attach(stored.model, vision="auto"), stored.on():
        assert torch.equal(stored.model.generate(**inputs, max_new_tokens=3), expected)
    says = r"Loudest.* acts before the layers .* reduced already; remove\(\) it"
    with attach(stored.model, Loudest()), pytest.raises(UnsupportedCall, match=says), stored.on():
        pass
    with stored.on(), attach(stored.model, Loudest()), pytest.raises(UnsupportedCall, match=says):
        stored.model.generate(**inputs, max_new_tokens=3)


@pytest.mark.parametrize("family", [family for family in tiny.FAMILIES if family not in (*ENCODED, *newer.UNTOLD)])
def test_families_that_were_not_compared_are_refused(family: str) -> None:
    model = tiny.model(family)
    with pytest.raises(UnsupportedModel, match="does not answer from stored rows"):
        Replay(model, torch.zeros(1, model.get_input_embeddings().weight.shape[1]), {})


def test_a_release_that_does_not_tell_positions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = Stored("qwen2_5_vl")
    counted = GenerationMixin._prepare_position_ids_for_generation  # as the thinkers of Qwen-Omni have it before 5.17
    monkeypatch.setattr(type(stored.model), "_prepare_position_ids_for_generation", counted)
    with pytest.raises(UnsupportedVersion, match="does not tell positions before it is called"), stored.on():
        pass
    with pytest.raises(UnsupportedVersion, match="does not tell positions before it is called"):
        by_frame(stored.model, None)


def test_what_is_no_row_of_the_model_is_refused() -> None:
    stored = Stored("qwen3_vl")
    model, rows = stored.model, stored.features
    with pytest.raises(WrongArgument, match=r"expected deepstack_visual_embeds \(layers, 12, D\), got"):
        Replay(model, rows, {"deepstack_visual_embeds": rows})
    with pytest.raises(WrongArgument, match="expected features of 64 numbers"), Replay(model, rows[:, :32], {}):
        pass
    compiled = torch.compile(model, backend="eager")
    with pytest.raises(UnsupportedCall, match="compiled"), Replay(compiled, rows, stored.others):
        pass
    with stored.on(), pytest.raises(UnsupportedCall, match="cannot be copied"):
        copy.deepcopy(model)
