"""Models that no list names: what derives from a root is served like it, whatever it is called."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed; `make test-vllm` sets it up beside this environment", allow_module_level=True)

import torch
from vllm import ModelRegistry
from vllm.model_executor.models.opencua import OpenCUAForConditionalGeneration
from vllm.model_executor.models.qwen2_vl import Qwen2VLForConditionalGeneration
from vllm.model_executor.models.qwen3_5 import Qwen3_5ForConditionalGeneration
from vllm.model_executor.models.qwen3_vl import Qwen3VLForConditionalGeneration

from tests.engines.hf import tiny
from tests.engines.vllm import engine, truth
from tests.engines.vllm.engine import clip, ids, mixed, pads, request
from vidsieve import VideoTokens
from vidsieve.engines.vllm import runner, settings
from vidsieve.engines.vllm.derive import derive
from vidsieve.engines.vllm.models import SievedGrid, SievedInterleaved
from vidsieve.errors import UnsupportedCall, UnsupportedModel, WrongArgument
from vidsieve.methods import presets

pytestmark = pytest.mark.vllm
NOTHING = 1e-17  # a rate so small that every token stays: with it, a pruning server must be one that does not prune

Start = Callable[..., engine.Engine]

HYBRID = {"dtype": "bfloat16", "enable_prefix_caching": False}  # what vLLM's linear attention runs with on CPU
each_qwen3_5 = pytest.mark.parametrize("family", ["qwen3_5", "qwen3_5_moe"])


@each_qwen3_5
def test_qwen3_5_is_served_as_qwen3_vl_is(start: Start, family: str) -> None:
    asked = [request(family), request(family, clip(1), clip(2, 10)), mixed(family)]
    sizes = [[128], [128, 80], [64, 48]]
    plain = start(family, 0.0, None, **HYBRID)
    unpruned = [(plain.positions[out.request_id], out) for one in asked for out in plain.ask([one])]
    served = start(family, NOTHING, **HYBRID)
    for one, (where, expected) in zip(asked, unpruned, strict=True):
        (out,) = served.ask([one])
        assert torch.equal(served.positions[out.request_id], where)
        assert ids(out) == ids(expected)
    served = start(family, 0.75, **HYBRID)
    for one, (where, whole), totals in zip(asked, unpruned, sizes, strict=True):
        served.kept.clear()
        (out,) = served.ask([one])
        assert pads(out) == sum(total // 4 for total in totals)
        is_video = torch.tensor(whole.prompt_token_ids) == tiny.VIDEO
        firsts = torch.tensor([0, *totals]).cumsum(0)
        kept = torch.cat([first + kept for first, kept in zip(firsts, served.kept, strict=False)])
        stays = ~is_video
        stays[is_video.nonzero()[kept, 0]] = True
        assert torch.equal(served.positions[out.request_id], where[:, stays])


@each_qwen3_5
def test_qwen3_5_in_pieces_and_from_the_features_of_hugging_face(start: Start, family: str) -> None:
    asked = [request(family), mixed(family)]
    served = start(family, 0.75, **HYBRID)
    expected = [(served.positions[out.request_id], ids(out)) for one in asked for out in served.ask([one])]
    kept, features = served.kept[0], served.features[0]
    pieces = start(family, 0.75, max_num_batched_tokens=64, max_num_seqs=2, **HYBRID)
    for one, (where, answer) in zip(asked, expected, strict=True):
        (out,) = pieces.ask([one])
        assert torch.equal(pieces.positions[out.request_id], where)
        assert ids(out) == answer
    assert torch.equal(kept, presets.vidsieve(0.25).reduce(VideoTokens.from_grid(features, 8, 4, 4)).kept)
    known = truth.inputs(family, asked[0])
    with torch.no_grad():
        out = engine.hugging_face(family).model.get_video_features(
            known["pixel_values_videos"], known["video_grid_thw"]
        )
    torch.testing.assert_close(features.float(), torch.cat(list(out.pooler_output)), rtol=0, atol=0.05)


def test_stock_cannot_prune_qwen3_5(start: Start) -> None:
    stock = start("qwen3_5", 0.5, None, **HYBRID)
    with pytest.raises(Exception, match="video_pruning_method"):
        stock.ask([request("qwen3_5")])


def test_positions_of_one_dimension_close_ranks(start: Start) -> None:
    """A Qwen2.5-VL whose language model just counts: nothing is appended, for nobody would take it off."""
    family = "qwen2_5_vl_counting"
    asked = [request(family), request(family, clip(1), clip(2, 10)), mixed(family)]
    plain = start(family, 0.0, None)
    expected = [(ids(out), pads(out)) for one in asked for out in plain.ask([one])]
    served = start(family, NOTHING)
    assert [(ids(out), pads(out)) for one in asked for out in served.ask([one])] == expected
    served = start(family, 0.75)
    pruned = [out for one in asked for out in served.ask([one])]
    assert [pads(out) for out in pruned] == [total // 4 for _, total in expected]
    assert [ids(out) for out in served.ask(asked)] == [ids(out) for out in pruned]


class Forgetful(Qwen3VLForConditionalGeneration):
    """As InternS1-Pro: without what only pruning reads."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        del self._tokenizer, self.is_multimodal_pruning_enabled


