"""Every way to decode gives the answer of the reduced prompt, or is refused."""

import pytest
import torch

from tests.models import by_hand, tiny
from tests.models.reducers import Loudest
from tests.models.truth import STEPS, answer, each_family, truth
from vidsieve.errors import UnsupportedCall
from vidsieve.models import attach


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


@each_family
def test_chunked_prefill_is_refused(family: str) -> None:
    with pytest.raises(UnsupportedCall, match="prefill_chunk_size"):
        answer(tiny.model(family), tiny.prompt(family), prefill_chunk_size=16)


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
