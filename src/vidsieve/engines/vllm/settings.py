"""What a server prunes with, and what one request may ask of it. Knows nothing of vLLM.

The method is the server's, from one environment variable:

    VIDSIEVE_VLLM=vidsieve             a name that `vidsieve methods` lists; this one if unset
    VIDSIEVE_VLLM=package.module:name  your own: called with the fraction to keep, it returns a Reducer
    VIDSIEVE_VLLM=off                  vLLM as it is without this package

A request may ask, for its videos, with `mm_processor_kwargs`:

    {"vidsieve": {"keep": 0.2, "question": "What colour is the car?"}}
"""

import functools
import importlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vidsieve import registry
from vidsieve.checks import describe, did_you_mean
from vidsieve.errors import UnsupportedCall
from vidsieve.methods.base import Reducer, check_keep, kept_count
from vidsieve.types.reduction import Reduction
from vidsieve.types.tokens import Prompt, VideoTokens

VARIABLE = "VIDSIEVE_VLLM"
KWARG = "vidsieve"
MAX_QUESTION = 4096  # characters


def retained(total: int, rate: float) -> int:
    """How many of a video's `total` tokens `--video-pruning-rate` leaves, by vLLM's own arithmetic, and never none.

    It rounds down. EVS keeps the whole first frame on top of this, VidCom2 one token a frame; neither is part of the
    contract, which only wants the placeholders in the prompt to be as many as the embeddings.
    """
    return max(1, int(total * (1 - rate)))


@dataclass(frozen=True)
class Method:
    """A method that can serve: it keeps exactly as many tokens as requested. asks: whether it needs the question."""

    name: str
    build: Callable[[float], Reducer]
    asks: bool

    @classmethod
    def named(cls, name: str) -> "Method":
        """The method of a name, tried out on noise. Raises `UnsupportedCall` for one that cannot serve."""
        build = _find(name)
        if not isinstance(made := build(0.5), Reducer):
            raise UnsupportedCall(
                f"{VARIABLE}={name!r} makes {describe(made)}; a server reduces between the vision tower and the "
                "language model, where a Reducer acts: no stages, and no selector before the tower"
            )
        tokens = VideoTokens.from_grid(torch.randn(120, 8, generator=torch.Generator().manual_seed(0)), 4, 5, 6)
        prompt = Prompt(tokens.features[:3])
        try:
            made.reduce(tokens)
            asks = False
        except ValueError:  # as `Reducer.reduce` says: it needs a prompt and got none
            asks = True
        method = cls(name, build, asks)
        for count in (1, 7, 60, 119):
            method.reduce(tokens, count, prompt)
        return method

    def reduce(self, tokens: VideoTokens, count: int, prompt: Prompt | None) -> Reduction:
        """Exactly `count` of `tokens`. Raises `UnsupportedCall` if the method leaves another number."""
        return self.reduce_each([tokens], [count], [prompt])[0]

    def reduce_each(
        self, videos: Sequence[VideoTokens], counts: Sequence[int], prompts: Sequence[Prompt | None]
    ) -> list[Reduction]:
        """Exactly `counts` of each of several videos; those of one length and count go through the device together.

        Raises `UnsupportedCall` if the method leaves another number.
        """
        groups: dict[tuple[int, int], list[int]] = {}
        for video, (tokens, count) in enumerate(zip(videos, counts, strict=True)):
            groups.setdefault((len(tokens), count), []).append(video)
        reductions: dict[int, Reduction] = {}
        for (total, count), some in groups.items():
            made = _built(self, count / total).reduce_each([videos[i] for i in some], [prompts[i] for i in some])
            reductions.update(zip(some, made, strict=True))
            for reduction in made:
                if len(reduction) != count:
                    raise UnsupportedCall(
                        f"{VARIABLE}={self.name} kept {len(reduction)} of {total} tokens where {count} were due; a "
                        "server needs a method of exact counts, for the prompt has its placeholders before the video "
                        "is seen"
                    )
        return [reductions[video] for video in range(len(videos))]


@functools.lru_cache(maxsize=256)
def _built(method: Method, keep: float) -> Reducer:
    return method.build(keep)


