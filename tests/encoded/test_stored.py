"""What is stored of a clip: the decoder's arguments, without a run of the decoder."""

import pytest
import torch

from tests.engines.hf import tiny
from tests.engines.hf.reducers import Loudest
from vidsieve.encoded import stored
from vidsieve.engines.hf import attach
from vidsieve.errors import VidsieveError


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_what_the_decoder_would_be_given_of_every_family(family: str) -> None:
    model, inputs, given = tiny.model(family), tiny.prompt(family), []
    with torch.no_grad(), attach(model, Loudest()) as trace:
        watching = model.get_decoder().register_forward_pre_hook(
            lambda decoder, args, kwargs: given.append(kwargs), with_kwargs=True
        )
        model(**inputs, use_cache=False)
        watching.remove()
    ran = []
    with torch.no_grad(), (attachment := attach(model, Loudest())):
        watching = model.get_decoder().norm.register_forward_pre_hook(lambda *_: ran.append(True))
        found = stored._given_to_decoder(attachment, inputs)
        watching.remove()
    assert not ran
    torch.testing.assert_close(found, given[0])
    assert attachment.trace.videos[0].kept == trace.videos[0].kept
    out = model.generate(**inputs, max_new_tokens=2, do_sample=False)  # nothing is left behind
    assert out.shape[1] == inputs["input_ids"].shape[1] + 2


def test_a_model_that_never_calls_its_decoder_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.fresh("qwen2_5_vl")
    monkeypatch.setattr(model, "forward", lambda **inputs: None)
    with (attachment := attach(model, Loudest())), pytest.raises(VidsieveError, match="without calling its decoder"):
        stored._given_to_decoder(attachment, tiny.prompt("qwen2_5_vl"))
