"""Store on a key-value cache which tokens of its prompt it lacks.

A reduced prompt leaves a cache shorter than the prompt. `generate` keeps counting in the prompt's own, *logical*
length; attention needs the *physical* one. A cache that took in a reduced prompt therefore answers both: its class is
swapped for a subclass whose `get_seq_length` is logical and whose `get_query_offset`, which masks are built from, is
physical. With stages at several layers, each of those begins a run of layers with a length of its own. This is stored
on the cache itself, so that threads and conversations cannot mix it up.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor
from transformers import Cache, StaticCache
from transformers.cache_utils import DynamicLayer

from vidsieve.engines.hf import contract
from vidsieve.errors import UnsupportedCall


class AttachState:
    """Whether a reducer is attached to a model, and whether to its layers. Shared by the caches of the model."""

    on = False
    at_layers = False

    def __deepcopy__(self, memo: object) -> Self:
        return self


@dataclass(frozen=True, eq=False)
class ReducedPrefix:
    """The reduced beginning of a sequence.

    logical: how many tokens it had.  mask: int64 (B, M), one on each remaining token, zero on padding.
    has_padding: whether the mask has a zero.  attached: whether hooks are attached that use the mask.
    """

    logical: int
    mask: Tensor
    has_padding: bool
    attached: AttachState

    @property
    def removed(self) -> int:
        return self.logical - self.mask.shape[1]

    def physical(self, mask: Tensor) -> Tensor:
        """Shorten a logical mask (B, logical + n) to the tokens of the cache: (B, M + n)."""
        return torch.cat([self.mask.to(mask.device, mask.dtype), mask[:, self.logical :]], 1)

    def filled(self, length: int, batch: int) -> Tensor:
        """Make the mask (batch, length) of this prefix followed by tokens without padding."""
        mask = self.mask.new_ones(batch, self.logical + length - self.mask.shape[1])
        return self.physical(mask)


class _Reduced:
    """The mixin of the class of a cache that holds a reduced prompt."""

    vidsieve_prefixes: dict[int, ReducedPrefix]

    def get_seq_length(self: Any, layer_idx: int = 0) -> Any:
        length = super().get_seq_length(layer_idx)  # type: ignore[misc]
        prefix = prefix_of(self, layer_idx)
        return length + prefix.removed if prefix else length

    def get_query_offset(self: Any, layer_idx: int = 0) -> Any:
        offset = super().get_query_offset(layer_idx)  # type: ignore[misc]
        for layer, prefix in self.vidsieve_prefixes.items():
            if layer > 0 and not prefix.attached.at_layers:
                raise UnsupportedCall(
                    "this cache was reduced inside the model, layer by layer, and only an attached Staged knows the "
                    "masks of its layers; attach one again to go on, or start from a new cache"
                )
        prefix = prefix_of(self, layer_idx)
        if prefix is None:
            return offset
        if prefix.has_padding and not prefix.attached.on:
            raise UnsupportedCall(
                "this cache holds a reduced and padded batch, whose mask only an attached reducer knows; "
                "attach one again to go on, or start from a new cache"
            )
        return offset - prefix.removed

    def reset(self: Any) -> None:
        super().reset()  # type: ignore[misc]
        self.vidsieve_prefixes = {}

    def crop(self: Any, *given: int, **named: int) -> None:
        """Remove the last n tokens, given -n; given n > 0, all but the first n of the sequence as it came."""
        (tokens,) = *given, *named.values()  # its name differs between releases
        if tokens > 0:
            tokens = min(0, tokens - int(self.get_seq_length()))
        for layer, prefix in self.vidsieve_prefixes.items():
            if physical_length(self, layer) + tokens < prefix.mask.shape[1]:
                raise UnsupportedCall(
                    f"a cache of a reduced prompt cannot be cropped into its first {prefix.logical} tokens, "
                    "of which some are gone; start from a new cache"
                )
        super().crop(tokens)  # type: ignore[misc]

    def reorder_cache(self: Any, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        self._move_rows(beam_idx)

    def batch_select_indices(self: Any, indices: Tensor) -> None:
        super().batch_select_indices(indices)  # type: ignore[misc]
        self._move_rows(indices)

    def batch_repeat_interleave(self: Any, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        for prefix in list(self.vidsieve_prefixes.values())[:1]:
            self._move_rows(torch.arange(len(prefix.mask)).repeat_interleave(repeats))

    def _move_rows(self: Any, rows: Tensor) -> None:
        self.vidsieve_prefixes = {
            layer: replace(prefix, mask=prefix.mask[rows.to(prefix.mask.device)])
            for layer, prefix in self.vidsieve_prefixes.items()
        }


_reduced_classes: dict[type[Any], type[Any]] = {}


def prefixes_of(cache: Any) -> dict[int, ReducedPrefix]:
    """Get the reduced prefixes stored on `cache`, each by the first layer of the run of layers that shares it."""
    return getattr(cache, "vidsieve_prefixes", {})


def prefix_of(cache: Any, layer: int = 0) -> ReducedPrefix | None:
    """Get the reduced prefix that `cache` has at `layer`, None if nothing was removed there."""
    found = None
    begins = -1
    for first, prefix in prefixes_of(cache).items():  # a plain loop, which torch.compile follows
        if begins < first <= _counting(cache, layer):
            begins, found = first, prefix
    return found


def remember(cache: Any, prefix: ReducedPrefix, layer: int = 0) -> None:
    """Store on `cache`, a transformers `Cache`, that its layers from `layer` on begin with `prefix`.

    Raises `UnsupportedCall` for a cache of another class.
    """
    if not isinstance(cache, Cache):
        raise UnsupportedCall(f"expected {contract.CACHE} to be a transformers Cache, got {type(cache).__name__}")
    cache.vidsieve_prefixes = {**prefixes_of(cache), layer: prefix}
    plain = type(cache)
    if not issubclass(plain, _Reduced):
        if plain not in _reduced_classes:
            _reduced_classes[plain] = type(f"Reduced{plain.__name__}", (_Reduced, plain), {})
        cache.__class__ = _reduced_classes[plain]


def restore(cache: Any, prefixes: dict[int, ReducedPrefix], held: Sequence[int]) -> None:
    """Restore `cache` after a pass that failed: its prefixes, and the number of tokens held in each layer.

    Only the dynamic layers of transformers, of full attention, can be restored.
    """
    if isinstance(cache, _Reduced):
        cache.vidsieve_prefixes = dict(prefixes)
    for layer, length in zip(getattr(cache, "layers", ()), held, strict=False):
        if type(layer) is DynamicLayer and layer.get_seq_length() > length:
            # Copies, or all of what the pass had stored would be held on to.
            layer.keys, layer.values = (x[..., :length, :].clone() for x in (layer.keys, layer.values))


def physical_length(cache: Any, layer: int = 0) -> int:
    """Count the tokens that `cache` holds at `layer`. Waits for the device if the cache is static."""
    if cache is None or not (layer == 0 or _counts(cache, layer)):
        return 0
    prefix = prefix_of(cache, layer)
    return int(cache.get_seq_length(layer)) - (prefix.removed if prefix else 0)


def refuse_overread(cache: Any) -> None:
    """Raise `UnsupportedCall` for a static cache to whose free places transformers makes no mask, token by token.

    Without a reducer, the places that are free are those of the tokens to come; a reduced prompt leaves more.
    """
    if isinstance(cache, StaticCache) and not cache.is_compileable:
        raise UnsupportedCall(
            "some layers of this static cache record their past, as candidates of assisted decoding need, and "
            "transformers then attends to places that are still free; use a dynamic cache (the default)"
        )


def continued(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Give the arguments of a decoder, or of a body, the mask that a cache of a reduced prompt needs.

    Raises `UnsupportedCall` if their mask does not cover the conversation.
    """
    cache: Any = contract.cache_of(kwargs)
    mask, prefix = kwargs.get("attention_mask"), prefix_of(cache)
    if prefix is None or not (mask is None or (isinstance(mask, Tensor) and mask.ndim == 2)):
        return kwargs
    tokens = kwargs["input_ids"] if kwargs.get("inputs_embeds") is None else kwargs["inputs_embeds"]
    batch, length = tokens.shape[:2]
    if mask is not None:
        seen = cache.get_seq_length()
        if not isinstance(seen, Tensor):  # a static cache counts on the device, which decoding must not wait for
            check_length(mask, seen + length)
        return {**kwargs, "attention_mask": prefix.physical(mask)}
    if not prefix.has_padding:
        return kwargs
    keys, _ = cache.get_mask_sizes(length, 0)
    return {**kwargs, "attention_mask": prefix.filled(keys, batch)}