def _find(name: str) -> Callable[[float], Reducer]:
    served = registry.methods(inside=False)
    if name in served:
        return served[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        inside = name in registry.methods()
        wrong = "works inside the language model" if inside else "is no method"
        meant = "" if inside else did_you_mean(name, (*served, "off"))
        raise UnsupportedCall(
            f"{VARIABLE}={name!r} {wrong}; expected one of {', '.join(served)}, "
            f"package.module:name for one of your own, or off{meant}"
        )
    try:
        build: Callable[[float], Reducer] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UnsupportedCall(f"{VARIABLE}={name!r} cannot be imported: {error}") from error
    return build


@functools.cache
def configured() -> Method | None:
    """The method this process serves with; None if vidsieve is off."""
    name = os.environ.get(VARIABLE, "vidsieve")
    return None if name == "off" else Method.named(name)


def method_is_explicit() -> bool:
    """Whether the user named a method, rather than got the default."""
    return VARIABLE in os.environ


def pruning_rate(spec: tuple[str, float] | None) -> float | None:
    """The rate vidsieve prunes with, None where vLLM's own code runs.

    spec: `--video-pruning-method` and `--video-pruning-rate`, None without a rate.  Raises `UnsupportedCall` for a
    method named in VIDSIEVE_VLLM that these options leave nothing to do.
    """
    if spec is not None and spec[0] == "evs":
        return spec[1]
    if method_is_explicit():
        got = "no --video-pruning-rate above 0" if spec is None else f"--video-pruning-method {spec[0]}"
        raise UnsupportedCall(
            f"{VARIABLE}={os.environ[VARIABLE]} names a method that would never run: got {got}, expected "
            "--video-pruning-rate RATE and no --video-pruning-method. "
            f"Start the server so, or unset {VARIABLE}, or set it to off"
        )
    return None


@dataclass(frozen=True)
class RequestOptions:
    """What a request asks for its videos. keep: None, what the server's pruning rate leaves."""

    keep: float | None = None
    question: str | None = None

    @classmethod
    def of(cls, mm_processor_kwargs: Mapping[str, object]) -> "RequestOptions":
        """Those in a request's `mm_processor_kwargs`. Raises `UnsupportedCall`, which refuses the request."""
        given = mm_processor_kwargs.get(KWARG, {})
        if not isinstance(given, Mapping) or not given.keys() <= {"keep", "question"}:
            raise UnsupportedCall(
                f'expected mm_processor_kwargs {{"{KWARG}": {{"keep": ..., "question": ...}}}}, got {given!r}'
            )
        keep, question = given.get("keep"), given.get("question")
        if keep is not None:
            if isinstance(keep, bool) or not isinstance(keep, int | float):
                raise UnsupportedCall(f"expected a number in (0, 1] for keep, got {keep!r}")
            check_keep(keep)
        if question is not None and not (isinstance(question, str) and question.strip()):
            raise UnsupportedCall(f"expected some text for question, got {question!r}")
        if question is not None and len(question) > MAX_QUESTION:
            raise UnsupportedCall(f"expected a question of at most {MAX_QUESTION} characters, got {len(question)}")
        return cls(None if keep is None else float(keep), question)

    def check(self, method: Method) -> None:
        """Raise `UnsupportedCall` where `method` would need a question and there is none, or would not hear it."""
        if method.asks and self.question is None:
            raise UnsupportedCall(
                f"{VARIABLE}={method.name} weighs tokens by the question, which it cannot read off the prompt; "
                f'pass it: mm_processor_kwargs={{"{KWARG}": {{"question": "..."}}}}'
            )
        if self.question is not None and not method.asks:
            raise UnsupportedCall(
                f"this server prunes with {method.name}, which does not look at the question; "
                f"leave it out, or start the server with {VARIABLE}=cdpruner"
            )

    def count(self, total: int, rate: float) -> int:
        """How many of a video's `total` tokens stay."""
        return retained(total, rate) if self.keep is None else kept_count(self.keep, total)


_KEY = 16  # bytes that name a video


def order(keep: float | None, question: list[int], key: bytes | None = None) -> Tensor:
    """What the front end orders of the encoder for one video, as vLLM carries it there: float64 (1 + 16 + M,).

    A wish and not a count: both ends apply `ordered_count` to it, each to the length that it sees.
    key: 16 bytes that name the video, where its unpruned embeddings may be wanted again.
    """
    name = [-1] * _KEY if key is None else list(key)
    return torch.tensor([math.nan if keep is None else keep, *name, *question], dtype=torch.float64)


def ordered_count(ordered: Tensor, total: int, rate: float) -> int:
    """How many of a video's `total` tokens stay by its order."""
    keep = float(ordered[0])
    return RequestOptions(None if math.isnan(keep) else keep).count(total, rate)


def ordered_key(ordered: Tensor) -> bytes | None:
    """The name of the video in an order, None if it has none."""
    name = [int(byte) for byte in ordered[1 : 1 + _KEY].tolist()]
    return None if name[0] < 0 else bytes(name)


def ordered_question(ordered: Tensor) -> list[int]:
    """The question's token ids in an order, none if nothing was asked."""
    return [int(token) for token in ordered[1 + _KEY :].tolist()]
