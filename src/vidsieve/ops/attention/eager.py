"""The attention that tokens receive, in batched torch."""

import torch
from torch import Tensor

QUERIES = 64  # rows of attention computed at a time


def received_attention(
    query: Tensor, key: Tensor, columns: Tensor, seen: Tensor | None, scaling: float, softcap: float | None
) -> Tensor:
    heads, length, width = query.shape
    past = key.shape[1] - length
    key = key.float()
    place = torch.arange(past + length, device=query.device)
    mass = torch.zeros(length, device=query.device)
    for some in torch.split(columns, QUERIES):
        q = query.index_select(1, some).float() * scaling
        scores = (q.reshape(len(key), -1, width) @ key.mT).view(heads, len(some), -1)  # (H, m, past + L)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        unseen = place > past + some[:, None]  # (m, past + L)
        if seen is not None:
            unseen |= ~seen
        mass += scores.masked_fill_(unseen, -torch.inf).softmax(-1).sum((0, 1))[past:]
    return mass / (heads * len(columns))
