"""Read the attention of the layer before a stage for `PromptAttention`, in addition to the layer's own kernel.

A function in transformers' `AttentionInterface` gets the queries and keys of the layer after their rotation. It never
computes more than a few rows of the attention matrix at a time.
"""

import copy
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vidsieve import ops
from vidsieve.engines.hf.forward import KEY, SequenceState
from vidsieve.engines.hf.intercept import Interceptions
from vidsieve.errors import UnsupportedCall
from vidsieve.methods.base import Reducer
from vidsieve.methods.relevance import PromptAttention
from vidsieve.telemetry.timing import timed


class AttentionSeam:
    """Hooks on the attention of each layer of `decoder` before a stage that reads it.

    read_by: the layers that are read, with the layer of the stage that reads each.
    """

    def __init__(self, decoder: Any, stages: Mapping[int, Reducer], hooks: Interceptions) -> None:
        self._kinds = {layer: wanted for layer, reducer in stages.items() if (wanted := kinds(reducer))}
        self.read_by = {layer - 1: layer for layer in self._kinds}
        for before, layer in self.read_by.items():
            self._read(decoder.layers[before], layer, hooks)

    def _read(self, layer: Any, at: int, hooks: Interceptions) -> None:
        """Hook the attention of `layer`, for the stage at `at`. Raises `UnsupportedCall` for linear attention."""
        attention = getattr(layer, "self_attn", None)
        if attention is None:
            raise UnsupportedCall(
                f"PromptAttention at layer {at} reads the attention of layer {at - 1}, which is linear and has none; "
                "stage after a layer of full attention"
            )
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS  # loaded with any model

        plain = attention.config
        eager = sys.modules[type(attention).__module__].eager_attention_forward

        def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
            sequence: SequenceState | None = kwargs.pop(KEY, None)
            if sequence is not None:
                self._observe(sequence, at, query, key, kwargs.get("scaling"), kwargs.get("softcap"))
            inner = ALL_ATTENTION_FUNCTIONS.get_interface(plain._attn_implementation, eager)
            return inner(WithConfig(module, plain), query, key, value, mask, **kwargs)

        name = f"vidsieve-{id(attend)}"
        hooks.attention(name, attend)
        named = copy.copy(plain)
        named._attn_implementation_internal = name
        hooks.put(attention, "config", named)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _observe(
        self,
        sequence: SequenceState,
        layer: int,
        query: Tensor,
        key: Tensor,
        scaling: float | None,
        softcap: float | None,
    ) -> None:
        """Store, for the stage at `layer`, the attention that tokens receive in the layer before.

        query: (B, H, L, d) and key: (B, G, past + L, d) of that layer, rotated.
        """
        if layer in sequence.done:
            return
        home = sequence.videos[0].at.device
        with torch.no_grad(), sequence.timer, timed("attention"):
            seen = sequence.read_masks.get(layer)
            seen = None if seen is None else seen.to(query.device).bool()
            for row in {video.span.row for video in sequence.videos}:
                not_padding = None if seen is None else seen[row]
                queries = {kind: sequence.queries[kind].get(row) for kind in self._kinds[layer]}
                sequence.attended.setdefault(layer, {})[row] = {
                    kind: ops.received_attention(
                        ops.AttentionProblem(
                            query[row], key[row], at.at.to(query.device), not_padding, scaling, softcap
                        )
                    ).to(home)
                    for kind, at in queries.items()
                    if at is not None
                }


class WithConfig:
    """A module with another config for an attention function, because its own names the function of this file."""

    def __init__(self, module: nn.Module, config: Any) -> None:
        self._module, self.config = module, config

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def kinds(reducer: Any) -> set[str]:
    """Collect the queries of every `PromptAttention` in a reducer."""
    if isinstance(reducer, PromptAttention):
        return {reducer.queries}
    if isinstance(reducer, tuple):
        return set().union(*map(kinds, reducer))
    if is_dataclass(reducer):
        return set().union(*(kinds(getattr(reducer, part.name)) for part in fields(reducer)))
    return set()


def refuse_attention(first: Any) -> None:
    """Raise `UnsupportedCall` if `first`, a reducer before the language model, reads attention."""
    if kinds(first):
        raise UnsupportedCall(
            "PromptAttention reads the attention of the layer before, and before the language model there is none; "
            f"make it a stage of Staged at layer 1 or later, got {first!r}"
        )
