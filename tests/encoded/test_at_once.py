"""A video encoded in one piece: the decoder's arguments, without a run of the decoder."""

from typing import Any

import pytest
import torch

from tests.engines.hf import tiny
from tests.engines.hf.reducers import Loudest
from vidsieve.encoded.at_once import encode_frames
from vidsieve.encoded.until_decoder import reduced_arguments
from vidsieve.engines.hf import attach
from vidsieve.errors import UnsupportedCall, VidsieveError
from vidsieve.methods import Pixels, RunLength, Staged
from vidsieve.methods.base import Attachable

BEFORE = Staged({Pixels(): RunLength(0.5), 0: Loudest()})
CASES = [pytest.param(family, Loudest(), marks=tiny.marks(family)) for family in tiny.FAMILIES]
CASES += [(family, BEFORE) for family in ("qwen2_5_vl", "qwen3_vl", "llava_onevision", "internvl")]


@pytest.mark.parametrize(("family", "method"), CASES)
def test_what_the_decoder_would_be_given_of_every_family(family: str, method: Attachable) -> None:
    model, inputs, given = tiny.model(family), tiny.prompt(family), []
    with torch.no_grad(), attach(model, method) as trace:
        watching = model.get_decoder().register_forward_pre_hook(
            lambda decoder, args, kwargs: given.append(kwargs), with_kwargs=True
        )
        model(**inputs, use_cache=False)
        watching.remove()
    ran = []
    with torch.no_grad(), (attachment := attach(model, method)):
        watching = model.get_decoder().layers[0].register_forward_pre_hook(lambda *_: ran.append(True))
        found = reduced_arguments(attachment, inputs)
        watching.remove()
    assert not ran
    torch.testing.assert_close(found, given[0])
    assert attachment.trace.videos[0].kept == trace.videos[0].kept
    out = model.generate(**inputs, max_new_tokens=2, do_sample=False)  # nothing is left behind
    assert out.shape[1] == inputs["input_ids"].shape[1] + 2


@pytest.mark.parametrize("stages", [{Pixels(): RunLength(0.5)}, {1: Loudest()}, {0: Loudest(), 1: Loudest()}])
def test_stages_whose_result_is_not_what_is_stored_are_refused(stages: Any) -> None:
    with pytest.raises(UnsupportedCall, match=r"expected a reducer, or stages at Pixels\(\) and 0"):
        encode_frames(tiny.model("qwen2_5_vl"), None, None, Staged(stages))  # type: ignore[arg-type]


def test_a_model_that_never_calls_its_decoder_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.fresh("qwen2_5_vl")
    monkeypatch.setattr(model, "forward", lambda **inputs: None)
    with (attachment := attach(model, Loudest())), pytest.raises(VidsieveError, match="without calling its decoder"):
        reduced_arguments(attachment, tiny.prompt("qwen2_5_vl"))
