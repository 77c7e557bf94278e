"""READ FIRST. What a reducer is.

A `Reducer` turns the tokens of a video (and the prompt) into a `Reduction`: which tokens stay, and what became of the
others. `Prune` is the general pruning method: segment, budget, weigh, select. A published method is one `Prune`
expression (see presets). Calling a reducer on a model attaches it:

    with vidsieve.presets.vidsieve(keep=0.1)(model) as trace:
        out = model.generate(**inputs)

`Chain` puts reducers one after another before the language model, `Staged` puts them at layers inside it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol

from torch import Tensor

from vidsieve import registry
from vidsieve.checks import check_number, describe
from vidsieve.errors import WrongArgument
from vidsieve.telemetry.trace import Trace
from vidsieve.types.reduction import Reduction
from vidsieve.types.tokens import Prompt, VideoTokens


class Attached(Protocol):
    """A method on a model, until `remove()` or the end of its `with` block; `trace` records what it did."""

    trace: Trace

    def __enter__(self) -> Trace: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def remove(self) -> None:
        """Detach: the model is as it was before. Doing so twice is harmless."""


class Attachable:
    """What can be attached to a model, by calling it."""

    def __call__(self, model: object) -> Attached:
        """Attach to a Hugging Face video language model: `with reducer(model) as trace: model.generate(...)`."""
        attached: Attached = registry.engine("hf")(model, self)
        return attached


class Reducer(Attachable, ABC):
    """Decides which tokens of a video a language model gets to see."""

    @abstractmethod
    def reduce(self, tokens: VideoTokens, prompt: Prompt | None = None) -> Reduction:
        """The reduction of one video's tokens (N, D).

        Raises `ValueError` where the method needs a prompt and got none, and `NonFiniteFeatures` for NaN, inf or a
        length that float32 cannot square: on CPU here, on an accelerator from `Reduction.check`, so that nothing here
        waits for the device.
        """

    def reduce_each(
        self, videos: Sequence[VideoTokens], prompts: Sequence[Prompt | None] | None = None
    ) -> list[Reduction]:
        """The reduction of each of several videos, each with a prompt of its own where there are prompts.

        Videos of one layout go through the kernels together where the method allows it: a launch for all of them.
        """
        return [self.reduce(*pair) for pair in zip(videos, prompts or [None] * len(videos), strict=True)]


class Capturable(Reducer):
    """A reducer in two steps: what it asks of the device, and what it makes of the answer.

    The first never waits for the device, so a CUDA graph can repeat it (engines/graph.py).
    """

    @abstractmethod
    def captures(self, tokens: VideoTokens) -> bool:
        """Whether that holds for videos laid out like this one."""

    @property
    @abstractmethod
    def prompted(self) -> bool:
        """Whether what is asked depends on the prompt."""

    @abstractmethod
    def ask(self, tokens: VideoTokens, prompt: Prompt | None = None) -> dict[str, Tensor]:
        """What `settle` needs to know of the device."""

    @abstractmethod
    def settle(self, tokens: VideoTokens, found: dict[str, Tensor]) -> Reduction:
        """The reduction, given what `ask` found."""


def kept_count(keep: float, produced: int) -> int:
    """How many of `produced` tokens a fraction `keep` leaves: round(keep * produced), and never none."""
    return max(1, round(keep * produced))


def check_keep(keep: float) -> None:
    """Raise unless `keep` is a fraction in (0, 1]."""
    check_number("keep is the fraction of the video tokens that stays, in (0, 1]", keep, 0, 1, beyond=True)


def check_cost(cost: float) -> None:
    """Raise unless `cost` is a share in (0, 1]."""
    check_number("cost is the share of the prefill FLOPs to spend, in (0, 1]", cost, 0, 1, beyond=True)


def check_given(tokens: object, prompt: object = None) -> None:
    """Raise `WrongArgument` unless these are the tokens of a video, and its prompt if there is one."""
    if not isinstance(tokens, VideoTokens):
        raise WrongArgument(
            f"expected the VideoTokens of a video, got {describe(tokens)}; features (N, D) become them by "
            "VideoTokens.from_grid(features, frames, rows, columns)"
        )
    if not isinstance(prompt, Prompt | None):
        raise WrongArgument(f"expected a Prompt or None, got {describe(prompt)}; Prompt(embeddings) holds (L, D)")


def refuse_non_finite(tokens: VideoTokens) -> None:
    """Raise `NonFiniteFeatures` for NaN or inf on CPU, before anything is decided; see `unseen` for accelerators."""
    if tokens.features.device.type == "cpu":
        tokens.check()


def unseen(tokens: VideoTokens) -> Tensor | None:
    """What `Reduction.check` needs on an accelerator, where nobody has looked for NaN or inf yet."""
    return None if tokens.features.device.type == "cpu" else tokens.bad
