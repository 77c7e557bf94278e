"""When the kept tokens of a video are shown."""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from vidsieve.errors import WrongArgument

GROUPS = 60  # parts of a video that are compared, at most


class Span(NamedTuple):
    """A part of a video: the seconds of its first and last sampled frame, and the share of the kept tokens it holds."""

    start: float
    end: float
    share: float


def seconds_of(kept: Tensor, tokens: Sequence[int], seconds: Sequence[float]) -> Tensor:
    """When each kept token is shown: float64 (K,), the time of the first of the frames that its token frame is made of.

    kept: int64 (K,), indices of tokens.  tokens: of each token frame.  seconds: of each sampled frame.
    """
    first = [start for start, _ in _times(tokens, seconds)]
    return torch.tensor(first, dtype=torch.float64)[_frame_of(kept, tokens)]


def spans(kept: Tensor, tokens: Sequence[int], seconds: Sequence[float]) -> tuple[Span, ...]:
    """Where most of the kept tokens are: the densest parts of a video, until they hold half; the fullest part first.

    Arguments as above. Parts are compared that are `GROUPS` at most and of as many frames; those as dense as the last
    one are all there, so a video that keeps equally many of all frames is one span.
    """
    times, counts = _times(tokens, seconds), torch.bincount(_frame_of(kept, tokens), minlength=len(tokens)).tolist()
    size = -(-len(tokens) // GROUPS)
    steps = [after[0] - before[0] for before, after in pairwise(times)]
    gap = 2 * median(steps) if steps else 0.0  # no frame was sampled there, or a stream has forgotten them
    groups: list[list[int]] = []
    joined = []  # whether a group goes on where the one before it ends
    for frame in range(len(tokens)):
        near = frame > 0 and steps[frame - 1] <= gap
        if near and len(groups[-1]) < size:
            groups[-1].append(frame)
        else:
            groups.append([frame])
            joined.append(near)
    held = [sum(counts[frame] for frame in group) for group in groups]
    density = [count / sum(tokens[frame] for frame in group) for count, group in zip(held, groups, strict=True)]
    order = sorted(range(len(groups)), key=lambda group: -density[group])
    sums = accumulate(held[group] for group in order)
    least = next((density[group] for group, some in zip(order, sums, strict=True) if 2 * some >= len(kept)), 0.0)
    found: list[Span] = []
    for number, group in enumerate(groups):
        if not held[number] or density[number] < least:
            continue
        start, end, share = times[group[0]][0], times[group[-1]][1], held[number] / len(kept)
        if joined[number] and held[number - 1] and density[number - 1] >= least:
            before = found.pop()
            start, share = before.start, before.share + share
        found.append(Span(start, end, share))
    return tuple(sorted(found, key=lambda span: -span.share))


def _times(tokens: Sequence[int], seconds: Sequence[float]) -> list[tuple[float, float]]:
    """The times of the first and the last of the frames that each token frame is made of; the last one fills up.

    Models make a token frame of one, two or four frames. Raises `WrongArgument` for times of other frames.
    """
    count, frames = len(tokens), len(seconds)
    joined = next((n for n in (1, 2, 4) if -(-frames // n) == count), 1 if frames == 1 else 0)
    if not joined:
        raise WrongArgument(
            f"expected the times of the frames that {count} token frames are made of, one, two or four each; got "
            f"{frames} times: pass those of all frames that the model was shown, as Frames.seconds has them"
        )
    last = frames - 1
    return [(seconds[min(i * joined, last)], seconds[min((i + 1) * joined - 1, last)]) for i in range(count)]


def _frame_of(kept: Tensor, tokens: Sequence[int]) -> Tensor:
    return torch.bucketize(kept.cpu(), torch.tensor([*accumulate(tokens)]), right=True)
