"""Models that vLLM has no pruning for: ours is right, and vLLM alone leaves all tokens in the prompt."""

import importlib.util
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed; `make test-vllm` sets it up beside this environment", allow_module_level=True)

import torch
from vllm.model_executor.models.glm4_1v import Glm4vForConditionalGeneration, Glm4vMoeForConditionalGeneration
from vllm.model_executor.models.internvl import InternVLChatModel

from tests.engines.hf import tiny
from tests.engines.vllm import engine, truth
from tests.engines.vllm.engine import clip, ids, pads, request
from vidsieve.engines.vllm import runner, settings
from vidsieve.engines.vllm.derive import derive
from vidsieve.errors import UnsupportedCall, UnsupportedModel
from vidsieve.methods import presets

pytestmark = pytest.mark.vllm
NOTHING = 1e-17  # a rate so small that every token stays: with it, a pruning server must be one that does not prune

Start = Callable[..., engine.Engine]


def video(family: str, seed: int, frames: int = 8) -> Any:
    return clip(seed, frames) if family == "glm4v" else clip(seed, frames)[0]


def mixed(family: str) -> dict[str, Any]:
    asked = engine.mixed(family)
    asked["multi_modal_data"]["video"] = [video(family, 1), video(family, 2, 6)]
    return asked


