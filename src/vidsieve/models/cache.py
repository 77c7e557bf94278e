"""What a key-value cache remembers of the tokens it never got.

A reduced prompt leaves a cache shorter than the prompt. `generate` keeps counting in the prompt's own, *logical*
length; attention needs the *physical* one. A cache that took in a reduced prompt therefore answers both: its class is
swapped for a subclass whose `get_seq_length` is logical and whose `get_query_offset`, which masks are built from, is
physical. The memory travels with the cache, so that threads and conversations cannot mix theirs up.
"""

from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor
from transformers import Cache

from vidsieve.errors import UnsupportedCall


class Switch:
    """Whether a reducer is attached to a model; one a model, shared by all copies of its caches."""

    on = False

    def __deepcopy__(self, memo: object) -> Self:
        return self


@dataclass(frozen=True, eq=False)
class Prefix:
    """The reduced beginning of a sequence.

    logical: how many tokens it had.  mask: int64 (B, M), one on each token that is left, zero on left padding.
    ragged: whether the mask has a zero.  attached: whether hooks are there to put the mask to use.
    """

    logical: int
    mask: Tensor
    ragged: bool
    attached: Switch

    @property
    def removed(self) -> int:
        return self.logical - self.mask.shape[1]

    def physical(self, mask: Tensor) -> Tensor:
        """A logical mask (B, logical + n) as the cache needs it: (B, M + n)."""
        prefix = self.mask.to(mask.device, mask.dtype)
        if len(prefix) != len(mask):  # beams and returned sequences are copies, side by side
            prefix = prefix.repeat_interleave(len(mask) // len(prefix), 0)
        return torch.cat([prefix, mask[:, self.logical :]], 1)

    def filled(self, length: int, batch: int) -> Tensor:
        """The mask (batch, length) of a sequence that goes on without padding."""
        mask = self.mask.new_ones(batch, self.logical + length - self.mask.shape[1])
        return self.physical(mask)


class _Reduced:
    """Mixed into the class of a cache that took in a reduced prompt."""

    vidsieve_prefix: Prefix | None

    def get_seq_length(self: Any, *args: Any, **kwargs: Any) -> Any:
        length = super().get_seq_length(*args, **kwargs)  # type: ignore[misc]
        return length + self.vidsieve_prefix.removed if self.vidsieve_prefix else length

    def get_query_offset(self: Any, *args: Any, **kwargs: Any) -> Any:
        offset = super().get_query_offset(*args, **kwargs)  # type: ignore[misc]
        prefix = self.vidsieve_prefix
        if prefix is None:
            return offset
        if prefix.ragged and not prefix.attached.on:
            raise UnsupportedCall(
                "this cache holds a reduced and padded batch, whose mask only an attached reducer knows; "
                "attach one again to go on, or start from a new cache"
            )
        return offset - prefix.removed

    def reset(self: Any) -> None:
        super().reset()  # type: ignore[misc]
        self.vidsieve_prefix = None

    def crop(self: Any, *args: Any, **kwargs: Any) -> None:
        super().crop(*args, **kwargs)  # type: ignore[misc]
        if self.vidsieve_prefix and physical_length(self) < self.vidsieve_prefix.mask.shape[1]:
            raise UnsupportedCall(
                f"a cache of a reduced prompt cannot be cropped into its first {self.vidsieve_prefix.logical} tokens, "
                "of which some are gone; start from a new cache"
            )

    def reorder_cache(self: Any, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        self._move_rows(beam_idx)

    def batch_select_indices(self: Any, indices: Tensor) -> None:
        super().batch_select_indices(indices)  # type: ignore[misc]
        self._move_rows(indices)

    def batch_repeat_interleave(self: Any, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        if self.vidsieve_prefix:
            rows = torch.arange(len(self.vidsieve_prefix.mask))
            self._move_rows(rows.repeat_interleave(repeats))

    def _move_rows(self: Any, rows: Tensor) -> None:
        if prefix := self.vidsieve_prefix:
            self.vidsieve_prefix = replace(prefix, mask=prefix.mask[rows.to(prefix.mask.device)])


_reduced_classes: dict[type[Any], type[Any]] = {}


def prefix_of(cache: Any) -> Prefix | None:
    """What `cache` remembers, None where nothing was removed."""
    return getattr(cache, "vidsieve_prefix", None)


def remember(cache: Any, prefix: Prefix) -> None:
    """Let `cache` (a transformers `Cache`) know that its beginning is `prefix`."""
    if not isinstance(cache, Cache):
        raise UnsupportedCall(f"expected past_key_values to be a transformers Cache, got {type(cache).__name__}")
    cache.vidsieve_prefix = prefix
    plain = type(cache)
    if not issubclass(plain, _Reduced):
        if plain not in _reduced_classes:
            _reduced_classes[plain] = type(f"Reduced{plain.__name__}", (_Reduced, plain), {})
        cache.__class__ = _reduced_classes[plain]


def physical_length(cache: Any) -> int:
    """Tokens that `cache` holds. Waits for the device where a static cache counts there."""
    if cache is None:
        return 0
    prefix = prefix_of(cache)
    return int(cache.get_seq_length()) - (prefix.removed if prefix else 0)
