"""A vLLM engine on CPU, in this process, serving tiny checkpoints: what it keeps, where it puts it, what it answers.

CONTRIBUTING.md says how to run these.
"""

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed; `make test-vllm` sets it up beside this environment", allow_module_level=True)

import torch
from vllm import ModelRegistry
from vllm.model_executor.models.qwen3_vl import Qwen3VLForConditionalGeneration
from vllm.plugins import load_plugins_by_group

from tests.engines.hf import tiny
from tests.engines.vllm import engine, truth
from tests.engines.vllm.engine import ids, log_probabilities, mixed, pads, request
from vidsieve import VideoTokens
from vidsieve.engines.vllm import processor, settings
from vidsieve.errors import UnsupportedModel
from vidsieve.methods import presets
from vidsieve.types.tokens import Prompt

pytestmark = pytest.mark.vllm
each_family = pytest.mark.parametrize("family", engine.FAMILIES)
NOTHING = 1e-17  # a rate so small that every token stays: with it, a pruning server must be one that does not prune

Start = Callable[..., engine.Engine]


def small(family: str, seed: int = 0) -> Any:
    """A clip after which transformers and vLLM put text at the same position, unpruned.

    After a video of Qwen2.5-VL transformers 5 goes on at base + max(rows, columns), however long the video; vLLM, as
    transformers 4 did, behind the last position. For a video that is wider than long they agree.
    """
    return engine.clip(seed, 8, 224) if family == "qwen2_5_vl" else engine.clip(seed)


def placed(served: engine.Engine, out: Any) -> torch.Tensor:
    return served.positions[out.request_id]


@each_family
@pytest.mark.parametrize("rate", [0.5, 0.9, 0.95])
def test_as_many_are_kept_as_the_rate_leaves(start: Start, family: str, rate: float) -> None:
    served = start(family, rate)
    out = served.ask([request(family), request(family, engine.clip(3, 5, 84))])
    for answer, total in zip(out, (8 * 16, 3 * 9), strict=True):
        expected = max(1, int(total * (1 - rate)))
        assert pads(answer) == expected
    assert [len(kept) for kept in served.kept] == [max(1, int(n * (1 - rate))) for n in (128, 27)]


def short(family: str) -> dict[str, Any]:
    return request(family, small(family))


@each_family
def test_kept_tokens_and_answers_are_those_of_hugging_face(start: Start, family: str) -> None:
    served = start(family, 0.75)
    for asked in (short(family), request(family, small(family, 1), small(family, 2))):
        served.kept.clear()
        (out,) = served.ask([asked])
        expected, probabilities, kept = truth.answer(family, asked, presets.vidsieve(0.25))
        assert [one.tolist() for one in served.kept] == kept
        assert ids(out) == expected
        chosen = [float(step[token]) for step, token in zip(probabilities, expected, strict=True)]
        assert log_probabilities(out) == pytest.approx(chosen, abs=1e-3)


@each_family
@pytest.mark.parametrize("make", [request, mixed, short])
def test_positions_without_pruning_are_untouched(start: Start, family: str, make: Any) -> None:
    asked = make(family)
    plain = start(family, 0.0, None)
    (unpruned,) = plain.ask([asked])
    where = placed(plain, unpruned)
    served = start(family, NOTHING)
    (out,) = served.ask([asked])
    assert torch.equal(placed(served, out), where)
    assert ids(out) == ids(unpruned)
    if family == "qwen3_vl" or make is short:  # see `small`
        assert torch.equal(where, truth.positions(family, asked))


@each_family
def test_kept_tokens_and_text_stay_where_they_were(start: Start, family: str) -> None:
    asked = mixed(family)
    plain = start(family, 0.0, None)
    (unpruned,) = plain.ask([asked])
    where, tokens = placed(plain, unpruned), torch.tensor(unpruned.prompt_token_ids)
    served = start(family, 0.75)
    (out,) = served.ask([asked])
    is_video = tokens == tiny.VIDEO
    stays = ~is_video
    sizes = [4 * 16, 3 * 16]  # tokens of the two clips
    kept = torch.cat([served.kept[0], served.kept[1] + sizes[0]])
    stays[is_video.nonzero()[kept, 0]] = True
    assert torch.equal(placed(served, out), where[:, stays])


