"""Attaching, detaching, and all that may stand around the model: threads, offloading, wrappers, errors."""

import copy
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from tests.engines.hf import by_hand, tiny
from tests.engines.hf.reducers import Loudest, NearestToQuestion
from tests.engines.hf.staged import STAGES
from tests.engines.hf.truth import STEPS, answer, each_family, truth
from vidsieve import FrameFusion, Prune, Staged
from vidsieve.engines.hf import attach, verify
from vidsieve.engines.hf.contract import CACHE
from vidsieve.errors import AlreadyAttached, BudgetError, NonFiniteFeatures, UnsupportedCall
from vidsieve.methods.merge import TemporalMerge
from vidsieve.telemetry.flops import layer_costs


@pytest.mark.filterwarnings("ignore:You are calling .generate")
def test_offloaded_weights() -> None:
    accelerate = pytest.importorskip("accelerate")
    for family in ("qwen2_5_vl", "qwen3_vl", "internvl"):
        inputs = tiny.prompt(family)
        model = accelerate.cpu_offload(tiny.fresh(family), execution_device="cpu")
        assert answer(model, inputs) == [truth(family, inputs)]


@each_family
def test_a_device_map(family: str) -> None:
    accelerate = pytest.importorskip("accelerate")
    inputs, model = tiny.prompt(family), tiny.fresh(family)
    model = accelerate.dispatch_model(model, {"": "cpu"}, main_device="cpu", force_hooks=True)
    assert answer(model, inputs) == [truth(family, inputs)]


@each_family
def test_eight_threads_on_one_model(family: str) -> None:
    model = tiny.fresh(family)
    work = [tiny.prompt(family, seed=n % 3, text=6 + n % 3) for n in range(16)]
    expected = [truth(family, tiny.prompt(family, seed=n, text=6 + n)) for n in range(3)]

    def run(inputs: tiny.Inputs) -> list[int]:
        return model.generate(**inputs, max_new_tokens=STEPS)[0, inputs["input_ids"].shape[1] :].tolist()

    with attach(model, Loudest()) as trace, ThreadPoolExecutor(8) as threads:
        found = list(threads.map(run, work))
    assert found == [expected[n % 3] for n in range(16)]
    assert trace.totals["calls"] == 16


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(
    "method", [Prune(0.5), Staged({0: TemporalMerge(0.6), 2: Prune(0.5)}), Staged({2: Prune(0.5)})], ids=repr
)
def test_features_that_are_not_finite_are_refused(method: Any, device: str) -> None:
    model = tiny.fresh("qwen2_5_vl").to(device)
    inputs = {name: x.to(device) for name, x in tiny.prompt("qwen2_5_vl").items()}
    pixels = inputs["pixel_values_videos"]
    with attach(model, method) as trace, torch.no_grad():
        with pytest.raises(NonFiniteFeatures, match="video tokens hold NaN or inf"):
            model(**{**inputs, "pixel_values_videos": torch.full_like(pixels, torch.nan)})
        assert not trace.videos
        model(**inputs)
        assert trace.videos[0].after < trace.videos[0].before


