"""The attention that tokens receive, in batched torch."""

import torch
from torch import Tensor

from vidsieve.ops.definitions import AttentionProblem

QUERIES = 64  # rows of attention computed at a time


def received_attention(problem: AttentionProblem) -> Tensor:
    query, key, columns, visible, _, softcap = problem
    heads, length, width = query.shape
    past = key.shape[1] - length
    key = key.float()
    place = torch.arange(past + length, device=query.device)
    mass = torch.zeros(length, device=query.device)
    for some in torch.split(columns, QUERIES):
        q = query.index_select(1, some).float() * problem.scale
        scores = (q.reshape(len(key), -1, width) @ key.mT).view(heads, len(some), -1)  # (H, m, past + L)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        hidden = place > past + some[:, None]  # (m, past + L)
        if visible is not None:
            hidden |= ~visible
        mass += scores.masked_fill_(hidden, -torch.inf).softmax(-1).sum((0, 1))[past:]
    return mass / (heads * len(columns))
