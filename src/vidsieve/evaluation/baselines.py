"""What vidsieve is timed against: the greedy loops that people run today, written anew from their descriptions.

They take the published steps at the published place: float32 kernel, one small torch call after another, one pick at a
time, over a batch of one. Nothing is slowed down, and one thing is put right so that their picks can be compared with
ours: relevance has the sign that keeps relevant tokens. They get segments and budgets for nothing. Picks come in the
order they were made.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from vidsieve.methods.relevance import min_max


def guide_loop(x: Tensor, prompt: Tensor | None, bounds: list[int], budgets: list[int]) -> Tensor:
    """Segment after segment: find its tokens, normalise, similarity, kernel, then CDPruner's greedy loop on it.

    The per-segment exact selection of the FrameFusion-style guide that this library began as an answer to (method.md);
    its greedy is CDPruner's, called once a segment. x (N, D).  prompt (M, D), or None for flat relevance.
    bounds (S + 1), budgets (S): host integers.  Picks (K,).
    """
    return _each(x, prompt, bounds, budgets, _greedy_map)


def lean_loop(x: Tensor, prompt: Tensor | None, bounds: list[int], budgets: list[int]) -> Tensor:
    """`guide_loop` with the greedy as one would write it for one segment today: no batch dimension, no einsum."""
    return _each(x, prompt, bounds, budgets, _lean_greedy_map)


def cdpruner_loop(x: Tensor, prompt: Tensor | None, k: int) -> Tensor:
    """One kernel over all N tokens and a loop of k picks. Picks (k,).

    CDPruner, Zhang et al., NeurIPS 2025, arXiv 2506.10967, section 3.
    """
    return _greedy_map(x, _relevance(x, prompt), k)


def _each(
    x: Tensor,
    prompt: Tensor | None,
    bounds: list[int],
    budgets: list[int],
    greedy: Callable[[Tensor, Tensor, int], Tensor],
) -> Tensor:
    relevance = _relevance(x, prompt)
    lengths = torch.tensor(bounds, device=x.device).diff()
    segment = torch.arange(len(lengths), device=x.device).repeat_interleave(lengths)  # (N,)
    picks = []
    for s, k in enumerate(budgets):
        index = (segment == s).nonzero()[:, 0]  # (n,), waits for the device
        picks.append(index[greedy(x[index], relevance[index], k)])
    return torch.cat(picks)


def _greedy_map(x: Tensor, relevance: Tensor, k: int) -> Tensor:
    """CDPruner's greedy MAP (Chen et al. 2018, algorithm 1), batched as published, for a batch of one. Picks (k,)."""
    relevance = relevance[None]  # (B, N)
    unit = torch.nn.functional.normalize(x.float(), dim=-1)[None]
    kernel = relevance[:, :, None] * (unit @ unit.mT) * relevance[:, None, :]  # (B, N, N)
    item = torch.arange(len(kernel), device=x.device)
    cis = torch.zeros(k, *relevance.shape, device=x.device)
    di2s = kernel.diagonal(dim1=1, dim2=2).clone()
    picks = torch.empty(k, len(kernel), dtype=torch.int64, device=x.device)
    for step in range(k):
        j = torch.argmax(di2s, dim=-1)
        picks[step] = j
        known = torch.einsum("tb,tbn->bn", cis[:step, item, j], cis[:step])
        eis = (kernel[item, j] - known) / di2s[item, j].clamp(min=1e-12).sqrt()[:, None]
        cis[step] = eis
        di2s -= eis.square()
        di2s[item, j] = -torch.inf
    return picks[:, 0]


def _lean_greedy_map(x: Tensor, relevance: Tensor, k: int) -> Tensor:
    """The same algorithm for one segment, waiting for each pick: fewer and smaller operations. Picks (k,)."""
    unit = torch.nn.functional.normalize(x.float(), dim=-1)
    kernel = relevance[:, None] * (unit @ unit.mT) * relevance[None, :]  # (n, n)
    cis = torch.zeros(k, len(x), device=x.device)
    di2s = kernel.diagonal().clone()
    picks = []
    for step in range(k):
        j = int(torch.argmax(di2s))
        eis = (kernel[j] - cis[:step, j] @ cis[:step]) / di2s[j].clamp(min=1e-12).sqrt()
        cis[step] = eis
        di2s -= eis.square()
        di2s[j] = -torch.inf
        picks.append(j)
    return torch.tensor(picks, device=x.device)


def _relevance(x: Tensor, prompt: Tensor | None) -> Tensor:
    """Mean cosine to the prompt's tokens, brought to (0, 1]: (N,)."""
    if prompt is None:
        return torch.ones(len(x), device=x.device)
    unit, other = (torch.nn.functional.normalize(y.float(), dim=-1) for y in (x, prompt))
    return min_max((unit @ other.mT).mean(1))
