"""Random numbers that depend on a video's number alone: not on the device, the batch, or what was drawn before it.

A counter-based generator (the finaliser of splitmix64: Steele, Lea and Flood, OOPSLA 2014) in int64 arithmetic, which
wraps alike everywhere. So video 17 of a split is the same video on any machine, alone or among a thousand others.
"""

import math

import torch
from torch import Tensor

GOLDEN = -7046029254386353131  # 0x9e3779b97f4a7c15 as int64
LARGE = 1 << 31  # bound of a draw that is only to be compared with others


def mix(x: Tensor) -> Tensor:
    """int64, any shape -> int64: every output bit depends on every input bit."""
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


class Draws:
    """Integers for B videos: each call goes on with every video's own stream.

    numbers: int64 (B,), the videos' numbers.  stream: which of several unrelated sequences of videos.
    """

    def __init__(self, numbers: Tensor, stream: int) -> None:
        origin = mix(torch.full_like(numbers[:1], stream + 1) * GOLDEN)
        self.key = mix(origin + numbers * GOLDEN)  # (B,)
        self.calls = 0

    def below(self, bound: int, *shape: int) -> Tensor:
        """Uniform in [0, bound), up to a bias of bound / 2**31: int64 (B, *shape)."""
        self.calls += 1
        counter = torch.arange(math.prod(shape), device=self.key.device) + (self.calls << 32)
        bits = (mix(self.key[:, None] + mix(counter)) >> 33) & (LARGE - 1)
        return (bits % bound).view(len(self.key), *shape)

    def order(self, n: int, *shape: int) -> Tensor:
        """Permutations of 0 .. n-1: int64 (B, *shape, n)."""
        return self.below(LARGE, *shape, n).argsort(dim=-1, stable=True)
