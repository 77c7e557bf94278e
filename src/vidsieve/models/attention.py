"""The attention that tokens receive in a layer, from its own queries and keys. method.md, eq. 16."""

from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vidsieve.relevance import PromptAttention

_QUERIES = 16  # rows of attention computed at a time


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


def received(
    query: Tensor,  # (H, L, d)
    key: Tensor,  # (G, past + L, d)
    columns: Tensor,  # (M,), of the queries
    seen: Tensor,  # (past + L,) bool, false on padding
    scaling: float | None,
    softcap: float | None,
) -> Tensor:
    """The attention each of L tokens receives, averaged over H heads and M queries: float32 (L,)."""
    heads, length, width = query.shape
    past = len(seen) - length
    key = key.float()
    place = torch.arange(len(seen), device=query.device)
    mass = torch.zeros(length, device=query.device)
    for begin in range(0, len(columns), _QUERIES):
        some = columns[begin : begin + _QUERIES]
        q = query[:, some].float().reshape(len(key), -1, width)  # (G, H / G * m, d)
        scores = (q @ key.mT).view(heads, len(some), -1) * (width**-0.5 if scaling is None else scaling)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        unseen = ~seen | (place > past + some[:, None])  # (m, past + L)
        mass += scores.masked_fill(unseen, -torch.inf).softmax(-1).sum((0, 1))[past:]
    return mass / (heads * len(columns))
