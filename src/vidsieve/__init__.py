"""Drop the video tokens a video language model does not need.

    import vidsieve
    with vidsieve.presets.vidsieve(keep=0.1)(model) as trace:
        out = model.generate(**inputs)
    print(trace)

Start with `vidsieve.reducer`. Importing the package needs torch alone.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

from vidsieve import budget, errors, merge, ops, presets, relevance, segment, selection
from vidsieve.framefusion import FrameFusion
from vidsieve.reducer import Chain, Prune, Reducer, Staged
from vidsieve.reduction import Reduction
from vidsieve.tokens import Frames, Prompt, VideoTokens

if TYPE_CHECKING:
    from vidsieve import batch, bench, demo, evaluate, models, needles, peers, run, stored, video, visualize
    from vidsieve.models import attach, detach, verify

__version__ = version("vidsieve")

_OF_MODELS = ("attach", "detach", "verify")  # these need transformers, which the core does not,
_LATER = ("batch", "bench", "demo", "evaluate", "models", "needles", "peers", "run", "stored", "video", "visualize")

__all__ = [
    "Chain",
    "FrameFusion",
    "Frames",
    "Prompt",
    "Prune",
    "Reducer",
    "Reduction",
    "Staged",
    "VideoTokens",
    "attach",
    "batch",
    "bench",
    "budget",
    "demo",
    "detach",
    "errors",
    "evaluate",
    "merge",
    "models",
    "needles",
    "ops",
    "peers",
    "presets",
    "relevance",
    "run",
    "segment",
    "selection",
    "stored",
    "verify",
    "video",
    "visualize",
]


def __getattr__(name: str) -> object:
    if name in _OF_MODELS:
        return getattr(import_module("vidsieve.models"), name)
    if name in _LATER:  # and these each something of their own, or time
        return import_module(f"vidsieve.{name}")
    raise AttributeError(f"module 'vidsieve' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
