"""Every way to decode gives the answer of the reduced prompt, or is refused."""

import functools
from typing import Any, ClassVar

import pytest
import torch
import transformers
from torch import Tensor

from tests.engines.hf import by_hand, newer, tiny
from tests.engines.hf.reducers import Loudest, NearestToQuestion
from tests.engines.hf.staged import STAGES
from tests.engines.hf.truth import STEPS, answer, each_family, truth
from vidsieve import Staged
from vidsieve.engines.hf import attach
from vidsieve.errors import UnsupportedCall


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_beam_search(family: str) -> None:
    model, inputs = tiny.model(family), tiny.prompt(family)
    merged = by_hand.reduce(model, inputs, Loudest())
    positions = merged.positions[..., None, :]
    if positions.ndim == 3:
        positions = torch.cat([torch.arange(positions.shape[-1])[None, None], positions])
    beams = {"num_beams": 3, "num_return_sequences": 2}
    expected = model.generate(
        inputs_embeds=merged.embeddings[None],
        attention_mask=torch.ones(1, len(merged.embeddings), dtype=torch.long),
        position_ids=positions,
        max_new_tokens=STEPS,
        **beams,
    )
    assert answer(model, inputs, **beams) == expected.tolist()


@each_family
def test_sampled_sequences(family: str) -> None:
    model, inputs = tiny.model(family), tiny.prompt(family)
    options = {"do_sample": True, "top_k": 1, "num_return_sequences": 1 if family == "internvl" else 3}
    found = answer(model, inputs, **options)
    assert found == [truth(family, inputs)] * options["num_return_sequences"]


@each_family
def test_assisted_decoding(family: str) -> None:
    inputs = tiny.prompt(family)
    assert answer(tiny.model(family), inputs, assistant_model=tiny.fresh(family)) == [truth(family, inputs)]


ASKING = [NearestToQuestion(), Staged(STAGES["attention"])]


def repeating(family: str) -> tiny.Inputs:
    """A prompt whose question ends as it begins, so that prompt lookup goes on as it did there."""
    inputs = tiny.prompt(family, text=8)
    inputs["input_ids"][0, -8:] = torch.tensor([11, 12, 13, 14, 15, 16, 11, 12])
    return inputs


@pytest.mark.parametrize("way", ["lookup", "assistant"])
@pytest.mark.parametrize("method", ASKING, ids=["before", "inside"])
@each_family
def test_candidates_are_no_part_of_the_question(family: str, method: Any, way: str) -> None:
    model, inputs, candidates = tiny.model(family), repeating(family), []
    options: dict[str, Any] = {"lookup": {"prompt_lookup_num_tokens": 4}}
    options["assistant"] = {"assistant_model": tiny.fresh(family)}
    expected, kept = answer(model, inputs, method), []
    watching = model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: candidates.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    for more in ({}, options[way]):
        with attach(model, method) as trace:
            out = model.generate(**inputs, max_new_tokens=STEPS, **more)
        kept.append([video.kept for video in trace.videos[-1:]])
    watching.remove()
    assert max(candidates) > inputs["input_ids"].shape[1]  # the first pass held some
    assert kept[0] == kept[1]
    assert out[:, inputs["input_ids"].shape[1] :].tolist() == expected


def test_a_candidate_may_be_a_placeholder() -> None:
    model, inputs = tiny.model("llava_onevision"), repeating("llava_onevision")
    ids = inputs["input_ids"][0]

    def propose(input_ids: torch.Tensor) -> tuple[torch.Tensor, None]:
        later = input_ids.shape[1] > len(ids)
        return torch.cat([input_ids, torch.full((1, 2 * later), tiny.VIDEO)], 1), None

    def generator(*args: Any, **kwargs: Any) -> Any:
        made = type(model)._get_candidate_generator(model, *args, **kwargs)
        made.get_candidates = propose
        return made

    model = tiny.fresh("llava_onevision")
    model.__dict__["_get_candidate_generator"] = generator
    assert answer(model, inputs, prompt_lookup_num_tokens=4) == [truth("llava_onevision", inputs)]