def check_length(mask: Tensor, expected: int) -> None:
    """Raise `UnsupportedCall` unless `mask` (B, L) covers `expected` tokens."""
    if mask.shape[1] != expected:
        raise UnsupportedCall(
            f"expected an attention_mask over all {expected} tokens of the conversation, dropped ones included, "
            f"got {tuple(mask.shape)}"
        )


def held_mask(prefix: ReducedPrefix | None, mask: Tensor | None, held: int, batch: int, device: torch.device) -> Tensor:
    """Make the mask (batch, held) of a cache that begins with `prefix`; mask: the logical one, None for all ones."""
    if prefix is not None:
        return prefix.filled(held, batch) if mask is None else prefix.physical(mask)[:, :held]
    return torch.ones(batch, held, dtype=torch.long, device=device) if mask is None else mask[:, :held]


def layer_bytes(cache: Any) -> tuple[int, ...]:
    """Count the bytes that each layer of `cache` holds: keys and values, or the states of linear attention."""
    return tuple(sum(x.nbytes for x in _tensors(vars(layer)) if x.ndim > 2) for layer in cache.layers)


def _tensors(held: Any) -> list[Tensor]:
    if isinstance(held, Tensor):
        return [held]
    held = held.values() if isinstance(held, dict) else held if isinstance(held, list | tuple) else ()
    return [x for part in held for x in _tensors(part)]


def _counts(cache: Any, layer: int) -> bool:
    """Whether `layer` counts its tokens; the layers of linear attention do not."""
    return layer >= len(cache.layers) or hasattr(cache.layers[layer], "get_seq_length")


def _counting(cache: Any, layer: int) -> int:
    """Get `layer`, or instead of a layer 0 that does not count, the first that does, as transformers does."""
    if layer == 0 and not _counts(cache, 0):
        return next((i for i in range(len(cache.layers)) if _counts(cache, i)), 0)
    return layer
