"""lmms: the classes that lmms-eval is given, on a stand-in for its own; docs/reproduce.md tries the real one."""

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from tests.engines.hf import tiny
from vidsieve.errors import MissingExtra, VidsieveError
from vidsieve.evaluation import lmms
from vidsieve.methods.compose import with_pixels


@dataclass
class Manifest:
    model_id: str
    chat_class_path: str | None = None
    simple_class_path: str | None = None


class Parent:
    """What lmms-eval's classes look like from here: they load a model, and refuse arguments they do not know."""

    is_simple = False

    def __init__(self, pretrained: str, **rest: Any) -> None:
        assert rest == {}
        self.model = tiny.fresh("qwen2_5_vl")

    def generate_until(self, requests: list[Any]) -> list[Any]:
        return [None if request is None else self.model(**request).logits[0, -1] for request in requests]  # None fails


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Stand-ins for lmms-eval's modules and for loguru, and what was logged."""
    logged: list[str] = []
    contents: dict[str, dict[str, Any]] = {
        "lmms_eval": {},
        "lmms_eval.models": {},
        "lmms_eval.models.registry_v2": {"ModelManifest": Manifest},
        "lmms_eval.models.chat": {},
        "lmms_eval.models.chat.qwen2_5_vl": {"Qwen2_5_VL": Parent},
        "loguru": {"logger": type("Logger", (), {"info": staticmethod(logged.append)})},
    }
    for name, members in contents.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    yield logged
    vars(lmms).pop("vidsieve_qwen2_5_vl", None)


@torch.no_grad()
def test_a_method_is_attached_to_the_model_that_lmms_eval_loads(harness: list[str]) -> None:
    made: Any = lmms.vidsieve_qwen2_5_vl
    assert issubclass(made, Parent)
    assert made is lmms.vidsieve_qwen2_5_vl
    assert made.is_simple is False
    request = tiny.prompt("qwen2_5_vl")
    whole = made(pretrained="x", keep=1).generate_until([request])[0]
    reduced = made(pretrained="x", keep=0.25, method="uniform").generate_until([request])[0]
    assert not torch.allclose(whole, reduced)
    plain = tiny.fresh("qwen2_5_vl")
    with lmms.registry.method("uniform")(0.25)(plain) as trace:
        assert torch.equal(reduced, plain(**request).logits[0, -1])
    before, after = trace.totals["tokens_before"], trace.totals["tokens_after"]
    assert harness == [f"vidsieve: 1 videos, {before} tokens -> {after}"]


@torch.no_grad()
def test_the_tower_computes_the_groups_of_pixels_that_model_args_ask_for(harness: list[str]) -> None:
    request = tiny.prompt("qwen2_5_vl")
    for keep in (0.25, 1):
        found = lmms.vidsieve_qwen2_5_vl(pretrained="x", keep=keep, method="uniform", pixels="0.5").generate_until(
            [request]
        )
        plain = tiny.fresh("qwen2_5_vl")
        with with_pixels(lmms.registry.method("uniform")(keep), 0.5)(plain) as trace:
            assert torch.equal(found[0], plain(**request).logits[0, -1])
        assert "12 of 24 groups of pixels computed" in trace.tower
        totals = trace.totals
        assert harness[-2:] == [
            f"vidsieve: 1 videos, {totals['tokens_before']} tokens -> {totals['tokens_after']}",
            f"vidsieve: vision tower, last call: {trace.tower}",
        ]
    with pytest.raises(ValueError, match=r"in \(0, 1\]"):
        lmms.vidsieve_qwen2_5_vl(pretrained="x", pixels=2)


def test_a_run_in_which_nothing_was_reduced_fails(harness: list[str]) -> None:
    model = lmms.vidsieve_qwen2_5_vl(pretrained="x", keep=0.25)
    with pytest.raises(VidsieveError, match="of 2 requests only 1 showed the model a video"):
        model.generate_until([tiny.prompt("qwen2_5_vl"), None])
    with pytest.raises(VidsieveError, match="all 9 video tokens were kept"):
        lmms.check({"videos": 1, "tokens_before": 9, "tokens_after": 9}, 1)
    assert harness == []


def test_mistakes_in_model_args(harness: list[str]) -> None:
    with pytest.raises(ValueError, match="no method 'magic'; there are vidsieve"):
        lmms.vidsieve_qwen2_5_vl(pretrained="x", method="magic")
    with pytest.raises(ValueError, match="in \\(0, 1\\]"):
        lmms.vidsieve_qwen2_5_vl(pretrained="x", keep=1.5)
    with pytest.raises(AttributeError, match="no attribute 'vidsieve_gpt'"):
        _ = lmms.vidsieve_gpt


def test_the_registry_is_told_of_every_model(harness: list[str]) -> None:
    found = {manifest.model_id: manifest for manifest in lmms.manifests()}
    assert list(found) == list(lmms.PARENTS)
    assert found["vidsieve_qwen3_vl"].chat_class_path == "vidsieve.evaluation.lmms.vidsieve_qwen3_vl"
    assert found["vidsieve_llava_onevision"].simple_class_path == "vidsieve.evaluation.lmms.vidsieve_llava_onevision"


@pytest.mark.skipif(importlib.util.find_spec("lmms_eval") is not None, reason="lmms-eval is installed")
def test_without_lmms_eval_the_extra_is_named() -> None:
    with pytest.raises(MissingExtra, match=r"pip install .*\[lmms\]"):
        lmms.manifests()