@torch.no_grad()
def test_candidates_of_a_generation_that_failed_are_forgotten() -> None:
    model, inputs = tiny.fresh("qwen2_5_vl"), repeating("qwen2_5_vl")

    @functools.wraps(model.prepare_inputs_for_generation)  # whose signature generate reads
    def stop(*_: Any, **__: Any) -> Any:
        raise RuntimeError("stopped")

    for call in ({}, {"logits_to_keep": 1}, {"logits_to_keep": torch.tensor([0, -1])}):
        with attach(model, NearestToQuestion()) as trace:
            model(**inputs)
            model.__dict__["prepare_inputs_for_generation"] = stop  # which comes after the candidates
            with pytest.raises(RuntimeError, match="stopped"):
                model.generate(**inputs, max_new_tokens=4, prompt_lookup_num_tokens=4)
            del model.__dict__["prepare_inputs_for_generation"]
            model(**inputs, **call)
        assert [video.kept for video in trace.videos] == [trace.videos[0].kept] * 2


class FromHiddenStates:
    """Proposes nothing, and is told the hidden states of the prompt, as drafts by layers of the model itself are."""

    requires_model_outputs = True
    model_kwargs_overrides: ClassVar = {"output_hidden_states": True}

    def get_candidates(self, input_ids: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
        return input_ids, None

    def update_candidate_strategy(self, *_: Any) -> None:
        pass


def test_a_draft_from_hidden_states_is_refused_where_some_were_dropped() -> None:
    model, inputs = tiny.fresh("qwen2_5_vl"), tiny.prompt("qwen2_5_vl")
    expected = model.generate(**inputs, max_new_tokens=STEPS)[:, inputs["input_ids"].shape[1] :].tolist()
    model.__dict__["_get_candidate_generator"] = lambda *args, **kwargs: FromHiddenStates()
    assert answer(model, inputs, Loudest(1.0), prompt_lookup_num_tokens=4) == expected
    for method in (Loudest(), Staged({1: Loudest()})):
        with pytest.raises(UnsupportedCall, match="FromHiddenStates needs the hidden states of every token"):
            answer(model, inputs, method, prompt_lookup_num_tokens=4)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision", "glm4v"])
def test_a_model_that_drafts_for_itself(family: str) -> None:
    model, inputs = tiny.fresh(family), tiny.prompt(family)
    expected = answer(model, inputs, NearestToQuestion())
    assert answer(model, inputs, NearestToQuestion(), assistant_model=model) == expected


@pytest.mark.parametrize("way", ["lookup", "assistant"])
def test_candidates_where_kinds_of_tokens_tell_what_a_video_is(way: str) -> None:
    model, inputs = tiny.model("glm4v"), repeating("glm4v")
    more = {"prompt_lookup_num_tokens": 4} if way == "lookup" else {"assistant_model": tiny.fresh("glm4v")}
    assert answer(model, inputs, NearestToQuestion(), **more) == answer(model, inputs, NearestToQuestion())


def test_kinds_of_fewer_tokens_than_the_prompt_has_are_refused() -> None:
    model, inputs = tiny.model("glm4v"), tiny.prompt("glm4v")
    length = inputs["input_ids"].shape[1]
    inputs["mm_token_type_ids"] = inputs["mm_token_type_ids"][:, :-1]
    with attach(model, Loudest()), pytest.raises(UnsupportedCall, match=f"mm_token_type_ids of {length} tokens, got"):
        model(**inputs, position_ids=torch.arange(length)[None])


@pytest.mark.parametrize("more", [{"use_cache": False}, {"prompt_lookup_num_tokens": 3}], ids=str)
def test_an_argument_that_transformers_does_not_lengthen(more: dict[str, Any]) -> None:
    family = "ernie4_5_vl_moe"
    with pytest.raises(UnsupportedCall, match="expected moe_mm_token_type_ids of all"):
        answer(tiny.model(family), repeating(family), **more)


@pytest.mark.skipif(not newer.exists("lfm3_vl"), reason="this release of transformers has no lfm3_vl")
def test_a_static_cache_that_transformers_reads_past_its_end() -> None:
    model, inputs = tiny.model("lfm3_vl"), tiny.prompt("lfm3_vl")
    more = {"assistant_model": tiny.fresh("lfm3_vl"), "cache_implementation": "static"}
    with pytest.raises(UnsupportedCall, match="attends to places that are still free"):
        answer(model, inputs, **more)


@each_family
def test_chunked_prefill_is_refused(family: str) -> None:
    with pytest.raises(UnsupportedCall, match="prefill_chunk_size"):
        answer(tiny.model(family), tiny.prompt(family), prefill_chunk_size=16)


@pytest.mark.parametrize("family", ["llava_onevision", "video_llama_3"])  # transformers has others that fail in chunks
def test_chunks_of_text_that_quotes_a_placeholder(family: str) -> None:
    model, ids = tiny.model(family), torch.tensor([[7, tiny.VIDEO, 8, 9, 10, 11]])
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "prefill_chunk_size": 3, "max_new_tokens": 2}
    expected = model.generate(**text)
    with attach(model, Loudest()):
        assert torch.equal(model.generate(**text), expected)


