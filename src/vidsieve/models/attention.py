"""The attention that tokens receive in a layer, from its own queries and keys. method.md, eq. 16."""

from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vidsieve.relevance import PromptAttention

_QUERIES = 64  # rows of attention computed at a time


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
    seen: Tensor | None,  # (past + L,) bool, false on padding; None where there is none
    scaling: float | None,
    softcap: float | None,
) -> Tensor:
    """The attention each of L tokens receives, averaged over H heads and M queries: float32 (L,)."""
    heads, length, width = query.shape
    past = key.shape[1] - length
    key = key.float()
    place = torch.arange(past + length, device=query.device)
    mass = torch.zeros(length, device=query.device)
    for some in torch.split(columns, _QUERIES):
        q = query.index_select(1, some).float() * (width**-0.5 if scaling is None else scaling)
        scores = (q.reshape(len(key), -1, width) @ key.mT).view(heads, len(some), -1)  # (H, m, past + L)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        unseen = place > past + some[:, None]  # (m, past + L)
        if seen is not None:
            unseen |= ~seen
        mass += scores.masked_fill_(unseen, -torch.inf).softmax(-1).sum((0, 1))[past:]
    return mass / (heads * len(columns))
