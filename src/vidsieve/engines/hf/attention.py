"""Kinds of attention: which a reducer wants to read, what a function is given while it is read, which a layer has."""

from dataclasses import fields, is_dataclass
from typing import Any

from torch import nn

from vidsieve.errors import UnsupportedCall
from vidsieve.methods.relevance import PromptAttention


class As:
    """A module as an attention function sees it, with another config: its own names this file's function."""

    def __init__(self, module: nn.Module, config: Any) -> None:
        self._module, self.config = module, config

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def kinds(reducer: Any) -> set[str]:
    """The queries of every `PromptAttention` that a reducer is made of."""
    if isinstance(reducer, PromptAttention):
        return {reducer.queries}
    if isinstance(reducer, tuple):
        return set().union(*map(kinds, reducer))
    if is_dataclass(reducer):
        return set().union(*(kinds(getattr(reducer, part.name)) for part in fields(reducer)))
    return set()


def refuse_attention(first: Any) -> None:
    """Raise `UnsupportedCall` if `first`, a reducer before the language model, wants to read attention."""
    if kinds(first):
        raise UnsupportedCall(
            "PromptAttention reads the attention of the layer before, and before the language model there is none; "
            f"make it a stage of Staged at layer 1 or later, got {first!r}"
        )


def layer_type(config: Any, layer: int) -> str:
    """What kind of attention a layer has."""
    kinds = getattr(config, "layer_types", None)
    return kinds[layer] if kinds else "full_attention"
