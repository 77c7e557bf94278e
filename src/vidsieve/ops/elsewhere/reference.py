"""What other segments have, token by token in float64; equation numbers: docs/method.md."""

import torch
from torch import Tensor

from vidsieve.ops.definitions import ElsewhereProblem
from vidsieve.ops.limits import NOISE
from vidsieve.ops.measurement.reference import unit_rows


def alike_elsewhere(problem: ElsewhereProblem) -> Tensor:
    """The cosines of eq. 7c."""
    x, offsets, among = problem
    mean = x.double().mean(0)
    centred = x - mean
    centred[centred.norm(dim=1) <= NOISE * mean.norm()] = 0
    unit = unit_rows(centred)
    segment = torch.searchsorted(offsets[1:], torch.arange(len(x), device=x.device), right=True)
    found = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for i in range(len(x)):
        for j in range(len(x)) if among is None else among.tolist():
            if segment[j] != segment[i]:
                found[i] = max(found[i], unit[i] @ unit[j])
    return found
