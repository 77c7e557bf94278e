"""Where the tokens of a pruned prompt stand in M-RoPE. Plain tensors on the host, no vLLM.

The rule is this library's: a kept token keeps the position it had in the unpruned prompt, and so does all text. So
everything but the media themselves is known as soon as the prompt is: `initial` writes it, and marks each place of a
medium with -1 - base, where base is the position its medium begins at. The encoder sends each embedding with its
position relative to that base, in channels (`pack`), and `fill` adds the two up for whatever part of the media a step
brings. Nothing is walked, nothing is written twice, and a place that is filled stays as it is.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# A row travels as part of an embedding, perhaps in bfloat16, which is exact up to 256: three digits of base 256.
_BASE, _DIGITS = 256, 3
_FIELDS = 5  # t, h, w: relative position; index: in the medium; lead: index of the medium's first pad token
CHANNELS = _FIELDS * _DIGITS


class Medium(NamedTuple):
    """A video or an image in a pruned prompt: `length` tokens from `offset` on, `span` positions."""

    offset: int
    length: int
    span: int


def initial(length: int, media: Sequence[Medium]) -> tuple[Tensor, int]:
    """Positions (3, N) of a prompt, places of media marked, and what to add to an index after the prompt."""
    positions = torch.arange(length).repeat(3, 1)
    for medium in media:
        end = medium.offset + medium.length
        base = int(positions[0, medium.offset])
        positions[:, medium.offset : end] = -1 - base
        positions[:, end:] += medium.span - medium.length
    return positions, sum(medium.span - medium.length for medium in media)


def fill(positions: Tensor, ids: Sequence[int], pads: tuple[int, ...], computed: int, media: Sequence[Tensor]) -> None:
    """Write the positions (3, N) of `media`, the rows (n, 5) that a step brings of each, in prompt order.

    ids: (N,), in which each medium has a run of one of the `pads`.  computed: prompt tokens before this step.
    """
    begin = computed
    for rows in media:
        if not len(rows):
            continue
        index, lead = rows[0, 3:].tolist()
        if index == 0:  # else the step begins inside this medium
            begin = _first(ids, pads, begin) - lead
        places = positions[:, begin : begin + len(rows)]
        places.copy_(torch.where(places < 0, rows[:, :3].T - 1 - places, places))
        begin += len(rows)


def _first(ids: Sequence[int], pads: tuple[int, ...], begin: int) -> int:
    for place in range(begin, len(ids)):
        if ids[place] in pads:
            return place
    raise ValueError(f"expected a medium after token {begin} of the prompt, found none of {pads}")


def pack(positions: Tensor, lead: int = 0, index: Tensor | None = None) -> Tensor:
    """Rows of channels int64 (n, CHANNELS): relative positions (n, 3), their index in the medium, its lead."""
    index = torch.arange(len(positions)) if index is None else index
    fields = torch.cat([positions, index[:, None], torch.full_like(index, lead)[:, None]], dim=1)  # (n, 5)
    digits = [fields // _BASE**power % _BASE for power in range(_DIGITS)]
    return torch.cat(digits, dim=1)


def unpack(channels: Tensor) -> Tensor:
    """The fields int64 (n, 5) of channels (n, CHANNELS) in any dtype."""
    digits = channels.long().view(len(channels), _DIGITS, _FIELDS)
    return (digits * torch.tensor([[1], [_BASE], [_BASE**2]])).sum(1)


def grid(frames: int, rows: int, columns: int, step: float = 1.0) -> Tensor:
    """Relative positions (T * P, 3) of a medium of one grid, frames `step` apart: Qwen2.5-VL, and any image."""
    time = (torch.arange(frames) * step).long()
    return torch.cartesian_prod(time, torch.arange(rows), torch.arange(columns)).view(-1, 3)


def grid_span(frames: int, rows: int, columns: int, step: float = 1.0) -> int:
    """The positions that `grid` takes."""
    return max(int((frames - 1) * step), rows - 1, columns - 1) + 1


def leads(ids: Sequence[int], start: int, end: int) -> list[int]:
    """Tokens before the patches of each frame, in the placeholder of a video with text between its frames (Qwen3-VL).

    A frame is its time stamp, the `start` token, patches, the `end` token; the patches may be missing.
    """
    found, begin = [], 0
    for place, token in enumerate(ids):
        if token == start:
            found.append(place + 1 - begin)
        elif token == end:
            begin = place + 1
    return found


def interleaved(leads: Sequence[int], kept: Tensor, rows: int, columns: int) -> Tensor:
    """Relative positions (n, 3) of a video with text between its frames, of which the tokens `kept` (K,) stay."""
    lead, height = torch.tensor(leads), max(rows, columns)  # (T,)
    begin = (lead + height + 1).cumsum(0) - (height + 1)  # (T,) where the patches of a frame begin
    text = [place for n, b in zip(leads, begin.tolist(), strict=True) for place in (*range(b - n, b), b + height)]
    frame, patch = kept // (rows * columns), kept % (rows * columns)
    row = torch.arange(len(kept)) + lead.cumsum(0)[frame] + frame  # (K,) of each kept token in the sequence
    positions = torch.empty(len(text) + len(kept), 3, dtype=torch.long)
    is_text = torch.ones(len(positions), dtype=torch.bool)
    is_text[row] = False
    positions[is_text] = torch.tensor(text)[:, None]
    positions[row] = begin[frame][:, None] + torch.stack([0 * patch, patch // columns, patch % columns], dim=1)
    return positions


def interleaved_span(leads: Sequence[int], rows: int, columns: int) -> int:
    """The positions that `interleaved` takes, however few tokens stay."""
    return sum(leads) + len(leads) * (max(rows, columns) + 1)


def framed(is_frame: Tensor, per_frame: Tensor) -> tuple[Tensor, Tensor]:
    """Rows in the placeholder of a video: of the text between its frames, and of the K tokens that stay.

    is_frame: bool (n,), the placeholder with one entry for all patches of a frame.  per_frame: (T,), how many stay.
    """
    counts = torch.ones_like(is_frame, dtype=torch.long)
    counts[is_frame] = per_frame
    begin = counts.cumsum(0) - counts
    first = per_frame.cumsum(0) - per_frame
    kept = torch.repeat_interleave(begin[is_frame] - first, per_frame) + torch.arange(int(per_frame.sum()))
    return begin[~is_frame], kept


def framed_positions(is_frame: Tensor, kept: Tensor, rows: int, columns: int) -> Tensor:
    """Relative positions (L, 3) of such a placeholder, of which the tokens `kept` (K,) stay: GLM-4V and later."""
    span = torch.where(is_frame, max(rows, columns), 1)
    begin = span.cumsum(0) - span
    frame, patch = kept // (rows * columns), kept % (rows * columns)
    text, patches = framed(is_frame, torch.bincount(frame, minlength=int(is_frame.sum())))
    positions = torch.empty(len(text) + len(patches), 3, dtype=torch.long)
    positions[text] = begin[~is_frame][:, None]
    positions[patches] = begin[is_frame][frame][:, None] + torch.stack(
        [0 * patch, patch // columns, patch % columns], dim=1
    )
    return positions
