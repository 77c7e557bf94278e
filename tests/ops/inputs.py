"""Features, layouts and questions that the tests of operations share, and how far a selection is from the best."""

import torch
from torch import Tensor

from tests.synthetic import independent, video_like
from vidsieve.ops import ApportionProblem, GreedyProblem, Head, Measures
from vidsieve.ops.limits import EXHAUSTED
from vidsieve.ops.measurement.reference import unit_rows
from vidsieve.ops.partition.reference import apportion

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OFFSETS = {
    "one segment": (0, 60),
    "equal segments": (0, 12, 24, 36, 48, 60),
    "ragged": (0, 1, 13, 44, 60),
    "empty ones": (0, 0, 30, 30, 60, 60),
}
# L of a determinantal process over four tokens.
KERNEL = torch.tensor(
    [[0.8, 0.3, 0.1, 0.2], [0.3, 0.9, 0.4, 0.1], [0.1, 0.4, 0.7, 0.5], [0.2, 0.1, 0.5, 0.6]], dtype=torch.float64
)


def factors(kernel: Tensor) -> tuple[Tensor, Tensor]:
    """Features x (n, n) and relevance r (n,) of which diag(r) S diag(r) is `kernel`, S the cosines of x."""
    x = torch.linalg.cholesky(kernel)
    return x, x.norm(dim=1)


def features(kind: str, seed: int, dtype: torch.dtype) -> Tensor:
    x = independent(60, 24, seed) if kind == "independent" else video_like(5, 12, 24, seed, cuts=(3,))
    if kind == "degenerate":
        x[7], x[20:30], x[59] = x[6], x[19], 0
    return x.to(dtype)


def offsets_and_budget(name: str, seed: int) -> tuple[Tensor, Tensor]:
    offsets = torch.tensor(OFFSETS[name])
    total = int(torch.randint(1, 50, (), generator=torch.Generator().manual_seed(seed)))
    return offsets, apportion(ApportionProblem(torch.rand(len(offsets) - 1), offsets, total))


def problem(x: Tensor, relevance: Tensor | None, offsets: Tensor, budget: Tensor) -> GreedyProblem:
    """A selection's question, with the longest segment, the total budget and the lengths of the tokens."""
    norm = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32).norm(dim=-1)
    longest, total = int(offsets.diff().max()), int(budget.sum())
    return GreedyProblem(x, relevance, offsets, budget, longest, total, Measures(norm, torch.zeros_like(norm)))


def head_of(budget: Tensor, n: int, seed: int) -> Head:
    """Other relevance, of fewer, as many and more picks than a segment makes, and of none."""
    g = torch.Generator().manual_seed(seed)
    picks = (budget.cpu() * torch.randint(0, 5, budget.shape, generator=g) + 1) // 2
    return Head(torch.rand(n, generator=g).to(budget.device), picks.to(budget.device))


def regret(x: Tensor, relevance: Tensor, offsets: Tensor, order: Tensor, head: Head | None = None) -> float:
    """The largest gap between the best gain and the picked one along the path that `order` took, in float64."""
    worst = 0.0
    at_first, early = (relevance, torch.zeros(len(offsets) - 1, dtype=torch.long)) if head is None else head
    for begin, end, few in zip(offsets.tolist(), offsets.tolist()[1:], early.tolist(), strict=False):
        steps = order[begin:end]
        unit = unit_rows(x[begin:end])
        basis: list[Tensor] = []
        residual = (unit.norm(dim=1) > 0).double()
        open_ = torch.ones(end - begin, dtype=torch.bool)
        for step in range(int((steps >= 0).sum())):
            pick = int((steps == step).nonzero())
            r = (at_first if step < few else relevance)[begin:end].double()
            gain = (r**2 * residual).masked_fill(~open_, 0)
            worst = max(worst, float(gain.max() - gain[pick]))
            open_[pick] = False
            direction = unit[pick] - sum((b * (b @ unit[pick]) for b in basis), torch.zeros_like(unit[pick]))
            if float(direction.square().sum()) > EXHAUSTED:
                basis.append(direction / direction.norm())
                residual = (residual - (unit @ basis[-1]) ** 2).clamp(min=0)
    return worst


def duplicated(n: int, dim: int, seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The first half are all different, a quarter of it of next to no relevance; what follows is of the other quarter
    again, each row once more and once in another length."""
    x = independent(n, dim, seed, dtype)
    half, quarter = n // 2, n // 4
    x[half:] = x[torch.arange(n - half) % quarter]
    x[half + quarter :] *= 2
    relevance = torch.ones(n)
    relevance[quarter:half] = 1e-3
    return x, relevance


def degenerate(n: int, kind: str) -> Tensor:
    x = video_like(1, n, 24, seed=n) if n < 8 else video_like(max(1, n // 8), 8, 24, seed=n)
    x = torch.cat([x, independent(n, 24, n + 1)])[:n]
    if kind == "equal tokens":
        x[n // 3 :] = x[n // 3]
    elif kind == "zero rows":
        x[::3] = 0
    elif kind == "rank 3":
        x = x[:, :3] @ independent(3, 24, 5)
    return x


def attention(past: int, width: int, queries: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries of six heads in two groups, keys, the columns that ask, and what is no padding."""
    generator = torch.Generator().manual_seed(seed)
    query, key = (torch.randn(heads, n, width, generator=generator) for heads, n in ((6, 100), (2, 100 + past)))
    seen = torch.rand(100 + past, generator=generator) < 0.8
    columns = torch.randperm(100, generator=generator)[:queries].sort().values
    seen[past + columns] = True
    return query, key, columns, seen