def test_stock_moves_text_after_a_long_video(start: Start) -> None:
    """Qwen2.5-VL: vLLM's own pruning puts the text after a video at its width, wherever the video ends."""
    asked = request("qwen2_5_vl", engine.clip(0, 24))
    plain = start("qwen2_5_vl", 0.0, None)
    (out,) = plain.ask([asked])
    where, after = placed(plain, out), torch.tensor(out.prompt_token_ids).eq(tiny.VIDEO).nonzero().max() + 1
    stock = start("qwen2_5_vl", NOTHING, None)
    moved = (placed(stock, stock.ask([asked])[0]) != where).any(0)
    assert moved[after:].all()
    assert not moved[:after].any()
    sieved = start("qwen2_5_vl", NOTHING)
    assert torch.equal(placed(sieved, sieved.ask([asked])[0]), where)


def test_stock_rounds_positions_in_bfloat16(start: Start) -> None:
    """Positions travel as channels of the embeddings, and bfloat16 is exact up to 256."""
    asked = request("qwen2_5_vl", engine.clip(0, 600, 56))
    options = {"dtype": "bfloat16"}
    plain = start("qwen2_5_vl", 0.0, None, **options)
    (out,) = plain.ask([asked])
    where, is_video = placed(plain, out), torch.tensor(out.prompt_token_ids) == tiny.VIDEO
    stock = start("qwen2_5_vl", NOTHING, None, **options)
    moved = (placed(stock, stock.ask([asked])[0]) != where).any(0)
    assert moved[is_video].any()
    sieved = start("qwen2_5_vl", NOTHING, **options)
    assert torch.equal(placed(sieved, sieved.ask([asked])[0]), where)


def test_stock_takes_an_older_layout_of_qwen3_vl(start: Start) -> None:
    """Since transformers 5.10 a video keeps its outer vision_start, which vLLM takes for the first frame's."""
    asked = request("qwen3_vl")
    plain = start("qwen3_vl", 0.0, None)
    (out,) = plain.ask([asked])
    where, is_video = placed(plain, out), torch.tensor(out.prompt_token_ids) == tiny.VIDEO
    stock = start("qwen3_vl", NOTHING, None)
    moved = (placed(stock, stock.ask([asked])[0]) != where).any(0)
    assert moved[is_video].all()
    sieved = start("qwen3_vl", NOTHING)
    assert torch.equal(placed(sieved, sieved.ask([asked])[0]), where)


@each_family
def test_a_video_read_in_pieces_is_the_same_video(start: Start, family: str) -> None:
    asked = [mixed(family), request(family)]
    whole = start(family, 0.25)
    expected = [(placed(whole, out), ids(out)) for one in asked for out in whole.ask([one])]
    pieces = start(family, 0.25, max_num_batched_tokens=32, max_num_seqs=2)
    for one, (where, answer) in zip(asked, expected, strict=True):
        (out,) = pieces.ask([one])
        assert torch.equal(placed(pieces, out), where)
        assert ids(out) == answer


@each_family
def test_sixteen_at_once_are_sixteen_alone(start: Start, family: str) -> None:
    asked = [request(family, engine.clip(seed, 8 + 2 * (seed % 3))) for seed in range(14)] + [mixed(family)] * 2
    served = start(family, 0.75, enable_prefix_caching=False)
    alone = [(placed(served, out), ids(out)) for one in asked for out in served.ask([one])]
    busy = start(family, 0.75, enable_prefix_caching=False)
    for (where, answer), out in zip(alone, busy.ask(asked), strict=True):
        assert torch.equal(placed(busy, out), where)
        assert ids(out) == answer


