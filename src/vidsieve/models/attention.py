"""Kinds of attention: which a reducer wants to read, what a function is given while it is read, which a layer has."""

from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vidsieve.relevance import PromptAttention


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


def last(real: Tensor | None, length: int, device: torch.device) -> Tensor:
    """The last of `length` columns, with `real` (past + length,) the last that is no padding: (1,)."""
    place = torch.arange(length, device=device)
    return place[-1:] if real is None else torch.where(real[-length:], place, -1).argmax()[None]


def layer_type(config: Any, layer: int) -> str:
    """What kind of attention a layer has."""
    kinds = getattr(config, "layer_types", None)
    return kinds[layer] if kinds else "full_attention"
