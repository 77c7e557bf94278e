"""DART: keep a few pivots, and the tokens least similar to them."""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from vidsieve.methods.base import Reducer
from vidsieve.methods.budget import Proportional
from vidsieve.methods.prune import Prune
from vidsieve.methods.relevance import Flat
from vidsieve.methods.segment import Whole
from vidsieve.methods.selection import SelectionProblem, Selector
from vidsieve.registry import register_method


@dataclass(frozen=True)
class LeastDuplicate:
    """Picks the tokens of the largest L1 norm as pivots, then for each pivot in turn the tokens least similar to it.

    Similarity is the cosine. The pivots share the rest of the budget evenly; the remainder goes to the earlier ones.
    """

    pivots: int = 8

    def __call__(self, problem: SelectionProblem) -> Tensor:
        x, budget = problem.tokens.features, problem.budget
        order = torch.full((len(x),), -1, dtype=torch.int32, device=budget.device)
        bounds, budgets = problem.segments.offsets.tolist(), budget.tolist()
        for (begin, end), k in zip(pairwise(bounds), budgets, strict=True):
            if k:
                order[begin:end] = self._pick(x[begin:end].float(), k)
        return order

    def _pick(self, x: Tensor, k: int) -> Tensor:
        """Pick k of the tokens x (n, D): the step of each pick, -1 for the others, int32 (n,)."""
        order = torch.full((len(x),), -1, dtype=torch.int32, device=x.device)
        pivots = x.abs().sum(1).argsort(descending=True, stable=True)[: min(self.pivots, k)]
        order[pivots] = torch.arange(len(pivots), dtype=torch.int32, device=x.device)
        unit, taken = F.normalize(x, dim=1), len(pivots)
        for number, pivot in enumerate(pivots):
            share = (k - len(pivots) + len(pivots) - 1 - number) // len(pivots)
            cosine = (unit @ unit[pivot]).masked_fill(order >= 0, torch.inf)
            least = cosine.argsort(stable=True)[:share]
            order[least] = torch.arange(taken, taken + share, dtype=torch.int32, device=x.device)
            taken += share
        return order


@register_method()
def dart(keep: float) -> Reducer:
    """DART: eight pivot tokens, and for each of them the tokens that duplicate it least.

    Wen et al., "Stop looking for important tokens in multimodal language models: duplication matters more",
    EMNLP 2025, arXiv 2502.11494. What differs: the paper selects behind the second layer of the language model, by the
    norms of its keys, with half of the pivots from the question; here it is before the first one, by the norms of the
    tokens, and all pivots are visual.
    """
    selector: Selector = LeastDuplicate()
    return Prune(keep, Whole(), Proportional(), Flat(), selector)
