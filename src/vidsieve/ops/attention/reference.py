"""The attention that tokens receive, in float64, one query at a time; docs/method.md, eq. 16."""

import torch
from torch import Tensor

from vidsieve.ops.definitions import AttentionProblem


def received_attention(problem: AttentionProblem) -> Tensor:
    """Eq. 16."""
    query, key, columns, visible, _, softcap = problem
    heads, length, _ = query.shape
    past, share = key.shape[1] - length, heads // len(key)
    mass = torch.zeros(length, dtype=torch.float64, device=query.device)
    for head in range(heads):
        for column in columns.tolist():
            score = key[head // share, : past + column + 1].double() @ query[head, column].double() * problem.scale
            if softcap is not None:
                score = softcap * torch.tanh(score / softcap)
            if visible is not None:
                score[~visible[: past + column + 1]] = -torch.inf
            mass[: column + 1] += score.softmax(0)[past:]
    return (mass / (heads * len(columns))).float()
