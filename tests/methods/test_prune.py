"""Prune: its repr, and what it answers inside a compiled function."""

import torch

import vidsieve
from tests.synthetic import video_like
from vidsieve import VideoTokens
from vidsieve.methods import presets


def test_a_reduction_inside_a_compiled_function_is_right() -> None:
    """Dynamo breaks its graph at the parts that decide by Python; what comes out must not change."""
    x, method = video_like(6, 10, 16, seed=2).float(), presets.vidsieve(0.25)
    double = lambda x: 2 * method.reduce(VideoTokens(x, (10,) * 6)).apply(x)  # noqa: E731
    assert torch.equal(torch.compile(double, backend="eager")(x), double(x))
    torch._dynamo.reset()


def test_a_configuration_is_its_repr() -> None:
    method = presets.cdpruner(0.2)
    assert eval(repr(method), vars(vidsieve) | {type(p).__name__: type(p) for p in vars(method).values()}) == method
