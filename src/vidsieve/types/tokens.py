"""The nouns that flow: Frames -> VideoTokens (+ Prompt) -> Reduction.

N tokens, T frames, P tokens per frame, S segments, K kept, D features.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from vidsieve import ops
from vidsieve.checks import show
from vidsieve.types.reduction import Reduction
from vidsieve.types.statistics import OriginalStatistics


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Tensors (n, D) one after another; a view where that is how they lie in memory."""
    first = parts[0]
    one = len({part.untyped_storage().data_ptr() for part in parts}) == 1 and all(p.is_contiguous() for p in parts)
    if one and all(part.data_ptr() == first.data_ptr() + i * first.nbytes for i, part in enumerate(parts)):
        return first.as_strided((len(parts) * len(first), first.shape[1]), first.stride())
    return torch.cat(list(parts))


@dataclass(frozen=True, eq=False)
class Provenance:
    """Where the tokens of an already reduced video come from.

    original: the video as it came.  original_index: int64 (N,), the row of `original` whose place each token holds.
    count: computes `multiplicity`, for most never ask.
    statistics: what earlier reductions found out of `original`.
    """

    original: "VideoTokens"
    original_index: Tensor
    count: Callable[[], Tensor | None] = lambda: None
    statistics: OriginalStatistics = OriginalStatistics()

    @cached_property
    def multiplicity(self) -> Tensor | None:
        """How many rows of `original` each token stands for, itself included: int64 (N,), None where each is alone."""
        return self.count()

    @classmethod
    def of(cls, whole: "VideoTokens") -> Self:
        """Of a video of which all is left."""
        return cls(whole, torch.arange(len(whole), device=whole.features.device))

    def then(self, reduction: Reduction) -> Self:
        """Where what `reduction` leaves of these tokens comes from."""

        def counted() -> Tensor | None:
            count = self.multiplicity
            if reduction.merges:
                ones = torch.ones_like(reduction.assigned_to) if count is None else count
                # What was dropped has source -1, and is counted in a place of its own.
                return ones.new_zeros(1 + len(reduction)).index_add_(0, reduction.assigned_to + 1, ones)[1:]
            return None if count is None else count[reduction.kept]

        all_left = len(self.original_index) == len(self.original)
        kept = reduction.kept if all_left else self.original_index[reduction.kept]
        return replace(
            self, original_index=kept, count=counted, statistics=reduction.original_statistics or self.statistics
        )


class _FramesLeft(Sequence[int]):
    """Tokens in each frame that has any left, counted on the device when they are asked for first."""

    def __init__(self, provenance: Provenance) -> None:
        self._provenance = provenance

    @cached_property
    def _counts(self) -> tuple[int, ...]:
        whole = self._provenance.original
        counts = torch.bincount(whole.frame[self._provenance.original_index], minlength=len(whole.frames)).tolist()
        return tuple(n for n in counts if n)

    def __len__(self) -> int:
        return len(self._counts)

    def __getitem__(self, index: Any) -> Any:
        return self._counts[index]

    def __repr__(self) -> str:
        return repr(self._counts)


