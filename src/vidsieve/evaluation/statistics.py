"""How sure one can be of a mean over videos: bootstrap intervals, and paired tests of two methods on the same videos.

Questions about one video are not independent of one another, so videos are what is drawn and what is swapped, never
questions. Everything is seeded, so that a result comes out the same again.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

DRAWS = 2000  # of the bootstrap
SWAPS = 10000  # of the sign test
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and the interval that holds 95 % of its bootstrap draws; NaN where there was nothing to average."""

    mean: float
    low: float
    high: float


class Bootstrap:
    """Draws of V videos with replacement (Efron 1979), the same draws for everything that is compared.

    Values are (V, G): one column a group of questions, NaN where a video has none of it.
    """

    def __init__(self, videos: int, seed: int = 0, draws: int = DRAWS) -> None:
        generator = torch.Generator().manual_seed(seed)
        picks = torch.randint(videos, (draws, videos), generator=generator)
        self.weight = torch.zeros(draws, videos, dtype=torch.float64)  # how often each draw holds each video
        self.weight.scatter_add_(1, picks, torch.ones_like(picks, dtype=torch.float64))

    def means(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """The mean of each group (G,), and of each group in each draw (R, G)."""
        there = (~values.isnan()).double()
        values = values.double().nan_to_num(0.0)
        return values.sum(0) / there.sum(0), (self.weight @ values) / (self.weight @ there)

    @staticmethod
    def interval(mean: Tensor, drawn: Tensor) -> Interval:
        """Of one mean () and its draws (R,), by percentiles."""
        drawn = drawn[drawn.isfinite()]
        if not len(drawn):
            return Interval(float("nan"), float("nan"), float("nan"))
        edges = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
        low, high = drawn.quantile(edges).tolist()
        return Interval(float(mean), low, high)


def sign_test(difference: Tensor, seed: int = 0, swaps: int = SWAPS) -> Tensor:
    """Two-sided p that the two methods of a paired comparison are exchangeable: (G,).

    difference: (V, G), one method minus the other on each video. Under the hypothesis each video's difference could as
    well have had the other sign (Fisher's randomisation test); for one question a video this is McNemar's test. Signs
    are drawn, and the observed ones count as one of the draws, so p is never 0.
    """
    difference = difference.double().nan_to_num(0.0)
    seen = difference.sum(0).abs() - 1e-9
    above = torch.ones_like(seen)
    signs = _signs(len(difference), seed, swaps)
    for start in range(0, swaps, 1000):
        above += ((signs[start : start + 1000].double() @ difference).abs() >= seen).sum(0)
    return above / (swaps + 1)


@lru_cache(maxsize=1)  # many comparisons of the same videos
def _signs(videos: int, seed: int, swaps: int) -> Tensor:
    """int8 (swaps, videos), each 1 or -1."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, (swaps, videos), generator=generator, dtype=torch.int8) * 2 - 1


def holm(p: Tensor) -> Tensor:
    """p (G,) of a family of tests, adjusted so that any false alarm in it is as rare as each was (Holm 1979)."""
    order = p.argsort()
    factor = torch.arange(len(p), 0, -1, dtype=p.dtype)
    return torch.empty_like(p).scatter_(0, order, (p[order] * factor).cummax(0).values.clamp(max=1))
