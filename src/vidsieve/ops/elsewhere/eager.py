"""What other segments have, in torch, a block of cosines at a time. Meaning: reference.py."""

import torch
from torch import Tensor

from vidsieve.ops.definitions import ElsewhereProblem
from vidsieve.ops.limits import NOISE
from vidsieve.ops.pieces import unit_rows, working

BLOCK = 1024  # tokens, that are compared with as many others at a time


def alike_elsewhere(problem: ElsewhereProblem) -> Tensor:
    x, offsets, among = problem
    mean = x.mean(0, dtype=working(x))
    centred = x - mean
    still = torch.linalg.vector_norm(centred, dim=1) <= NOISE * mean.norm()
    unit = unit_rows(centred).masked_fill_(still[:, None], 0)
    position = torch.arange(len(x), device=x.device)
    segment = torch.searchsorted(offsets[1:], position, right=True)
    others = position if among is None else among
    found = unit.new_zeros(len(x))
    for begin, rows in enumerate(torch.split(position, BLOCK)):
        for columns in torch.split(others, BLOCK)[begin if among is None else 0 :]:
            cosines = unit[rows] @ unit[columns].mT
            cosines.masked_fill_(segment[rows, None] == segment[columns], 0)
            found[rows] = torch.maximum(found[rows], cosines.amax(1))
            if among is None:  # what one block has of another, that has of it
                found[columns] = torch.maximum(found[columns], cosines.amax(0))
    return found
