"""What an encoded video on a model (replay.py) tells the stages that are attached inside the model."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vidsieve.errors import UnsupportedCall
from vidsieve.methods.compose import Staged
from vidsieve.types.reduction import Reduction
from vidsieve.types.tokens import VideoTokens

HANDLE = "_vidsieve_replay"  # the attribute of a model's body that holds what is replayed on it
_KNOWN = {  # of a tensor whose values are not
    *(getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim", "is_meta")),
    *(Tensor.__len__, Tensor.dim, Tensor.size, Tensor.is_floating_point, torch.is_floating_point),
}


class StoredVideo(NamedTuple):
    """A video that was reduced before it was stored: K of its N tokens are in a prompt.

    tokens: the whole video; its features are not known.  reduction: of the N to the K.  kept: int64 (K,) of it, on the
    host.  trailing: how many tokens of the model's own follow the K.  averaged: whether some of the K may be means of
    several tokens, of unknown weights.
    """

    tokens: VideoTokens
    reduction: Reduction
    kept: npt.NDArray[np.int64]
    trailing: int
    averaged: bool

    @classmethod
    def of(
        cls,
        kept: Tensor,
        frames: Sequence[int],
        grid: tuple[int, int] | None,
        trailing: int,
        averaged: bool,
        like: Tensor,
    ) -> "StoredVideo":
        """Describe the video that has tokens `kept` (K,) left.

        frames, grid: of the whole video, as in `VideoTokens`.  like: of the type and on the device of its features.
        """
        total = sum(frames)
        features = torch.empty(total, 0, dtype=like.dtype, device=like.device).as_subclass(_NotStored)
        reduction = Reduction.select(kept.to(like.device), total)
        return cls(VideoTokens(features, tuple(frames), grid), reduction, kept.cpu().numpy(), trailing, averaged)

    @property
    def placeholders(self) -> int:
        """Count those of one prompt."""
        return len(self.kept) + self.trailing

    def columns(self, at: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Find the column of each of the N tokens, -1 where it is not in the prompt. at: (K,), of those that are."""
        columns = np.full(len(self.tokens), -1, dtype=np.int64)
        columns[self.kept] = at
        return columns

    def multiplicity(self) -> None:
        """Say that each of the K stands for itself alone. Raises `UnsupportedCall` where that is not known."""
        if self.averaged:
            raise UnsupportedCall(
                "a stage that merges weighs each token by how many it stands for, and that is not stored of a video "
                "that was not encoded by vidsieve.encode; select at this stage, or encode the video with that"
            )


def check_inside(reducer: object) -> None:
    """Raise `UnsupportedCall` for what acts before the layers of the language model, where there is no video left."""
    if not (isinstance(reducer, Staged) and reducer.inside):
        raise UnsupportedCall(
            f"{reducer!r} acts before the layers of the language model, where an encoded video is reduced already; "
            "remove() it, or use stages at layers from 1 on, as Staged({0.5: ...}); encoded.at(keep) keeps fewer tokens"
        )


class Replayed(Protocol):
    """An encoded video on a model, in the calls of this thread."""

    @property
    def videos(self) -> Sequence[StoredVideo]:
        """The videos of each prompt, in order."""

    @property
    def given(self) -> Mapping[str, Any] | None:
        """The arguments of the body in a call into which rows are written, None in any other."""

    def write(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Write the rows into the arguments of the decoder."""


def replayed_on(body: Any) -> Replayed | None:
    """Get what is replayed on the model of this body; None if nothing is."""
    handle: Replayed | None = body.__dict__.get(HANDLE)
    return handle


class _NotStored(Tensor):
    """Features (N, 0) of which nobody knows more than how many there are."""

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in _KNOWN:
            return super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]
        raise UnsupportedCall(
            "this stage measures the whole video (its scenes, what persists in it), and of an encoded one only the "
            "tokens that were kept are stored; use a segmenter such as Whole() or Uniform(8), and a relevance such as "
            "PromptAttention() or Flat()"
        )
