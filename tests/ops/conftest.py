"""Fixtures for the tests of kernels."""

from collections.abc import Iterator

import pytest
import torch

PATHS = {"short": (512, 2048), "long, S held": (0, 2048), "long, from features": (0, 16)}


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which kernels select, however long the segments are."""
    short, held = PATHS[request.param]
    monkeypatch.setattr("vidsieve.ops.greedy.triton.SHORT", short)
    monkeypatch.setattr("vidsieve.ops.greedy.triton.HELD", held)
    monkeypatch.setattr("vidsieve.ops.measurement.triton.ONCE", min(256, short))
    return request.param


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Memory that nobody wrote reads as NaN or as a huge integer."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