@dataclass(frozen=True, eq=False)
class VideoTokens:
    """The visual tokens that one video became, frame after frame, as the language model would receive them.

    features: (N, D) floating point.  frames: tokens in each frame, T positive integers that sum to N (known on the
    host, so that no later stage has to ask the device; of a reduced video they are counted when somebody looks).
    grid: (rows, columns) of a frame's tokens where they form one.
    original_count: how many tokens the model made of the video before any reduction; `keep` is a fraction of this.
    provenance: what these tokens are left of; None for a video as it came.
    attended: the attention each token received in the layer before, (N,) for each kind of query (relevance.py); None
    where there is no layer before.
    videos: how many of one layout these are, one after another: frames, grid and original_count are then of each.
    first_frame: the frames of the video before these, where these are a part of it.
    """

    features: Tensor
    frames: Sequence[int]
    grid: tuple[int, int] | None = None
    original_count: int = field(default=0)
    provenance: Provenance | None = None
    attended: Mapping[str, Tensor] | None = None
    videos: int = 1
    first_frame: int = 0

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or not self.features.is_floating_point():
            raise ValueError(f"expected floating-point features (N, D), got {show(self.features)}")
        if self.provenance is not None:
            return  # its frames follow from it, and counting them now would wait for the device
        if not self.frames or min(self.frames) < 1 or sum(self.frames) * self.videos != len(self.features):
            each = f" / {self.videos}" if self.videos > 1 else ""
            raise ValueError(
                f"expected tokens per frame, all positive, summing to N = {len(self.features)}{each}, got {self.frames}"
            )
        if self.grid is not None and {*self.frames} != {self.grid[0] * self.grid[1]}:
            raise ValueError(f"expected {self.grid[0]} x {self.grid[1]} tokens in each frame, got {self.frames}")
        if not self.original_count:
            object.__setattr__(self, "original_count", self.tokens_per_video)

    @classmethod
    def from_grid(cls, features: Tensor, frames: int, rows: int, columns: int) -> Self:
        """`features` (T * rows * columns, D) of a regular video."""
        return cls(features, (rows * columns,) * frames, (rows, columns))

    @classmethod
    def left_of(cls, provenance: Provenance, features: Tensor, attended: Mapping[str, Tensor] | None = None) -> Self:
        """What is left of a video, with the `features` (N, D) it has now."""
        whole = provenance.original
        untouched = len(features) == len(whole)
        frames = whole.frames if untouched else _FramesLeft(provenance)
        return cls(features, frames, whole.grid if untouched else None, whole.original_count, provenance, attended)

    @classmethod
    def stack(cls, videos: Sequence["VideoTokens"]) -> Self:
        """Several videos of one layout as one; copies their features where they are not neighbours in memory."""
        x = _joined([video.features for video in videos])
        return cls(x, videos[0].frames, videos[0].grid, videos=len(videos))

    def __len__(self) -> int:
        return self.features.shape[0]

    @property
    def tokens_per_video(self) -> int:
        """Tokens of one video: N, unless these are several."""
        return len(self.features) // self.videos

    def __repr__(self) -> str:
        shape = f"{len(self.frames)} frames" + (f" of {self.grid[0]} x {self.grid[1]}" if self.grid else "")
        return f"VideoTokens({show(self.features)}, {shape})"

    @property
    def original(self) -> "VideoTokens":
        """The video as it came: these tokens, unless they are what a reduction left of it."""
        return self if self.provenance is None else self.provenance.original

    @property
    def original_index(self) -> Tensor | None:
        """Which tokens of `original` these are: int64 (N,), None for all of them."""
        return None if self.provenance is None else self.provenance.original_index

    @property
    def regular(self) -> bool:
        """Whether every frame has the same number of tokens."""
        return len({*self.frames}) == 1

    @cached_property
    def frame(self) -> Tensor:
        """The frame each token belongs to: int64 (N,)."""
        device = self.features.device
        if self.regular:
            return torch.arange(len(self), device=device) // self.frames[0]
        lengths = torch.tensor(self.frames, device=device)
        return torch.repeat_interleave(lengths, output_size=len(self))

    @cached_property
    def offsets(self) -> Tensor:
        """Where each frame begins, and the end: int64 (T + 1,)."""
        device = self.features.device
        if self.regular:
            return torch.arange(0, len(self) + 1, self.frames[0], device=device)
        return torch.tensor((0, *self.frames), device=device).cumsum(0)

    @property
    def multiplicity(self) -> Tensor | None:
        """How many tokens of the video as it came each one stands for: int64 (N,), None where each is itself alone."""
        return None if self.provenance is None else self.provenance.multiplicity

    def from_original(self, x: Tensor) -> Tensor:
        """Take `x` (N', ...), a row for each token of the video as it came, to the tokens that are left: (N, ...)."""
        return x if self.provenance is None else x[self.provenance.original_index]

    def reduced(self, reduction: Reduction) -> "VideoTokens":
        """The tokens that `reduction` leaves; `keep` of a later stage still counts from `original_count`."""
        provenance = (self.provenance or Provenance.of(self)).then(reduction)
        attended, count = self.attended, self.multiplicity if reduction.merges else None
        if attended is not None:  # like the features, the mean of what merged
            attended = {kind: reduction.apply(mass, count) for kind, mass in attended.items()}
        return VideoTokens.left_of(provenance, reduction.apply(self.features, count), attended)


@dataclass(frozen=True, eq=False)
class Prompt:
    """The question, in the language model's input space: embeddings (M, D) of its text tokens.

    lengths: of the questions to several videos, one after another, the tokens of each; empty for one.
    """

    embeddings: Tensor
    lengths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.embeddings.ndim != 2 or not len(self.embeddings):
            raise ValueError(f"expected embeddings (M, D) of at least one token, got {show(self.embeddings)}")

    @classmethod
    def stack(cls, prompts: Sequence["Prompt"]) -> Self:
        """The questions to several videos as one."""
        parts = [prompt.embeddings for prompt in prompts]
        return cls(torch.cat(parts), tuple(map(len, parts)))

    def check(self) -> None:
        """Raise `NonFiniteFeatures`, saying how many of how many, if embeddings are not fit. Waits for the device."""
        problem = ops.MeasureProblem(self.embeddings, (len(self.embeddings),))
        ops.raise_if_nonfinite(ops.measure(problem).nonfinite, "prompt")

    def __repr__(self) -> str:
        return f"Prompt({show(self.embeddings)})"
