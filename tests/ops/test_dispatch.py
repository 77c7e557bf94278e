"""VIDSIEVE_OPS: which implementation runs, and what it refuses."""

import pytest

from tests.synthetic import independent
from vidsieve import VideoTokens, ops
from vidsieve.errors import KernelUnavailable
from vidsieve.methods import presets


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
