"""Groups of pixels that repeat one before them, by kernels that do not ask how many there are."""

import torch
from torch import Tensor

from vidsieve.ops.definitions import HoldHighestProblem, RunLengthProblem
from vidsieve.ops.launch import cdiv, covering, launch, rows_of
from vidsieve.ops.limits import SECTIONS, WIDTHS
from vidsieve.ops.run_length.eager import hold_highest as hold_highest
from vidsieve.ops.run_length.kernels import _count_kernel, _differences_kernel, _scores_kernel

BLOCK_T = 8  # frames on either side of a tile of differences


def run_length(problem: RunLengthProblem) -> tuple[Tensor, Tensor, Tensor]:
    x, total = rows_of(problem.x), problem.total
    frames, places, width = x.shape
    difference = torch.empty(places, frames, frames, dtype=torch.float32, device=x.device)
    nonfinite = torch.empty(frames * places, dtype=torch.int32, device=x.device)
    launch(
        _differences_kernel, (places * cdiv(frames, BLOCK_T) ** 2,),
        x, difference, nonfinite, frames, places, x.stride(0), x.stride(1),
        C=width, BLOCK_T=BLOCK_T, BLOCK_C=min(128, covering(width)), num_warps=4,
    )  # fmt: skip
    sweeps = 0 if total is None else len(WIDTHS)
    counts = torch.zeros(len(WIDTHS), SECTIONS, dtype=torch.int32, device=x.device)
    for done in range(sweeps):
        launch(
            _count_kernel, (places,), difference, counts, frames, total, DONE=done, BLOCK=SECTIONS, num_warps=8
        )  # fmt: skip
    score = torch.empty(frames, places, dtype=torch.float32, device=x.device)
    launch(
        _scores_kernel, (cdiv(places, 32),),
        difference, counts, score, frames, places, total or 0, float(problem.threshold),
        DONE=sweeps, SECTIONS=SECTIONS, BLOCK=32, num_warps=1,
    )  # fmt: skip
    return *hold_highest(HoldHighestProblem(score, total)), nonfinite
