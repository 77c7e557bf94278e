"""warm: the kernels that an encoding asks for are among those that warm asked for before."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ops.test_lengths import Key, asked
from vidsieve import presets
from vidsieve.cli import warm_encode
from vidsieve.methods import MMR, ChunkedPrune, Flat, PerFrame, Proportional, Prune, in_chunks
from vidsieve.ops import dispatch
from vidsieve.ops.definitions import GreedyProblem

__all__ = ["asked"]  # a fixture
D = 16
METHODS = {
    "default": presets.vidsieve(0.1),
    "few": presets.vidsieve(0.02),
    "MMR in a frame": Prune(0.1, PerFrame(), Proportional(), Flat(), MMR()),
}


def _first(problem: Any) -> Tensor:
    """The order of a selection that picks the first tokens of each segment."""
    x, _, offsets, budget, *_ = problem[0] if isinstance(problem[0], GreedyProblem) else problem
    order = torch.full((len(x),), -1, dtype=torch.int32)
    for begin, count in zip(offsets.tolist(), budget.tolist(), strict=False):
        order[begin : begin + count] = torch.arange(count, dtype=torch.int32)
    return order


@pytest.fixture
def launched(asked: set[Key], monkeypatch: pytest.MonkeyPatch) -> set[Key]:
    """What is asked for by operations that give what eager does, for the host reads it; selections cost too much."""
    namesake = dispatch._namesake

    def both(eager: Callable[[Any], Any], implementation: str) -> Callable[[Any], Any]:
        kernels = namesake(eager, implementation)

        def call(problem: Any) -> Any:
            kernels(problem)
            return _first(problem) if ".greedy." in eager.__module__ else eager(problem)

        return call

    monkeypatch.setattr(dispatch, "_namesake", both)
    return asked


def _encode(method: Prune, tokens: int, chunk: int, seed: int) -> None:
    """Select of a video of scenes of any lengths, chunk after chunk; the last chunk is shorter."""
    rng, scenes = random.Random(seed), torch.Generator().manual_seed(seed)
    usual = rng.choice([1, 2, 5, 40])
    frames: list[Tensor] = []
    while len(frames) < 3 * chunk:
        scene = torch.randn(tokens, D, generator=scenes).bfloat16()
        frames += [scene] * rng.randint(1, 2 * usual - 1)
    frames = frames[: 3 * chunk + rng.randint(0, chunk - 1)]
    selecting = ChunkedPrune(method, tokens * len(frames), held_on="cpu")
    for begin in range(0, len(frames), chunk):
        part = frames[begin : begin + chunk]
        selecting.add(torch.cat(part), (tokens,) * len(part))
    selecting._hold_ended(everything=True)


@pytest.mark.parametrize(
    ("name", "tokens", "chunk"),
    [("default", 720, 19), ("default", 256, 32), ("few", 60, 24), ("MMR in a frame", 60, 24)],
)
def test_an_encoding_asks_for_no_kernel_that_warm_did_not(
    name: str, tokens: int, chunk: int, launched: set[Key], monkeypatch: pytest.MonkeyPatch
) -> None:
    method = in_chunks(METHODS[name])
    for features, frames in warm_encode.layouts(torch.zeros(1, D, dtype=torch.bfloat16), tokens, chunk):
        ChunkedPrune(method, 1000 * len(features), held_on="cpu").add(features, frames)
    warmed = set(launched)
    launched.clear()
    for seed in range(4):
        _encode(method, tokens, chunk, seed)
    assert launched
    assert launched <= warmed, launched - warmed


@pytest.mark.parametrize(("frames", "most"), [(1, 1), (3, 1), (19, 2), (32, 26), (5, 100)])
def test_segments_that_may_end_at_once(frames: int, most: int) -> None:
    found = warm_encode.segments(frames, most)
    assert len(found) == len(set(found))
    for runs in found:
        assert 1 <= min(runs) <= max(runs) <= most
        assert sum(runs[1:]) < frames
    assert {len(runs) for runs in found} >= {1, 1 << (frames.bit_length() - 1), frames}
    assert {max(runs) for runs in found} >= {1, most}