def test_a_model_without_a_tokenizer_gets_one(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = start("qwen3_vl", 0.75)
    (expected,) = plain.ask([request("qwen3_vl")])
    where = plain.positions[expected.request_id]
    monkeypatch.setitem(
        ModelRegistry.models, "Qwen3VLForConditionalGeneration", ModelRegistry.models["Qwen3VLForConditionalGeneration"]
    )
    ModelRegistry.register_model("Qwen3VLForConditionalGeneration", Forgetful)
    served = start("qwen3_vl", 0.75)
    assert isinstance(served.model, Forgetful)
    (out,) = served.ask([request("qwen3_vl")])
    assert torch.equal(served.positions[out.request_id], where)
    assert ids(out) == ids(expected)


def test_llava_onevision_which_vllm_cannot_prune(start: Start) -> None:
    family = "llava_onevision"
    image = mixed(family)["multi_modal_data"]["image"][0]
    beside = {
        "prompt": engine.prompt(family, "image", "video"),
        "multi_modal_data": {"video": [clip(3, 8)[0]], "image": [image]},
    }
    asked = [request(family, clip(0, 8)[0]), request(family, clip(1, 8)[0], clip(2, 8)[0]), beside]
    plain = start(family, 0.0, None)
    expected = [(ids(out), pads(out)) for one in asked for out in plain.ask([one])]
    stock = start(family, 0.75, None)
    assert [pads(out) for one in asked for out in stock.ask([one])] == [count for _, count in expected], "ignored"
    served = start(family, NOTHING)
    assert [(ids(out), pads(out)) for one in asked for out in served.ask([one])] == expected

    served = start(family, 0.75)
    many = [*asked, request(family, clip(1, 8)[0], clip(2, 6)[0])]
    alone = [out for one in many for out in served.ask([one])]
    newlines = (1, 2, 1)
    assert [pads(out) for out in alone[:3]] == [
        sum(((count - n) // n) // 4 + 1 for _ in range(n)) for (_, count), n in zip(expected, newlines, strict=True)
    ]
    served.llm.reset_prefix_cache()
    assert [ids(out) for out in served.ask(many)] == [ids(out) for out in alone]
    wish = {"mm_processor_kwargs": {"vidsieve": {"keep": 0.5}}}
    (half,) = served.ask([request(family, clip(0, 8)[0], **wish)])
    assert pads(half) == round((expected[0][1] - 1) / 2) + 1

    _, _, kept = truth.answer(family, asked[0], presets.vidsieve(0.25))
    assert kept == [served.kept[0].tolist()]


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_a_video_held_beside_a_new_one(start: Start, family: str) -> None:
    """A second question encodes what is new in it, and each video gets its own selection."""
    served = start(family, 0.75, "cdpruner", enable_prefix_caching=False)
    name = "_video_pixels_to_features" if family == "llava_onevision" else "_process_video_input"
    encode, encoded = getattr(served.model, name), []

    def counted(*args: Any) -> Any:
        out = encode(*args)
        encoded.append(sum(map(len, out)) if family == "llava_onevision" or args[0]["type"] != "video_embeds" else 0)
        return out

    setattr(served.model, name, counted)
    clips = [clip(seed, 8)[0] if family == "llava_onevision" else clip(seed, 8) for seed in range(3)]

    def ask(question: str, *videos: Any) -> list[list[int]]:
        served.kept.clear()
        wish = {"mm_processor_kwargs": {"vidsieve": {"question": question}}}
        served.ask([request(family, *videos, **wish)])
        return [kept.tolist() for kept in served.kept]

    (first,) = ask("red green blue", clips[1])
    once = sum(encoded)
    (other,) = ask("1 2 3 4 5 6 7", clips[1])
    assert other != first
    assert sum(encoded) == once
    together = sorted(ask("1 2 3 4 5 6 7 8", *clips))
    assert sum(encoded) == 3 * once
    served.llm.llm_engine.reset_encoder_cache()  # as for new weights
    alone = [kept for video in clips for kept in ask("1 2 3 4 5 6 7 8", video)]
    assert sum(encoded) == 6 * once
    assert together == sorted(alone)


@pytest.mark.parametrize(
    ("module", "name", "layout"),
    [
        ("qwen3_5", "Qwen3_5MoeForConditionalGeneration", SievedInterleaved),
        ("interns1_pro", "InternS1ProForConditionalGeneration", SievedInterleaved),
        ("interns2_preview", "InternS2PreviewForConditionalGeneration", SievedInterleaved),
        ("interns2_mobius", "InternS2MobiusForConditionalGeneration", SievedInterleaved),
        ("cosmos3", "Cosmos3ForConditionalGeneration", SievedInterleaved),
        ("colqwen3_5", "ColQwen3_5Model", SievedInterleaved),
        ("exaone4_5", "Exaone4_5_ForConditionalGeneration", SievedGrid),
    ],
)
def test_what_derives_from_a_root_is_served(module: str, name: str, layout: type) -> None:
    theirs = getattr(importlib.import_module(f"vllm.model_executor.models.{module}"), name)
    ours, reason = derive(theirs)
    assert not reason
    assert ours is not None
    assert issubclass(ours, layout)
    assert issubclass(ours, theirs)
    assert derive(theirs)[0] is ours
    assert getattr(sys.modules[ours.__module__], ours.__name__) is ours, "pickle finds it"


def test_a_model_with_positions_of_its_own_is_not() -> None:
    own = type("Own", (Qwen3VLForConditionalGeneration,), {"get_mrope_input_positions": lambda *_: None})
    ours, reason = derive(own)
    assert ours is None
    assert "get_mrope_input_positions" in reason
    assert derive(Qwen2VLForConditionalGeneration) == (None, "")
    assert derive(OpenCUAForConditionalGeneration) == (None, "it takes no video")


class _Config:
    """A model configuration with a pruning rate."""

    multimodal_config = property(lambda self: self)
    uses_mrope = True
    runner_type = "generate"

    def __init__(self, *spec: Any, **kwargs: Any) -> None:
        self.spec = spec or None
        self.mm_processor_kwargs = kwargs or None

    def get_video_pruning_spec(self) -> Any:
        return self.spec


@pytest.mark.parametrize(("spec", "got"), [((), "no --video-pruning-rate"), (("vidcom2", 0.5), "vidcom2")])
def test_a_named_method_that_would_never_run_is_refused(
    monkeypatch: pytest.MonkeyPatch, spec: tuple[Any, ...], got: str
) -> None:
    monkeypatch.setenv(settings.VARIABLE, "divprune")
    settings.configured.cache_clear()
    ours: Any = derive(Qwen3_5ForConditionalGeneration)[0]
    with pytest.raises(UnsupportedCall, match=rf"VIDSIEVE_VLLM=divprune .* got .*{got}"):
        ours(vllm_config=SimpleNamespace(model_config=_Config(*spec)))
    settings.configured.cache_clear()


def test_options_that_would_never_be_honoured_are_refused_when_the_model_is_looked_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry: Any = _Registry(Qwen3VLForConditionalGeneration)
    runner.derive_models(registry)
    monkeypatch.delenv(settings.VARIABLE, raising=False)
    for spec in ((), ("evs", 0.9)):
        with pytest.raises(WrongArgument, match="belongs in the mm_processor_kwargs of a request, not in --mm-proc"):
            registry.resolve_model_cls([], model_config=_Config(*spec, vidsieve={"keep": 0.5}))
        found = registry.resolve_model_cls([], model_config=_Config(*spec, fps=1))[0]
        assert issubclass(found, SievedInterleaved)
    monkeypatch.setenv(settings.VARIABLE, "divprune")
    with pytest.raises(WrongArgument, match=r"VIDSIEVE_VLLM=divprune .* got no --video-pruning-rate"):
        registry.resolve_model_cls([], model_config=_Config())


@pytest.mark.parametrize(
    ("rate", "method", "options", "says"),
    [
        (0.5, "", {"mm_processor_kwargs": {"vidsieve": {"keep": 0.5}}}, "belongs in the mm_processor_kwargs of a req"),
        (0.0, "divprune", {}, "VIDSIEVE_VLLM=divprune names a method that would never run"),
    ],
)
def test_they_are_refused_before_a_worker_is_started(
    start: Start, rate: float, method: str, options: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the process whose last line a user sees."""
    monkeypatch.setattr("vllm.v1.engine.llm_engine.LLMEngine.__init__", None)
    with pytest.raises(WrongArgument, match=says):
        start("qwen3_vl", rate, method, **options)


def test_without_the_older_runner_there_is_nothing_to_patch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm.v1.worker.gpu_model_runner", None)
    runner.patch_runner()


class _Registry:
    """vLLM's registry, as far as `derive_models` goes."""

    def __init__(self, model: type) -> None:
        self.model = model

    def resolve_model_cls(self, architectures: Any, model_config: Any) -> Any:
        return self.model, "OtherForConditionalGeneration"


def test_an_unsupported_model_says_so(log: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    registry: Any = _Registry(type("Other", (), {"supports_multimodal": True}))
    runner.derive_models(registry)
    runner.derive_models(registry)
    monkeypatch.delenv(settings.VARIABLE, raising=False)
    registry.resolve_model_cls(["OtherForConditionalGeneration"], model_config=_Config("evs", 0.9))
    assert ["NOT active in OtherForConditionalGeneration" in line for line in log] == [True]
    monkeypatch.setenv(settings.VARIABLE, "vidsieve")
    with pytest.raises(UnsupportedModel, match="NOT active"):
        registry.resolve_model_cls(["OtherForConditionalGeneration"], model_config=_Config("evs", 0.9))
    with pytest.raises(WrongArgument, match="would never run"):
        registry.resolve_model_cls(["OtherForConditionalGeneration"], model_config=_Config())


def test_a_draft_model_stays_vllms_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets the positions of the model that it drafts for."""
    registry: Any = _Registry(Qwen3VLForConditionalGeneration)
    runner.derive_models(registry)
    config: Any = _Config("evs", 0.9)
    monkeypatch.setenv(settings.VARIABLE, "vidsieve")
    assert issubclass(registry.resolve_model_cls([], model_config=config)[0], SievedInterleaved)
    config.runner_type = "draft"
    assert registry.resolve_model_cls([], model_config=config)[0] is Qwen3VLForConditionalGeneration
