"""Which attention a reducer wants to read, and what an attention function is given while it is read."""

from dataclasses import fields, is_dataclass
from typing import Any

from torch import nn

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