@pytest.mark.parametrize("method", [Loudest(), Staged(STAGES["merge at 0"]), Staged(STAGES["attention"])], ids=repr)
def test_weights_of_eight_bits(method: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries it finds missing
        from torchao import quantization

        model = tiny.fresh("qwen2_5_vl")
        costs = layer_costs(model.get_decoder())
        quantization.quantize_(model.get_decoder(), quantization.Int8WeightOnlyConfig())
    assert layer_costs(model.get_decoder()) == costs
    report = verify(model, tiny.batch(*[tiny.prompt("qwen2_5_vl", seed=4 * n, text=6 + n) for n in range(2)]), method)
    assert report.ok, report


def test_stages_on_offloaded_weights() -> None:
    accelerate = pytest.importorskip("accelerate")
    inputs, stages = tiny.prompt("qwen3_vl"), STAGES["attention"]
    model = accelerate.cpu_offload(tiny.fresh("qwen3_vl"), execution_device="cpu")
    with attach(model, Staged(stages)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="You are calling .generate")
        out = model.generate(**inputs, max_new_tokens=STEPS)
    expected = by_hand.staged("qwen3_vl", inputs, stages, STEPS, 6)[0]
    assert out[0, inputs["input_ids"].shape[1] :].tolist() == expected


def test_a_wrapped_model_is_attached_at_its_core() -> None:
    class Wrapper:  # as peft.PeftModel
        def get_base_model(self) -> Any:
            return tiny.model("qwen2_5_vl")

    with attach(Wrapper(), Loudest()) as trace:
        tiny.model("qwen2_5_vl").generate(**tiny.prompt("qwen2_5_vl"), max_new_tokens=1)
    assert trace.videos


def test_one_reducer_at_a_time() -> None:
    model = tiny.model("qwen2_5_vl")
    handle = attach(model, Loudest())
    with pytest.raises(AlreadyAttached, match="Chain"):
        attach(model, Loudest())
    handle.remove()
    handle.remove()
    attach(model, Loudest()).remove()


def test_an_exception_detaches_and_leaves_no_stale_state() -> None:
    model, inputs = tiny.model("qwen2_5_vl"), tiny.prompt("qwen2_5_vl")
    whole = model.generate(**inputs, max_new_tokens=STEPS)
    broken = {**inputs, "pixel_values_videos": inputs["pixel_values_videos"][:-4]}
    with pytest.raises((RuntimeError, ValueError, IndexError)), attach(model, Loudest()):
        model.generate(**broken, max_new_tokens=STEPS)
    assert torch.equal(model.generate(**inputs, max_new_tokens=STEPS), whole)
    with attach(model, Loudest()):
        with pytest.raises((RuntimeError, ValueError, IndexError)):
            model.generate(**broken, max_new_tokens=STEPS)
        out = model.generate(**inputs, max_new_tokens=STEPS)
    assert out[0, inputs["input_ids"].shape[1] :].tolist() == truth("qwen2_5_vl", inputs)


def failing(module: torch.nn.Module) -> AbstractContextManager[object]:
    """While this is open, `module` fails when it is called."""

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    return closing(SimpleNamespace(close=module.register_forward_pre_hook(fail).remove))


@torch.no_grad()
def test_a_vision_tower_that_fails_leaves_nothing_for_the_next_call() -> None:
    model, inputs = tiny.model("qwen2_5_vl"), tiny.prompt("qwen2_5_vl")
    length = inputs["input_ids"].shape[1]
    with attach(model, Loudest()) as trace:
        with failing(model.base_model.visual), pytest.raises(RuntimeError, match="out of memory"):
            model(**inputs)
        positions = torch.arange(length).expand(3, 1, -1)
        out = model.get_decoder()(inputs_embeds=torch.randn(1, length, 64), position_ids=positions)
    assert out.last_hidden_state.shape[1] == length
    assert not trace.videos


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_a_generation_leaves_nothing_on_the_thread(family: str) -> None:
    model, inputs = tiny.model(family), tiny.prompt(family)

    def left(attachment: Any) -> set[str]:
        return vars(attachment.target.states._threads).keys()

    with (attachment := attach(model, Loudest())):
        model.generate(**inputs, max_new_tokens=2)
        assert not left(attachment)
        with failing(model.get_decoder()), pytest.raises(RuntimeError, match="out of memory"):
            model.generate(**inputs, max_new_tokens=2, prompt_lookup_num_tokens=2)
        assert not left(attachment)
        out = model.generate(**inputs, max_new_tokens=STEPS)
        assert not left(attachment)
    assert out[0, inputs["input_ids"].shape[1] :].tolist() == truth(family, inputs)
    assert "generate" not in vars(model)


@torch.no_grad()
def test_labels_of_a_call_that_failed_are_forgotten() -> None:
    model, inputs = tiny.model("qwen2_5_vl"), tiny.prompt("qwen2_5_vl")
    with attach(model, NearestToQuestion()) as trace:
        model(**inputs)
        with failing(model), pytest.raises(RuntimeError, match="out of memory"):
            model(**inputs, labels=inputs["input_ids"])
        model(**inputs)
    assert trace.videos[0].kept == trace.videos[1].kept


@pytest.mark.parametrize("method", [Loudest(), Staged(STAGES["two layers"]), Staged(STAGES["merge at 0"])], ids=repr)
@torch.no_grad()
def test_a_decoder_that_fails_leaves_the_cache_as_it_was_and_holds_nothing(method: Any) -> None:
    model, inputs = tiny.model("qwen2_5_vl"), tiny.prompt("qwen2_5_vl")
    cache = transformers.DynamicCache(config=model.config.get_text_config())
    handle = attach(model, method)
    true = model(**inputs).logits
    for layer in model.get_decoder().layers:
        with failing(layer), pytest.raises(RuntimeError, match="out of memory"):
            model(**inputs, **{CACHE: cache})
        assert [cache.get_seq_length(i) for i in range(3)] == [0, 0, 0]
        assert handle.target.states.current is None
    torch.testing.assert_close(model(**inputs, **{CACHE: cache}).logits, true)
    handle.remove()


@torch.no_grad()
def test_a_refusal_within_the_decoder_leaves_a_filled_cache_as_it_was() -> None:
    model = tiny.model("llava_onevision")
    first, second = (tiny.prompt("llava_onevision", seed=turn) for turn in range(2))
    length, found = first["input_ids"].shape[1], []
    mask = torch.ones(1, length + second["input_ids"].shape[1], dtype=torch.long)
    for fails in (False, True):
        with attach(model, Staged({1: Loudest(0.5), 2: Loudest(0.3)})):
            cache = model(**first, use_cache=True)[CACHE]
        held = [layer.keys.shape[2] for layer in cache.layers]
        if fails:
            with attach(model, Staged({1: Loudest(0.5), 2: Prune(0.3)}, cost=0.05)), pytest.raises(BudgetError):
                model(**{**second, "attention_mask": mask}, **{CACHE: cache})
            assert [layer.keys.shape[2] for layer in cache.layers] == held
        with attach(model, Staged({1: Loudest(0.5), 2: Loudest(0.3)})):
            found.append(model(**{**second, "attention_mask": mask}, **{CACHE: cache}).logits)
    assert torch.equal(*found)


@torch.no_grad()
def test_an_interrupted_prefill_is_not_taken_over_by_the_next_call() -> None:
    model = tiny.model("qwen2_5_vl")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with attach(model, Loudest()) as trace:
        interrupting = model.get_decoder().layers[0].register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            model(**tiny.prompt("qwen2_5_vl"))
        interrupting.remove()
        cache = model(input_ids=torch.tensor([[5]]), use_cache=True)[CACHE]
    assert cache.get_seq_length() == 1
    assert not trace.calls


def test_a_model_is_copied_and_pickled_once_it_is_free() -> None:
    model = tiny.fresh("qwen2_5_vl")
    with attach(model, Loudest()):
        for copied in (copy.deepcopy, pickle.dumps):
            with pytest.raises(UnsupportedCall, match="cannot be copied or pickled with a reducer attached"):
                copied(model)
    copy.deepcopy(model)


def test_a_removed_attachment_is_not_taken_for_another() -> None:
    handle = attach(tiny.model("qwen2_5_vl"), Loudest())
    handle.remove()
    with pytest.raises(UnsupportedCall, match="attach again"), handle:
        pass


def test_the_interface_of_the_guide_is_attached_like_any_method() -> None:
    model, inputs = tiny.model("qwen2_5_vl"), tiny.prompt("qwen2_5_vl")
    method = FrameFusion(cost=0.9)
    with attach(model, method) as trace, torch.no_grad():
        model(**inputs)
    assert trace.cost == pytest.approx(0.9, rel=0.1)
    assert verify(model, inputs, method).ok
