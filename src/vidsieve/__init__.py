"""Drop the video tokens a video language model does not need.

    import vidsieve
    with vidsieve.presets.vidsieve(keep=0.1)(model) as trace:
        out = model.generate(**inputs)
    print(trace)

Start with `vidsieve.reducer`. Importing the package needs torch alone.
"""

from importlib.metadata import version
from typing import TYPE_CHECKING

from vidsieve import budget, errors, merge, ops, presets, relevance, segment, selection
from vidsieve.framefusion import FrameFusion
from vidsieve.reducer import Chain, Prune, Reducer, Staged
from vidsieve.reduction import Reduction
from vidsieve.tokens import Frames, Prompt, VideoTokens

if TYPE_CHECKING:
    from vidsieve.models import attach, verify

__version__ = version("vidsieve")

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
    "budget",
    "errors",
    "merge",
    "ops",
    "presets",
    "relevance",
    "segment",
    "selection",
    "verify",
]


def __getattr__(name: str) -> object:
    if name in ("attach", "verify"):  # these need transformers, which the core does not
        from vidsieve import models

        return getattr(models, name)
    raise AttributeError(f"module 'vidsieve' has no attribute {name!r}")