@each_family
def test_a_cached_prefix_is_read_no_second_time(start: Start, family: str) -> None:
    served = start(family, 0.75)
    first, again = (served.ask([request(family)])[0] for _ in range(2))
    assert again.num_cached_tokens > 0
    assert ids(first) == ids(again)
    (longer,) = served.ask([request(family, question="What moves? Say more.")])
    assert longer.num_cached_tokens > 0
    assert ids(longer) == truth_of(served, request(family, question="What moves? Say more."))


def truth_of(served: engine.Engine, asked: dict[str, Any]) -> list[int]:
    """The answer of the same server with nothing cached."""
    served.llm.reset_prefix_cache()
    return ids(served.ask([asked])[0])


@each_family
def test_each_question_gets_its_own_selection(start: Start, family: str) -> None:
    served = start(family, 0.75, "cdpruner")
    clip = engine.clip()
    questions = ("red green blue", "1 2 3 4 5 6 7")

    def ask(question: str, **more: Any) -> Any:
        wish = {"mm_processor_kwargs": {"vidsieve": {"question": question}}}
        return served.ask([request(family, clip, question="Well?", **wish, **more)])[0]

    encoded: list[int] = []
    visual = served.model.visual.forward
    served.model.visual.forward = lambda pixels, **kw: encoded.append(len(pixels) // 4) or visual(pixels, **kw)
    one, two, again = (ask(question) for question in (*questions, questions[0]))
    assert len(served.kept) == 2, "the third answer needs no new selection"
    assert encoded == [128], "nor the second a new pass through the encoder"
    assert not torch.equal(served.kept[0], served.kept[1])
    marker = list(one.prompt_token_ids).index(tiny.START)
    assert two.num_cached_tokens <= marker + 32, "nothing of the other question's video is reused"
    assert again.num_cached_tokens > marker
    assert ids(again) == ids(one)
    for number, question in enumerate(questions):  # a client's own name for a video does not replace it
        ask(question, multi_modal_uuids={"video": ["mine"]})
        assert torch.equal(served.kept[2 + number], served.kept[number])

    model, processor = engine.hugging_face(family), engine.real_processor(family)
    given = truth.inputs(family, request(family, clip))
    with torch.no_grad():
        features = model.model.get_video_features(given["pixel_values_videos"], given["video_grid_thw"]).pooler_output
        for question, kept in zip(questions, served.kept[:2], strict=True):
            words = processor.tokenizer(question, return_tensors="pt")["input_ids"][0]
            prompt = Prompt(model.get_input_embeddings()(words))
            tokens = VideoTokens.from_grid(torch.cat(list(features)), 8, 4, 4)
            assert torch.equal(kept, presets.cdpruner(0.25).reduce(tokens, prompt).kept)


@each_family
def test_a_request_may_keep_more_or_less(start: Start, family: str) -> None:
    served = start(family, 0.75)
    asked = [request(family, mm_processor_kwargs={"vidsieve": {"keep": keep}}) for keep in (0.5, 0.1, 1.0)]
    for out, count in zip(served.ask(asked), (64, 13, 128), strict=True):
        assert pads(out) == count


@each_family
def test_what_cannot_be_honoured_is_refused_and_the_server_goes_on(start: Start, family: str) -> None:
    served = start(family, 0.75)
    for wish, message in (
        ({"question": "What?"}, "does not look at the question"),
        ({"keep": 0}, r"in \(0, 1\]"),
        ({"question": "why " * 2000}, "at most 4096 characters, got 8000"),
        ({"ratio": 0.5}, "expected mm_processor_kwargs"),
    ):
        with pytest.raises(ValueError, match=message):
            served.ask([request(family, mm_processor_kwargs={"vidsieve": wish})])
        image = {"image": mixed(family)["multi_modal_data"]["image"][:1]}
        still = {"prompt": engine.prompt(family, "image"), "multi_modal_data": image}
        served.ask([still])  # so that its image is cached
        with pytest.raises(ValueError, match=message):
            served.ask([{**still, "mm_processor_kwargs": {"vidsieve": wish}}])
    assert len(ids(served.ask([request(family)])[0])) == 4

    served = start(family, 0.75, "cdpruner")
    with pytest.raises(ValueError, match="cannot read off the prompt"):
        served.ask([request(family)])

    served = start(family, 0.0)
    with pytest.raises(ValueError, match="does not prune"):
        served.ask([request(family, mm_processor_kwargs={"vidsieve": {"keep": 0.5}})])


@each_family
def test_without_a_rate_nothing_is_different(start: Start, family: str) -> None:
    plain = start(family, 0.0, None)
    expected = [ids(out) for out in plain.ask([request(family), mixed(family)])]
    served = start(family, 0.0)
    assert [ids(out) for out in served.ask([request(family), mixed(family)])] == expected


def test_experts_are_served_too(start: Start) -> None:
    served = start("qwen3_vl_moe", 0.75, load_format="dummy")  # transformers saves experts in another layout
    assert type(served.model).__name__ == "SievedQwen3VLMoeForConditionalGeneration"
    (out,) = served.ask([request("qwen3_vl_moe")])
    assert pads(out) == 32


def test_vidcom2_stays_vllms_own(start: Start) -> None:
    served = start("qwen3_vl", 0.75, video_pruning_method="vidcom2")
    assert not served.model.sieves


def test_one_line_says_what_is_active(start: Start, log: list[str]) -> None:
    start("qwen3_vl", 0.9)
    assert [line for line in log if "active" in line] == [
        "vidsieve: active in SievedQwen3VLForConditionalGeneration: "
        "vidsieve keeps 10 % of the tokens of each video, in place of EVS"
    ]
    log.clear()
    start("qwen3_vl", 0.0)
    assert ["not active" in line for line in log] == [True]


def test_a_video_of_nan_does_not_end_the_server(start: Start, log: list[str]) -> None:
    served = start("qwen2_5_vl", 0.75)
    fit, broken = torch.randn(128, 128), torch.full((128, 128), torch.nan)
    ordered = [settings.order(None, [])] * 3
    reductions = served.model._reduce_each([fit, broken, fit], [(8, 4, 4)] * 3, ordered)
    assert [len(reduction) for reduction in reductions] == [32] * 3
    assert torch.equal(reductions[0].kept, reductions[2].kept)
    assert sum("NaN" in line for line in log) == 1


def test_together_no_more_is_encoded_than_without_pruning(start: Start) -> None:
    served = start("qwen2_5_vl", 0.9, max_num_batched_tokens=256)
    sizes: list[int] = []
    visual = served.model.visual.forward
    served.model.visual.forward = lambda pixels, **kw: sizes.append(len(pixels) // 4) or visual(pixels, **kw)
    served.ask([request("qwen2_5_vl", engine.clip(seed)) for seed in range(8)])
    assert sum(sizes) == 8 * 128
    assert max(sizes) == 256


def test_vllm_finds_the_plug_in(monkeypatch: pytest.MonkeyPatch) -> None:
    vars(ModelRegistry).pop("resolve_model_cls", None)
    monkeypatch.setenv(settings.VARIABLE, "vidsieve")
    settings.configured.cache_clear()
    load_plugins_by_group("vllm.general_plugins")["vidsieve"]()
    assert hasattr(ModelRegistry.resolve_model_cls, "__wrapped__")


def test_a_vllm_that_would_not_call_an_override_is_refused() -> None:
    class Override:
        def _postprocess_by_another_name(self) -> None: ...

    with pytest.raises(UnsupportedModel, match="_postprocess_by_another_name"):
        processor.check_hooks(Override, Qwen3VLForConditionalGeneration)
