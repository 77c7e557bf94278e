"""VIDSIEVE_OPS: which implementation runs, what it refuses, and that all implementations are called alike."""

import importlib
import inspect
import threading
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from tests.synthetic import independent
from vidsieve import VideoTokens, ops
from vidsieve.errors import KernelUnavailable
from vidsieve.methods import presets
from vidsieve.ops import dispatch


def test_asking_for_what_cannot_run_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = VideoTokens(independent(12, 4, 0), (12,))
    monkeypatch.setenv("VIDSIEVE_OPS", "nonsense")
    with pytest.raises(KernelUnavailable, match="VIDSIEVE_OPS=nonsense"):
        presets.vidsieve(0.5).reduce(tokens)


def test_a_spy_sees_which_implementation_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = VideoTokens(independent(12, 4, 0), (12,))
    for name in ("reference", "eager"):
        monkeypatch.setenv("VIDSIEVE_OPS", name)
        with ops.spy() as calls:
            presets.vidsieve(0.5).reduce(tokens)
        assert ("conditional_dpp", name) in calls
        assert {implementation for _, implementation in calls} == {name}


@pytest.mark.parametrize("name", ["reference", "eager"])
def test_a_spy_sees_what_was_chosen_before_it_looked(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.ones(2, 8)
    monkeypatch.setenv("VIDSIEVE_OPS", name)
    chosen = ops.VisionOperations.chosen_for(x)
    monkeypatch.setenv("VIDSIEVE_OPS", "nonsense")
    unseen = chosen.gate(ops.GateProblem(x, 4))
    with ops.spy() as calls:
        assert calls == []
        seen = [chosen.gate(ops.GateProblem(x, 4)) for _ in range(2)]
    assert calls == [("gate", name)] * 2
    assert all(torch.equal(out, unseen) for out in seen)
    with pytest.raises(KernelUnavailable, match="VIDSIEVE_OPS=nonsense"):
        ops.VisionOperations.chosen_for(x)


def functions() -> dict[str, Callable[..., Any]]:
    return {name: value for name in ops.__all__ if inspect.isfunction(value := getattr(ops, name))}


OPERATIONS = sorted(
    functions().keys() - {"available", "raise_if_nonfinite", "raise_if_nonfinite_pixels", "spy", "together"}
)


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_signature_of_an_operation_is_one_tuple_in_all_implementations(name: str) -> None:
    operation = functions()[name]
    signature = inspect.signature(operation)
    [problem] = signature.parameters.values()
    assert problem.name == "problem"
    assert problem.default is problem.empty
    assert issubclass(problem.annotation, tuple)
    assert problem.annotation is getattr(ops, problem.annotation.__name__)
    unsaid = [field for field in problem.annotation._fields if f"{field}: " not in problem.annotation.__doc__]
    assert unsaid == []
    for implementation in ("reference", "eager", *(["triton"] if find_spec("triton") else [])):
        beside = importlib.import_module(f"{operation.__module__}.{implementation}")
        assert inspect.signature(getattr(beside, name)) == signature, implementation


@pytest.mark.parametrize("implementation", ["reference", "eager", "auto"])
def test_several_videos_at_once_are_refused_where_no_kernel_takes_them(
    implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDSIEVE_OPS", implementation)
    persistence, offsets = torch.rand(8), torch.tensor([0, 2, 4, 6, 8])
    for ask in (
        lambda: ops.min_max(ops.MinMaxProblem(persistence, 1e-6, videos=2)),
        lambda: ops.scene_cuts(ops.SceneCutsProblem(persistence, offsets, 0.5, None, videos=2)),
        lambda: ops.apportion(ops.ApportionProblem(None, offsets, 4, videos=2)),
        lambda: ops.compact(ops.CompactProblem(torch.zeros(8).int(), offsets, offsets.diff(), 2, 8, videos=2)),
    ):
        with pytest.raises(KernelUnavailable, match="expected 1 video, got 2"):
            ask()


@pytest.mark.parametrize(
    ("asked", "kernels", "hashes"), [("auto", "", 1), ("triton", "", 1), ("eager", "", 0), ("auto", "no GPU", 0)]
)
def test_triton_hashes_its_library_in_another_thread(
    asked: str, kernels: str, hashes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = pytest.importorskip("triton.runtime.cache")
    assert callable(cache.triton_key)  # the name that torch has for it too
    threads: list[threading.Thread] = []
    done = threading.Event()
    monkeypatch.setattr(cache, "triton_key", lambda: (threads.append(threading.current_thread()), done.set()))
    monkeypatch.setattr(dispatch, "_no_kernels", lambda: kernels)
    monkeypatch.setenv("VIDSIEVE_OPS", asked)
    dispatch.start_hashing()
    assert done.wait(10 if hashes else 0.05) == bool(hashes)
    assert len(threads) == hashes
    assert threading.current_thread() not in threads
