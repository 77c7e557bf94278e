"""Videos of other lengths ask for kernels that are compiled already: by the keys that Triton itself compiles for."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vidsieve import Prompt, Prune, VideoTokens, ops, registry
from vidsieve.methods.base import Reducer
from vidsieve.methods.budget import MarginalGain, Proportional
from vidsieve.methods.merge import NearestKept, TemporalMerge
from vidsieve.methods.relevance import Flat, Novelty, PromptSimilarity
from vidsieve.methods.segment import PerFrame, Uniform, Within
from vidsieve.methods.selection import MMR, ConditionalDPP, Hybrid, MaxMin
from vidsieve.ops.definitions import AttentionProblem, GateProblem, KCenterProblem, RotaryProblem, RunLengthProblem
from vidsieve.types.reduction import Reduction

launch = pytest.importorskip("vidsieve.ops.launch", reason="Triton is not installed")
greedy = pytest.importorskip("vidsieve.ops.greedy.triton")

D = 64
METHODS: dict[str, Reducer] = {
    name: method(0.1) for name, method in registry.methods().items() if not method.inside
} | {
    "max-min in a frame": Prune(0.1, PerFrame(), Proportional(), Flat(), MaxMin()),
    "max-min in scenes": Prune(0.1, Uniform(4), MarginalGain(), Novelty(), MaxMin()),
    "hybrid in frames": Prune(0.1, Uniform(32), Proportional(), PromptSimilarity(), Hybrid(4)),
    "MMR, merged": Prune(0.1, Within(400), Proportional(), Novelty(), MMR(), NearestKept()),
    "DPP in pairs": Prune(0.1, Within(400), MarginalGain(), Novelty(), ConditionalDPP()),
    "temporal merge": TemporalMerge(0.5),
    "temporal merge of a size": TemporalMerge(keep=0.5),
}
Layout = tuple[int, int, int]
Key = tuple[str, tuple[tuple[str, str], ...]]


class _Zeros(TorchDispatchMode):
    """New memory is zero, so that what no kernel writes can be read."""

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = op(*args, **(kwargs or {}))
        aten = torch.ops.aten
        return out.zero_() if op.overloadpacket in (aten.empty, aten.new_empty, aten.empty_like) else out


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[Key]]:
    """What an H100 would compile for the launches of the test, none of which runs: (kernel, argument by argument)."""
    jit = pytest.importorskip("triton.runtime.jit")
    compiler = pytest.importorskip("triton.backends.compiler")
    backend = pytest.importorskip("triton.compiler").make_backend(compiler.GPUTarget("cuda", 90, 32))
    keys: set[Key] = set()
    binders: dict[str, Callable[..., Any]] = {}

    def record(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
        name = kernel.fn.__name__
        if name not in binders:
            compiled = kernel  # the interpreter has a kind of its own
            if not isinstance(kernel, jit.JITFunction):
                compiled = jit.JITFunction(kernel.fn, do_not_specialize=kernel.kwargs["do_not_specialize"])
            binders[name] = jit.create_function_from_signature(compiled.signature, compiled.params, backend)
        names, specialization, others = binders[name](*args, **options)
        found = [(argument, str(one)) for argument, one in zip(names, specialization, strict=True)]
        keys.add((name, (*found, *((option, str(value)) for option, value in others.items()))))

    monkeypatch.setenv("VIDSIEVE_OPS", "triton")
    monkeypatch.setattr(launch, "_launch", record)
    monkeypatch.setattr(launch, "unavailable", lambda: "")
    for operation in ("greedy", "measurement", "attention"):
        monkeypatch.setattr(f"vidsieve.ops.{operation}.triton.multiprocessors", lambda x: 132)
    nearest = greedy._nearest_other  # beyond HELD it launches none, and takes long
    monkeypatch.setattr(greedy, "_nearest_other", lambda *args: args[3] if args[5] > greedy.HELD else nearest(*args))
    monkeypatch.setattr(Reduction, "__post_init__", lambda self: None)  # there is no answer to check
    with _Zeros():
        yield keys


def _reduce(method: Reducer, layout: Layout) -> None:
    frames, rows, columns = layout
    features = torch.zeros(frames * rows * columns, D, dtype=torch.bfloat16)
    method.reduce(VideoTokens.from_grid(features, *layout), Prompt(torch.zeros(7, D, dtype=torch.bfloat16)))


def _keys(asked: set[Key], call: Callable[[Any], None], lengths: Iterable[Any]) -> list[set[Key]]:
    """What each of `lengths` asks for."""
    found = []
    for length in lengths:
        asked.clear()
        call(length)
        found.append(set(asked))
    return found


def _differing(sets: Iterable[set[Key]]) -> dict[str, dict[str, set[str]]]:
    """Of each kernel the arguments that are not always the same, and what they are."""
    values: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for keys in sets:
        for kernel, arguments in keys:
            for argument, one in arguments:
                values[kernel][argument].add(one)
    return {
        kernel: found
        for kernel, arguments in values.items()
        if (found := {argument: ones for argument, ones in arguments.items() if len(ones) > 1})
    }


@pytest.mark.parametrize("name", METHODS)
def test_lengths_up_to_a_power_of_two_share_all_kernels(name: str, asked: set[Key]) -> None:
    same_size = [(48, 14, 14), (56, 14, 14), (60, 14, 14), (61, 14, 14)]
    same_count = [(64, 14, 14), (64, 12, 15), (64, 12, 16), (64, 13, 13)]
    for layouts in (same_size, same_count):
        first, *others = _keys(asked, lambda layout: _reduce(METHODS[name], layout), layouts)
        for layout, keys in zip(layouts[1:], others, strict=True):
            assert keys == first, (layout, _differing([first, keys]))


@pytest.mark.parametrize("name", METHODS)
def test_kernels_of_all_lengths_differ_in_powers_of_two(name: str, asked: set[Key]) -> None:
    layouts = [(t, h, w) for t in (1, 2, 33, 64) for h, w in ((1, 1), (3, 5), (14, 14), (20, 36))]
    for kernel, arguments in _differing(_keys(asked, lambda layout: _reduce(METHODS[name], layout), layouts)).items():
        for argument in arguments.keys() - {"num_stages", "RULE"}:  # one follows from BLOCK, two are of the method
            assert all(_few(one) for one in arguments[argument]), (kernel, argument, arguments[argument])


def _few(one: str) -> bool:
    """Whether a constant is a truth value, a power of two or 0; arguments that are no constants differ in nothing."""
    value = one.removeprefix("('constexpr', ").removesuffix(")")
    return value in ("True", "False", "0") or (value.isdecimal() and int(value).bit_count() == 1)


def _attention(length: int) -> None:
    queries = torch.zeros(4, length, 16), torch.zeros(2, length, 16)
    ops.received_attention(AttentionProblem(*queries, torch.zeros(7, dtype=torch.int64)))


def _rows(length: int) -> None:
    rows = torch.zeros(1, length, dtype=torch.int64)
    ops.compact_rows(ops.CompactRowsProblem(rows, length // 2, 5, length + 9))


def _run_length(length: int) -> None:
    ops.run_length(RunLengthProblem(torch.zeros(4, length, 96), 2 * length))


def _k_center(length: int) -> None:
    ops.k_center(KCenterProblem(torch.zeros(4, length, 96), 2 * length))


def _rotate(length: int) -> None:
    ops.rotate_(RotaryProblem(torch.zeros(length, 3, 2, 80), *(torch.zeros(length, 80),) * 2))


def _gate(length: int) -> None:
    ops.gate(GateProblem(torch.zeros(length, 2 * 128), 107, (torch.zeros(107), torch.zeros(107))))


@pytest.mark.parametrize("call", [_attention, _rows, _run_length, _k_center, _rotate, _gate])
def test_lengths_of_one_operation_share_its_kernels(call: Callable[[int], None], asked: set[Key]) -> None:
    lengths = [1056, 1057, 1200, 1568, 2000]
    first, *others = _keys(asked, call, lengths)
    assert first
    for length, keys in zip(lengths[1:], others, strict=True):
        assert keys == first, (length, _differing([first, keys]))
