"""Cuts and budgets, by kernels."""

import struct
from functools import cache

import torch
from torch import Tensor

from vidsieve.ops.definitions import ApportionProblem, NoveltyProblem, SceneCutsProblem
from vidsieve.ops.dispatch import SLOTS
from vidsieve.ops.launch import covering, launch
from vidsieve.ops.partition import eager
from vidsieve.ops.partition.kernels import _apportion_kernel, _novelty_kernel, _scene_cuts_kernel


def scene_cuts(problem: SceneCutsProblem) -> Tensor:
    persistence, offsets, threshold, max_frames, videos, even = problem
    frames = (len(offsets) - 1) // videos
    if frames >= SLOTS:  # beyond one program; the torch version asks the device nothing either
        return eager.scene_cuts(problem)
    out = torch.empty_like(offsets)
    similarity = persistence.new_empty(frames * videos)
    block = covering(frames + 1)
    launch(
        _scene_cuts_kernel, (videos,), persistence, offsets, similarity, out, frames, threshold, max_frames or frames,
        EVEN=even, BLOCK=block, TOKENS=max(1, min(64, 8192 // block)), num_warps=8,
    )  # fmt: skip
    return out


def novelty(problem: NoveltyProblem) -> Tensor:
    persistence, offsets, at = problem
    out = torch.empty(len(offsets) - 1, dtype=torch.float32, device=persistence.device)
    places = offsets if at is None else at.contiguous()
    launch(_novelty_kernel, (len(out),), persistence, places, offsets, out, WHOLE=at is None, BLOCK=512)
    return out


@cache
def _in_two(value: float) -> tuple[float, float]:
    """A number as the sum of two that float32 holds, as kernels get them."""
    (high,) = struct.unpack("f", struct.pack("f", value))
    return high, value - high


def apportion(problem: ApportionProblem) -> Tensor:
    weights, offsets, total, floor, videos = problem
    count = (len(offsets) - 1) // videos
    if count > SLOTS:
        return eager.apportion(problem)
    out = torch.empty(count * videos, dtype=torch.int64, device=offsets.device)
    block = covering(count)
    launch(
        _apportion_kernel, (videos,),
        offsets if weights is None else weights, offsets, out, count, total // videos, *_in_two(floor),
        WEIGHED=weights is not None, BLOCK=block, STEP=min(block, 16), num_warps=4 if block > 128 else 1,
    )  # fmt: skip
    return out
