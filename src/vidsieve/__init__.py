"""Drop the video tokens a video language model does not need.

    import vidsieve
    with vidsieve.attach(model, "vidsieve", keep=0.1) as trace:
        out = model.generate(**inputs)
    print(trace)

Start with `vidsieve.methods`. Importing the package needs torch alone.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

from vidsieve import errors, methods, ops, registry
from vidsieve.methods import presets
from vidsieve.methods.base import Reducer
from vidsieve.methods.compose import Chain, Staged
from vidsieve.methods.framefusion import FrameFusion
from vidsieve.methods.prune import Prune
from vidsieve.types.frames import Frames
from vidsieve.types.reduction import Reduction
from vidsieve.types.tokens import Prompt, VideoTokens

if TYPE_CHECKING:
    from vidsieve import cli, encoded, engines, evaluation, video
    from vidsieve.encoded.encode import encode
    from vidsieve.encoded.stream import Stream
    from vidsieve.encoded.video import EncodedVideo
    from vidsieve.engines.hf import verify
    from vidsieve.engines.hf.attach import attach, detach

__version__ = version("vidsieve")

_OF_MODELS = ("attach", "detach", "verify")  # these need transformers, which the core does not,
_OF_VIDEOS = ("EncodedVideo", "Stream", "encode")  # these PyAV too,
_LATER = ("cli", "encoded", "engines", "evaluation", "video")  # and these each something of their own, or time

__all__ = [
    "Chain",
    "EncodedVideo",
    "FrameFusion",
    "Frames",
    "Prompt",
    "Prune",
    "Reducer",
    "Reduction",
    "Staged",
    "Stream",
    "VideoTokens",
    "attach",
    "cli",
    "detach",
    "encode",
    "encoded",
    "engines",
    "errors",
    "evaluation",
    "methods",
    "ops",
    "presets",
    "registry",
    "verify",
    "video",
]


def __getattr__(name: str) -> object:
    if name in _OF_MODELS:
        return getattr(import_module("vidsieve.engines.hf"), name)
    if name in _OF_VIDEOS:
        return getattr(import_module("vidsieve.encoded"), name)
    if name in _LATER:
        return import_module(f"vidsieve.{name}")
    raise AttributeError(f"module 'vidsieve' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
