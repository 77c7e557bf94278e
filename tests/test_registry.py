"""The table of methods: what is in it, what may be put into it, and what its names make of a model."""

import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
import torch

from vidsieve import Prune, Reducer, registry
from vidsieve.errors import VidsieveError, WrongArgument
from vidsieve.methods import presets


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> dict[str, registry.Method]:
    """A table of this test's own."""
    own = dict(registry.methods())
    monkeypatch.setattr(registry, "REGISTERED", own)
    return own


def mine(keep: float) -> Reducer:
    """Keeps evenly."""
    return Prune(keep)


def install(folder: Path, package: str, registered: str) -> str:
    """Install a package there, with an entry point "theirs", that registers a method by another name or by that."""
    code = f"""
        from vidsieve import Prune, registry
        print("imported")
        @registry.register_method("{registered}")
        def theirs(keep): return Prune(keep)"""
    folder.mkdir()
    (folder / f"{package}.py").write_text(dedent(code))
    (folder / f"{package}-1.dist-info").mkdir()
    (folder / f"{package}-1.dist-info" / "entry_points.txt").write_text(
        f"[vidsieve.methods]\ntheirs = {package}:theirs\n"
    )
    return str(folder)


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


def test_what_another_package_registers_is_found_and_what_it_does_not_is_refused(tmp_path: Path) -> None:
    code = f"""
        import sys
        from vidsieve import Prune, registry
        from vidsieve.errors import VidsieveError
        sys.path.insert(0, {install(tmp_path / "wrong", "wrong_package", "others")!r})
        try:
            registry.methods()
        except VidsieveError as error:
            print(error)
        sys.path[0] = {install(tmp_path / "right", "right_package", "theirs")!r}
        print(registry.method("theirs")(0.2) == Prune(0.2), "theirs" in registry.methods())"""
    run = subprocess.run([sys.executable, "-c", dedent(code)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == [
        "imported",
        "the entry point 'theirs' = 'wrong_package:theirs' of vidsieve.methods registers no method of that name; "
        "decorate its function: @register_method('theirs')",
        "imported",
        "True True",
    ]


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