@each_family
def test_outputs_of_a_plain_call(family: str) -> None:
    model, inputs = tiny.model(family), tiny.prompt(family)
    expected = by_hand.decode(model, by_hand.reduce(model, inputs, Loudest()), 1)[1][0]
    with torch.no_grad(), attach(model, Loudest()) as trace:
        values = model(**inputs, return_dict=False)
        last = model(**inputs, logits_to_keep=1)
        hidden = model(**inputs, output_hidden_states=True).hidden_states
    torch.testing.assert_close(values[0][0, -1], expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(last.logits[0, -1], expected, atol=1e-4, rtol=0)
    assert {state.shape[1] for state in hidden} == {trace.kv_length}


takes_encoded_videos = pytest.mark.skipif(
    not hasattr(transformers.GenerationMixin, "_prepare_multimodal_encoder_kwargs_for_generation"),
    reason="transformers before 5.18 passes no encoded videos",
)


def encoded(model: Any, inputs: tiny.Inputs) -> dict[str, Any]:
    """`inputs` with encoded videos in place of pixels, which what describes them stays beside."""
    pixels, others = "pixel_values_videos", ("video_grid_thw", "video_merge_sizes")
    described = {name: inputs[name] for name in (pixels, *others) if name in inputs}
    videos = model.base_model.get_video_features(**described, return_dict=True)
    return {**{name: x for name, x in inputs.items() if name != pixels}, "mm_encoder_outputs": {"video": videos}}


def within(model: Any, inputs: tiny.Inputs, call: dict[str, Any]) -> Tensor:
    """The logits of a `call` that is made while one token is generated for `inputs`."""
    logits: list[Tensor] = []

    def process(ids: Tensor, scores: Tensor) -> Tensor:
        logits.append(model(**call).logits)
        return scores

    model.generate(**inputs, max_new_tokens=1, logits_processor=transformers.LogitsProcessorList([process]))
    return logits[0]


def unlike_rows(family: str) -> tiny.Inputs:
    """Two prompts of one video each, the second of which is padded."""
    return tiny.batch(tiny.prompt(family, seed=1, text=9), tiny.prompt(family, seed=2))


@takes_encoded_videos
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "video_llama_3"])
@torch.no_grad()
def test_a_call_within_a_generation_has_videos_of_its_own(family: str) -> None:
    model = tiny.model(family)
    for videos, inputs in ((2, tiny.prompt(family, seed=3)), (1, unlike_rows(family))):
        with attach(model, Loudest()) as trace:
            alone = model(**inputs).logits
            inside = within(model, tiny.prompt(family, videos=videos), encoded(model, inputs))
        assert [video.kept for video in trace.calls[0].videos] == [video.kept for video in trace.calls[2].videos]
        torch.testing.assert_close(inside, alone)


@takes_encoded_videos
@torch.no_grad()
def test_a_call_within_a_generation_that_does_not_describe_its_videos_is_refused() -> None:
    model = tiny.model("llava_onevision")
    for videos, inputs, message in (
        (2, tiny.prompt("llava_onevision", seed=3), "no pixel_values_videos"),
        (1, unlike_rows("llava_onevision"), "row 1 has videos elsewhere"),
    ):
        call = encoded(model, inputs)
        with attach(model, Loudest()), pytest.raises(UnsupportedCall, match=message):
            within(model, tiny.prompt("llava_onevision", videos=videos), call)
