"""What is given in the wrong place, or for something else, is named in one line that says what to do."""

from types import SimpleNamespace

import pytest
import torch

import vidsieve
from tests.engines.hf import tiny
from vidsieve.engines.hf import attach, detach, verify
from vidsieve.errors import UnknownMethod, UnsupportedModel, VidsieveError, WrongArgument
from vidsieve.methods import presets

METHOD = presets.uniform(0.5)
PLAIN = torch.nn.Linear(2, 2)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return tiny.fresh("qwen2_5_vl")


def refused(kind: type[VidsieveError], says: str, call: object) -> None:
    with pytest.raises(kind) as error:
        call()
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


def test_swapped(model: torch.nn.Module) -> None:
    inputs = {"input_ids": torch.zeros(1, 2)}
    refused(WrongArgument, "expected the model first, then the method", lambda: attach(METHOD, model))
    refused(WrongArgument, "expected the model first; got", lambda: verify(inputs, model, METHOD))
    refused(WrongArgument, "expected the model first; got", lambda: METHOD(inputs))
    refused(WrongArgument, "the order is model", lambda: attach(model, model))
    refused(WrongArgument, "expected inputs as the processor gives them", lambda: verify(model, "Who wins?", METHOD))
    refused(WrongArgument, "a tensor int64(1, 4)", lambda: verify(model, torch.zeros(1, 4).long(), METHOD))


def test_a_method_that_was_not_made(model: torch.nn.Module) -> None:
    says = "the function vidsieve, which makes one: call it first, as vidsieve(keep=0.1)"
    refused(WrongArgument, says, lambda: attach(model, presets.vidsieve))
    refused(WrongArgument, "the class Prune", lambda: attach(model, vidsieve.Prune))
    refused(UnknownMethod, "no method 'magic'; there are vidsieve", lambda: attach(model, "magic"))
    for method in (presets.vidsieve, presets.framefusion, presets.hieravid):
        with pytest.raises(ValueError, match=r"the method|a method is made first.*\(model\)") as error:
            method(model)
        assert "\n" not in str(error.value)
        assert "got a Qwen2_5_VL" in str(error.value)


def test_what_is_no_whole_model(model: torch.nn.Module) -> None:
    pipeline = SimpleNamespace(model=model, task="video")
    refused(UnsupportedModel, "give its .model instead", lambda: attach(pipeline, METHOD))
    refused(
        UnsupportedModel,
        "got model type 'qwen2_5_vl_text', without a vision tower",
        lambda: attach(model.model.language_model, METHOD),
    )
    refused(
        UnsupportedModel,
        "got a Linear, which has no config",
        lambda: attach(PLAIN, METHOD),
    )
    text = tiny.fresh("internvl").model.language_model  # whose type is that of a model of text
    refused(UnsupportedModel, "give the whole model instead", lambda: attach(text, METHOD))


def test_a_lost_handle(model: torch.nn.Module) -> None:
    assert not detach(model)
    attach(model, METHOD)
    with pytest.raises(vidsieve.errors.AlreadyAttached, match=r"vidsieve\.detach\(model\)"):
        attach(model, METHOD)
    assert vidsieve.detach(model)
    assert not vidsieve.detach(model)
    assert not model._forward_pre_hooks
    assert not model.get_decoder()._forward_pre_hooks
    handle = attach(model, METHOD)  # and it is free again
    handle.remove()
    assert not detach(model)
    with pytest.raises(UnsupportedModel):
        detach(PLAIN)


def test_a_handle_that_is_done_does_not_detach_its_successor(model: torch.nn.Module) -> None:
    first = attach(model, METHOD)
    assert detach(model)
    second = attach(model, METHOD)
    first.remove()
    assert detach(model)
    with pytest.raises(vidsieve.errors.UnsupportedCall, match="was removed"):
        second.__enter__()
