"""What is relied on in transformers is checked when a reducer is attached, and what is not known is refused by name."""

import copy
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import masking_utils

from tests.engines.hf import tiny
from tests.engines.hf.reducers import Loudest
from tests.engines.hf.truth import STEPS, truth
from vidsieve import Prune, Staged
from vidsieve.engines.hf import Adapter, adapter_for, attach, contract, register
from vidsieve.engines.hf.contract import CACHE
from vidsieve.errors import UnsupportedVersion

INSIDE = Staged({1: Prune(0.5)})


def renamed(module: nn.Module, old: str, new: str) -> None:
    """Let the class of this one instance be of a release that calls the argument `old` of its forward `new`."""
    plain = type(module)

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return plain.forward(self, *args, **{old if name == new else name: value for name, value in kwargs.items()})

    signature = contract.inspect.signature(plain.forward)
    changed = [p.replace(name=new) if p.name == old else p for p in signature.parameters.values()]
    forward.__signature__ = signature.replace(parameters=changed)  # type: ignore[attr-defined]
    module.__class__ = type(plain.__name__, (plain,), {"forward": forward})


@pytest.mark.parametrize(
    ("part", "old", "message"),
    [
        (lambda model: model.get_decoder(), "inputs_embeds", "takes no inputs_embeds"),
        (lambda model: model.get_decoder(), "attention_mask", "takes no attention_mask"),
        (lambda model: model.get_decoder(), "position_ids", "takes no position_ids"),
        (lambda model: model.get_decoder(), CACHE, f"takes no {CACHE}"),
        (lambda model: model.get_decoder(), "use_cache", "takes new_name, of which nothing says"),
        (lambda model: model.base_model, "video_grid_thw", "takes no video_grid_thw"),
        (lambda model: model.base_model, "input_ids", "takes no input_ids"),
        (lambda model: model.get_decoder().layers[2], "hidden_states", "takes new_name first"),
        (lambda model: model.get_decoder().layers[2], "attention_mask", "takes no attention_mask"),
        (lambda model: model.get_decoder().layers[2], "position_embeddings", "takes no position_embeddings"),
        (lambda model: model.get_decoder().layers[2], CACHE, f"takes no {CACHE}"),
    ],
)
def test_an_argument_that_a_release_renamed_is_refused(
    part: Callable[[Any], nn.Module], old: str, message: str
) -> None:
    model = tiny.fresh("qwen2_5_vl")
    renamed(part(model), old, "new_name")
    with pytest.raises(UnsupportedVersion, match=message) as raised:
        attach(model, INSIDE)
    assert f"transformers {transformers.__version__}" in str(raised.value)
    assert f"transformers=={contract.TESTED[-1]}" in str(raised.value)
    assert not model._forward_pre_hooks  # nothing is left half attached


def test_layers_are_looked_at_only_where_they_are_hooked() -> None:
    model, inputs = tiny.fresh("qwen2_5_vl"), tiny.prompt("qwen2_5_vl")
    renamed(model.get_decoder().layers[2], "use_cache", "new_name")
    with attach(model, Loudest()):
        said = model.generate(**inputs, max_new_tokens=STEPS)[0, inputs["input_ids"].shape[1] :].tolist()
    assert said == truth("qwen2_5_vl", inputs)
    with pytest.raises(UnsupportedVersion, match="takes new_name"):
        attach(model, INSIDE)


def test_an_adapter_says_what_follows_the_sequence_and_what_does_not() -> None:
    model = tiny.fresh("qwen2_5_vl")
    renamed(model.get_decoder(), "use_cache", "new_name")
    with ExitStack() as after:
        after.callback(register, adapter_for(model))
        register(Adapter(("qwen2_5_vl",), unchanged=("new_name",)))
        attach(model, Loudest()).remove()


@pytest.mark.parametrize(
    ("owner", "name", "message"),
    [
        (masking_utils, "create_causal_mask", "create_causal_mask takes no layer_idx"),
        (masking_utils, "create_masks_for_generate", "create_masks_for_generate takes no config"),
        (transformers.Cache, "get_query_offset", "get_query_offset takes no layer_idx"),
        (transformers.Cache, "get_mask_sizes", "get_mask_sizes takes no layer_idx"),
    ],
)
def test_a_function_of_the_library_that_changed_is_refused(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, message: str
) -> None:
    missing = message.rsplit(" ", 1)[1]
    plain = getattr(owner, name)

    def changed(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError

    signature = contract.inspect.signature(plain)
    others = [p for p in signature.parameters.values() if p.name != missing]
    changed.__signature__ = signature.replace(parameters=others)  # type: ignore[attr-defined]
    changed.__qualname__ = plain.__qualname__
    monkeypatch.setattr(owner, name, changed)
    with pytest.raises(UnsupportedVersion, match=message):
        attach(tiny.model("qwen2_5_vl"), Loudest())


def test_a_method_of_the_cache_that_is_gone_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(transformers.Cache, "batch_repeat_interleave")
    with pytest.raises(UnsupportedVersion, match="Cache has no batch_repeat_interleave"):
        attach(tiny.model("qwen2_5_vl"), Loudest())


@tiny.every_family
def test_every_family_keeps_to_it(family: str) -> None:
    attach(tiny.model(family), Loudest()).remove()


def test_the_old_name_of_the_cache_is_taken_where_the_decoder_takes_it() -> None:
    """A loop of one's own that calls the decoder, after a reduced prompt, by the name that older releases used."""
    model, inputs = tiny.model("qwen2_5_vl"), tiny.prompt("qwen2_5_vl")
    token = model.get_input_embeddings()(torch.tensor([[5]]))
    at = torch.full((3, 1, 1), 50)
    with torch.no_grad(), attach(model, Loudest()):
        cache = model(**inputs, use_cache=True)[CACHE]
        mask = torch.ones(1, cache.get_seq_length() + 1, dtype=torch.long)
        given = {"inputs_embeds": token, "attention_mask": mask, "position_ids": at}
        out = []
        for name in (CACHE, "past_key_values"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)
                out.append(model.get_decoder()(**given, **{name: copy.deepcopy(cache)}).last_hidden_state)
    torch.testing.assert_close(*out)


def test_compiled_layers_and_subclasses_that_pass_everything_on_are_looked_through() -> None:
    model, inputs = tiny.fresh("qwen2_5_vl"), tiny.prompt("qwen2_5_vl")
    with torch.no_grad(), attach(model, INSIDE):
        expected = model(**inputs).logits

    class Logged(type(model.base_model)):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)

    model.base_model.__class__ = Logged
    layers = model.get_decoder().layers
    layers[2] = torch.compile(layers[2], backend="eager")
    with torch.no_grad(), attach(model, INSIDE):
        torch.testing.assert_close(model(**inputs).logits, expected)