@pytest.mark.parametrize("family", ["internvl", "llava_next_video"])
def test_what_stays_closes_ranks(start: Start, family: str) -> None:
    asked = [request(family, video(family, 0))]
    if family == "internvl":  # the other takes one video, and no image
        asked += [request(family, video(family, 1), video(family, 2, 6)), mixed(family)]
    plain = start(family, 0.0, None)
    expected = [(ids(out), pads(out)) for one in asked for out in plain.ask([one])]
    stock = start(family, 0.75, None)
    assert [pads(out) for one in asked for out in stock.ask([one])] == [count for _, count in expected], "ignored"
    served = start(family, NOTHING)
    assert [(ids(out), pads(out)) for one in asked for out in served.ask([one])] == expected

    served = start(family, 0.75)
    alone = [out for one in asked for out in served.ask([one])]
    whole = expected[0][1]
    assert [pads(out) for out in alone] == [whole // 4, *(whole // 4 + whole * 6 // 8 // 4 for _ in asked[1:])]
    first = served.kept[0]
    _, _, kept = truth.answer(family, asked[0], presets.vidsieve(0.25))
    assert kept == [first.tolist()]
    assert ids(alone[0]) == truth.closed(family, asked[0], first, tiny.IMAGE if family == "internvl" else tiny.VIDEO)
    served.llm.reset_prefix_cache()
    assert [ids(out) for out in served.ask(asked)] == [ids(out) for out in alone]
    pieces = start(family, 0.75, max_num_batched_tokens=64, max_num_seqs=2, enable_prefix_caching=False)
    assert [ids(out) for one in asked[:2] for out in pieces.ask([one])] == [ids(out) for out in alone[:2]]


def as_transformers(out: Any, asked: dict[str, Any], keep: float) -> list[list[int]]:
    """Check that an answer of GLM-4V is that of transformers, and return what that keeps of each video."""
    expected, probabilities, kept = truth.answer("glm4v", asked, presets.vidsieve(keep))
    assert ids(out) == expected
    chosen = [float(step[token]) for step, token in zip(probabilities, expected, strict=True)]
    assert engine.log_probabilities(out) == pytest.approx(chosen, abs=1e-3)
    return kept


def test_glm4v_keeps_its_positions(start: Start) -> None:
    family = "glm4v"
    beside = mixed(family)
    for media in beside["multi_modal_data"].values():
        del media[1:]  # vLLM takes one video of it
    asked = [request(family, video(family, 0)), {**beside, "prompt": engine.prompt(family, "image", "video")}]
    plain = start(family, 0.0, None)
    unpruned = [(plain.positions[out.request_id], out) for one in asked for out in plain.ask([one])]
    as_transformers(unpruned[0][1], asked[0], 1.0)
    assert torch.equal(unpruned[0][0], truth.positions(family, asked[0]))
    stock = start(family, 0.75, None)
    (ignored,) = stock.ask([asked[0]])
    assert len(ignored.prompt_token_ids) == len(unpruned[0][1].prompt_token_ids)
    served = start(family, NOTHING)
    for one, (where, expected) in zip(asked, unpruned, strict=True):
        (out,) = served.ask([one])
        assert torch.equal(served.positions[out.request_id], where)
        assert ids(out) == ids(expected)
    served = start(family, 0.75)
    answers, embedded, framed = [], [], served.model._framed

    def watched(*args: Any) -> torch.Tensor:
        embedded.append(framed(*args))
        return embedded[-1]

    served.model._framed = watched
    for one, (where, whole), image in zip(asked, unpruned, (0, 24), strict=True):
        served.kept.clear()
        (out,) = served.ask([one])
        answers.append((served.positions[out.request_id], ids(out)))
        (kept,) = served.kept
        medium = (torch.tensor(whole.prompt_token_ids) == tiny.IMAGE).nonzero()[:, 0]
        assert len(kept) == (len(medium) - image) // 4
        assert pads(out, tiny.IMAGE) == image + len(kept)
        stays = torch.ones(len(whole.prompt_token_ids), dtype=torch.bool)
        stays[medium[image:]] = False
        stays[medium[image + kept]] = True
        assert torch.equal(served.positions[out.request_id], where[:, stays])
        tokens = torch.tensor(whole.prompt_token_ids)
        begin, end = (int((tokens == mark).nonzero()) for mark in (tiny.SPARE, engine.END_OF_VIDEO))
        expected = served.model.get_language_model().embed_input_ids(tokens)
        expected[medium[image + kept]] = served.features[-1][kept]
        inside = stays & (torch.arange(len(tokens)) >= begin) & (torch.arange(len(tokens)) <= end)
        assert torch.equal(embedded.pop()[:, : expected.shape[1]], expected[inside])
        if not image:  # transformers takes no image beside a video here
            assert as_transformers(out, one, 0.25) == [kept.tolist()]
    pieces = start(family, 0.75, max_num_batched_tokens=64, max_num_seqs=2, enable_prefix_caching=False)
    for one, (where, answer) in zip(asked, answers, strict=True):
        (out,) = pieces.ask([one])
        assert torch.equal(pieces.positions[out.request_id], where)
        assert ids(out) == answer


def test_a_second_question_about_a_video_between_texts(start: Start) -> None:
    served = start("internvl", 0.75, "cdpruner", enable_prefix_caching=False)
    encode, frames = served.model.extract_feature, []

    def counted(pixels: Any) -> Any:
        frames.append(len(pixels))
        return encode(pixels)

    served.model.extract_feature = counted

    def ask(question: str, *seeds: int) -> list[list[int]]:
        served.kept.clear()
        wish = {"mm_processor_kwargs": {"vidsieve": {"question": question}}}
        served.ask([request("internvl", *(video("internvl", seed) for seed in seeds), **wish)])
        return sorted(kept.tolist() for kept in served.kept)

    first = ask("red green blue", 1)
    assert sum(frames) == 8
    assert ask("1 2 3 4 5 6 7", 1) != first
    assert sum(frames) == 8
    together = ask("1 2 3 4 5 6 7 8", 0, 1)
    assert sum(frames) == 16
    served.llm.llm_engine.reset_encoder_cache()
    assert together == sorted(kept for seed in (0, 1) for kept in ask("1 2 3 4 5 6 7 8", seed))


def test_encoder_graphs_would_leave_our_selection_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(settings.VARIABLE, raising=False)
    settings.configured.cache_clear()
    ours: Any = derive(Glm4vMoeForConditionalGeneration)[0]
    assert issubclass(ours, Glm4vForConditionalGeneration)
    config = SimpleNamespace(compilation_config=SimpleNamespace(cudagraph_mm_encoder=True))
    with pytest.raises(UnsupportedCall, match="cudagraph_mm_encoder=True"):
        ours.check_graphs(config)


def test_internvl_in_its_first_format_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    registry: Any = SimpleNamespace(resolve_model_cls=lambda *_: (InternVLChatModel, "InternVLChatModel"))
    runner.derive_models(registry)
    monkeypatch.setenv(settings.VARIABLE, "vidsieve")
    spec = SimpleNamespace(get_video_pruning_spec=lambda: ("evs", 0.9))
    config = SimpleNamespace(multimodal_config=spec, runner_type="generate")
    with pytest.raises(UnsupportedModel, match="NOT active in InternVLChatModel"):
        registry.resolve_model_cls([], config)
