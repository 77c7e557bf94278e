"""The table of methods: what is in it, what may be put into it, and what its names make of a model."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vidsieve import Prune, Reducer, registry
from vidsieve.errors import VidsieveError, WrongArgument
from vidsieve.methods import presets


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, registry.Method]]:
    """A table of this test's own; what other packages register is asked for anew, in it and after it."""
    own = dict(registry.methods())
    with monkeypatch.context() as patch:
        patch.setattr(registry, "_methods", own)
        registry._load_others.cache_clear()
        yield own
    registry._load_others.cache_clear()


def mine(keep: float) -> Reducer:
    """Keeps evenly."""
    return Prune(keep)


def enter(monkeypatch: pytest.MonkeyPatch, name: str, load: Any) -> None:
    """Let one other package be installed, with an entry point of this name."""

    def entry_points(group: str) -> list[SimpleNamespace]:
        assert group == "vidsieve.methods"
        return [SimpleNamespace(name=name, value=f"other.package:{name}", load=load)]

    monkeypatch.setattr(registry, "entry_points", entry_points)


@pytest.mark.parametrize("name", registry.methods())
def test_every_method_is_made_at_its_default_share_and_says_what_it_is(name: str) -> None:
    method = registry.method(name)
    assert method.name == name
    assert method.summary.endswith(".")
    assert method() == method(method.default_keep) != method(method.default_keep / 2)
    assert method.to_dict()["default_keep"] == method.default_keep


def test_a_method_is_inside_the_model_or_before_it() -> None:
    inside, before = registry.methods(inside=True), registry.methods(inside=False)
    assert {**before, **inside} == registry.methods()
    assert not inside.keys() & before.keys()
    assert all(isinstance(method(), Reducer) for method in before.values())
    assert not any(isinstance(method(), Reducer) for method in inside.values())


def test_what_is_registered_is_found_by_its_name(table: dict[str, registry.Method]) -> None:
    assert registry.register_method("other", default_keep=0.5)(mine) is mine
    assert registry.method("other")() == Prune(0.5)
    assert registry.method("other")(0.25) == Prune(0.25)
    assert registry.method("other").summary == "Keeps evenly."
    registry.register_method()(mine)
    assert registry.method("mine")() == Prune(0.1)


def test_a_name_is_taken_once_but_by_the_same_function_again(table: dict[str, registry.Method]) -> None:
    before = dict(table)
    with pytest.raises(VidsieveError, match=r"a method 'vidsieve' already, of vidsieve\.methods\..*by another name"):
        registry.register_method("vidsieve")(mine)
    assert table == before
    registry.register_method("mine")(mine)
    registry.register_method("mine", default_keep=0.5)(mine)  # as when its module is reloaded
    assert registry.method("mine").default_keep == 0.5


def test_an_entry_point_of_another_package_is_loaded_once(
    table: dict[str, registry.Method], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[object] = []

    def load() -> None:
        loaded.append(registry.register_method("theirs")(mine))

    enter(monkeypatch, "theirs", load)
    assert registry.method("theirs")(0.2) == Prune(0.2)
    assert "theirs" in registry.methods()
    assert loaded == [mine]


def test_an_entry_point_that_registers_nothing_of_its_name_is_refused(
    table: dict[str, registry.Method], monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(monkeypatch, "theirs", lambda: registry.register_method("others")(mine))
    with pytest.raises(
        VidsieveError,
        match=r"'theirs' = 'other\.package:theirs' of vidsieve\.methods registers no .*@register_method\('theirs'\)",
    ):
        registry.methods()


def test_an_unknown_name_names_those_there_are() -> None:
    with pytest.raises(VidsieveError) as error:
        registry.method("magic")
    assert str(error.value) == f"no method 'magic'; there are {', '.join(registry.methods())}"


def test_a_name_and_a_share_do_what_the_method_made_of_them_does() -> None:
    pytest.importorskip("transformers")
    from tests.engines.hf import tiny
    from vidsieve.engines.hf import attach

    assert registry.engine("hf") is attach
    model, inputs = tiny.model("qwen2_5_vl"), tiny.prompt("qwen2_5_vl")
    with torch.no_grad():
        with attach(model, "vidsieve", keep=0.25) as named:
            by_name = model(**inputs).logits
        with presets.vidsieve(0.25)(model) as made:
            by_call = model(**inputs).logits
        with attach(model, "vidsieve") as usual:
            model(**inputs)
    assert torch.equal(by_name, by_call)
    assert named.videos[0].kept == made.videos[0].kept
    assert (named.videos[0].before, named.videos[0].after, usual.videos[0].after) == (24, 6, 2)


def test_a_share_beside_a_method_that_is_made_is_refused() -> None:
    pytest.importorskip("transformers")
    from tests.engines.hf import tiny
    from vidsieve.engines.hf import attach

    model = tiny.model("qwen2_5_vl")
    with pytest.raises(WrongArgument, match=r"keep goes with the name of a method.*is made, so make it with"):
        attach(model, Prune(0.5), keep=0.25)  # type: ignore[arg-type]
    with pytest.raises(WrongArgument, match="merger goes with the name of a method"):
        attach(model, Prune(0.5), merger=None)
    with pytest.raises(VidsieveError, match="no method 'magic'"):
        attach(model, "magic")
    attach(model, Prune(0.5)).remove()  # nothing was left attached
