"""What a reduction left of a video, in numbers: pure functions of features, bounds of shots, and of what was kept.

Distances are 1 - cosine. A token of a shot is judged by what was kept of the same shot: what is in another one does not
tell a viewer what was to be seen here. A shot of which nothing was kept gets the worst value there is.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

NOISE = 0.01  # of `reconstruction`, a share of a token's mean energy
FAR = 1.0  # distance to a token that does not exist


def share(kept: Tensor, shots: Sequence[tuple[int, int]]) -> float:
    """The smallest share of a shot, of those of at least two frames: 1 where each gets what its length would bring.

    (kept in the shot / kept in all) / (frames of the shot / frames of all).  kept: bool (T, P).
    """
    total, frames = int(kept.sum()), len(kept)
    return min(int(kept[a:b].sum()) * frames / (total * (b - a)) for a, b in shots if b - a > 1)


def empty(kept: Tensor) -> float:
    """The share of the frames of which nothing was kept: kept bool (T, P)."""
    return float((~kept.any(1)).double().mean())


def nearest(features: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """The distance of each token of a shot to the nearest that was kept (n,), and which row that is: int64 (n,).

    features: (n, D).  kept: bool (n,), at least one.
    """
    unit = F.normalize(features, dim=1)
    rows = kept.nonzero()[:, 0]
    closest = (unit @ unit[rows].mT).max(1)
    distance = (1 - closest.values).clamp(min=0)
    distance[rows] = 0
    index = rows[closest.indices]
    index[rows] = rows  # each kept token itself, also where another one is equal to it
    return distance, index


def coverage(distance: Tensor, kept: Tensor) -> float:
    """The mean distance of a dropped token to the nearest that was kept; 0 where none was dropped.

    distance: (n,).  kept: bool (n,).
    """
    return float(distance[~kept].double().mean()) if not kept.all() else 0.0


def tail(distance: Tensor) -> float:
    """The 99th percentile of the distances (n,) of all tokens of a shot, 0 of those that were kept."""
    return float(distance.double().quantile(0.99))


def reconstruction(features: Tensor, kept: Tensor) -> float:
    """What the kept tokens cannot tell of a shot: the energy that is left of it, divided by that around its mean.

    Each token is predicted as the combination of kept ones (k, D) that least squares give it with a ridge of NOISE
    times the mean energy of a token: X - X (K'K + ridge I)^-1 K'K = ridge X (K'K + ridge I)^-1. Without the ridge all
    is 0 as soon as as many tokens are kept as features have dimensions. At most 1.
    features: (n, D).  kept: bool (n,).
    """
    x = features.double()
    around = float((x - x.mean(0)).square().sum())
    if around == 0:
        return 0.0
    known = x[kept]
    ridge = NOISE * x.square().sum(1).mean()
    system = known.mT @ known + ridge * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    left = ridge * torch.linalg.solve(system, x.mT)
    return min(1.0, float(left.square().sum()) / around)


def classes(features: Tensor, index: Tensor | None, weight: Tensor, bias: Tensor) -> float:
    """How far the classes of a shot move when each token is replaced by the nearest that was kept: KL in nats.

    sum_c p(c) log (p(c) / q(c)), p and q what the network's head makes of the mean of the tokens, all and replaced.
    features: (n, D).  index: int64 (n,), None where nothing was kept and the head sees zeros.
    weight, bias: (classes, D), (classes,).
    """
    replaced = torch.zeros_like(features[:1]) if index is None else features[index]
    means = torch.stack((features.mean(0), replaced.mean(0)))
    p, q = F.linear(means.double(), weight.double(), bias.double()).log_softmax(1)
    return float((p.exp() * (p - q)).sum())


def found(kept: Tensor, objects: Sequence[Tensor]) -> list[bool]:
    """Whether a token of each was kept. kept: bool (N,).  objects: the tokens of each, int64 (n,)."""
    return [bool(kept[tokens].any()) for tokens in objects]
