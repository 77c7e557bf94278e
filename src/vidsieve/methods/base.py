"""READ FIRST. What a reducer is.

A `Reducer` turns the tokens of a video (and the prompt) into a `Reduction`: which tokens stay, and what became of the
others. `Prune` is the general pruning method: segment, budget, weigh, select. A published method is one `Prune`
expression (see presets). Calling a reducer on a model attaches it:

    with vidsieve.presets.vidsieve(keep=0.1)(model) as trace:
        out = model.generate(**inputs)

A part is called with the tokens and with what was measured of them, and declares what that has to be:

    requires: ClassVar = frozenset({"persistence"})     # of types/statistics.py; nothing, where it is not declared
    batches: ClassVar = True                            # takes several videos at once; see `declares`
    captures: ClassVar = True                           # a CUDA graph can repeat it; see `declares`
    chunks: ClassVar = True                             # needs no look at the rest of the video; see `declares`

`Chain` puts reducers one after another before the language model, `Staged` puts them at layers inside it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence, Set
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from vidsieve import ops, registry
from vidsieve.checks import check_keep as check_keep
from vidsieve.checks import check_number, describe
from vidsieve.errors import WrongArgument
from vidsieve.telemetry.trace import Trace
from vidsieve.types.reduction import Reduction
from vidsieve.types.selection import kept_count as kept_count
from vidsieve.types.statistics import QUANTITIES, OriginalStatistics, TokenStatistics
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


@dataclass(frozen=True, eq=False)
class Plan:
    """What the device was asked for a reduction, without a look at the answer.

    tensors: each (n,), by name, "nonfinite" among them.
    original_statistics: what is known by now of the video as it came.
    """

    tensors: Mapping[str, Tensor]
    original_statistics: OriginalStatistics


class PlannedReducer(Reducer):
    """A reducer in two steps: what it asks of the device, and what it makes of the answer.

    The first never waits for the device, so a CUDA graph can repeat it (engines/graph.py).
    part_fields: the attributes that hold its parts.
    """

    part_fields: ClassVar[tuple[str, ...]] = ()

    @property
    def requires(self) -> frozenset[str]:
        """What is measured of the features: all that a part requires; "similarity" is to the prompt."""
        return frozenset().union(*(requires_of(getattr(self, name)) for name in self.part_fields))

    @abstractmethod
    def replayable(self, tokens: VideoTokens) -> bool:
        """Whether a graph can repeat `plan` for videos laid out like this one."""

    @abstractmethod
    def plan(self, tokens: VideoTokens, prompt: Prompt | None = None) -> Plan:
        """Ask the device for all that `finalize` makes a reduction of."""

    @abstractmethod
    def finalize(self, tokens: VideoTokens, plan: Plan) -> Reduction:
        """Make the reduction of what the device was asked."""


def requires_of(part: object) -> frozenset[str]:
    """What a part, and the parts it holds, declare to require of the features; nothing where they declare nothing."""
    own = frozenset(getattr(part, "requires", ()))
    inner = getattr(part, "part_fields", ())
    return own.union(*(requires_of(getattr(part, name)) for name in inner)) if inner else own


def check_requires(name: str, part: object, among: Set[str] = QUANTITIES) -> None:
    """Raise `WrongArgument` unless all that the part `name` requires is `among` what can be measured for it."""
    if unknown := requires_of(part) - among:
        raise WrongArgument(f"the {name} can require {', '.join(sorted(among))} of the features; got {sorted(unknown)}")


def declares(part: object, ability: str) -> bool:
    """Whether the class of `part` declares `ability` in its own body, and so do the classes of the parts it holds.

    "batches": takes several videos of one layout as one `VideoTokens`.  "captures": a CUDA graph can repeat it. Both
    never wait for the device.  "chunks": decides alike on a part of the video (chunked.py): where segments begin, by
    what comes before; the weight of a token, by its frame and the two beside it; and the first picks of a segment,
    whatever its budget is. A derived class may override what this rests on, so it inherits none of them.
    """
    own = vars(type(part))
    return own.get(ability) is True and all(
        declares(getattr(part, name), ability) for name in own.get("part_fields", ())
    )


def check_cost(cost: float) -> None:
    """Raise unless `cost` is a share in (0, 1]."""
    requirement = "cost is the share of the prefill FLOPs to spend, in (0, 1], such as 0.3"
    check_number(requirement, cost, 0, 1, exclusive_low=True)


def check_given(tokens: object, prompt: object = None) -> None:
    """Raise `WrongArgument` unless these are the tokens of a video, and its prompt if there is one."""
    if not isinstance(tokens, VideoTokens):
        raise WrongArgument(
            f"expected the VideoTokens of a video, got {describe(tokens)}; features (N, D) become them by "
            "VideoTokens.from_grid(features, frames, rows, columns)"
        )
    if not isinstance(prompt, Prompt | None):
        raise WrongArgument(f"expected a Prompt or None, got {describe(prompt)}; Prompt(embeddings) holds (L, D)")


def raise_if_nonfinite(stats: TokenStatistics, prompt: Prompt | None = None) -> None:
    """Raise `NonFiniteFeatures` for NaN or inf on CPU, before anything is decided.

    On an accelerator a look would wait for the device: see `pending_nonfinite`.
    """
    nonfinite = stats.required("nonfinite")
    if nonfinite.device.type != "cpu":
        return
    ops.raise_if_nonfinite(nonfinite & ~ops.NONFINITE_PROMPT)
    if prompt is not None and stats.similarity is not None and stats.similarity.isnan().any():
        prompt.check()


def pending_nonfinite(nonfinite: Tensor) -> Tensor | None:
    """What `Reduction.check` needs on an accelerator, where nobody has looked for NaN or inf yet."""
    return None if nonfinite.device.type == "cpu" else nonfinite


def own_precision(device: torch.device) -> AbstractContextManager[object]:
    """Keep autocast, where it is on, out of a decision, which asks for float32 where it needs that."""
    on = torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if on else nullcontext()
