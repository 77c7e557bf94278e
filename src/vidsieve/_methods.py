"""Every method that has a name: what `--method` takes, and what the command line tells of it."""

import inspect
import re
from collections.abc import Callable
from typing import Any

from vidsieve import peers, presets
from vidsieve.peers.fewer_frames import fewer_frames
from vidsieve.reducer import Attachable, Reducer

BEFORE: dict[str, Callable[[float], Reducer]] = {**presets.METHODS, **peers.METHODS, "fewer_frames": fewer_frames}
ALL: dict[str, Callable[[float], Attachable]] = {**presets.METHODS, **presets.STAGED, **BEFORE}
SQUARE = frozenset({"divprune"})  # their work grows with the square of the video's length, that of all others with it


def default_keep(method: str) -> float:
    """The keep that a method's paper is about, 0.1 where there is none."""
    (first, *_) = inspect.signature(ALL[method]).parameters.values()
    return 0.1 if first.default is first.empty else float(first.default)


def keep_of(method: str) -> str:
    """What the first argument of a method is a share of: "tokens", or the prefill's "FLOPs"."""
    return "FLOPs" if next(iter(inspect.signature(ALL[method]).parameters)) == "cost" else "tokens"


def described() -> list[dict[str, Any]]:
    """Each method, with its paper."""
    return [
        {
            "name": name,
            "summary": (inspect.getdoc(method) or "").splitlines()[0],
            "keep_of": keep_of(name),
            "default_keep": default_keep(name),
            "grows": "square" if name in SQUARE else "linear",
            "paper": " ".join(re.findall(r"arXiv[: ]\d{4}\.\d{4,5}", method.__doc__ or "")) or None,
        }
        for name, method in ALL.items()
    ]
