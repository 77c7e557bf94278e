"""Taking the kept tokens out of everything the decoder is given, so that each keeps its own position.

B rows of L tokens become B rows of M, the kept ones right-aligned; a row that kept fewer is padded on the left.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.utils.generic import is_flash_attention_requested

from vidsieve.errors import UnsupportedCall
from vidsieve.models.families import Adapter
from vidsieve.models.layout import Clip
from vidsieve.tokens import Reduction

# What `reduce_arguments` treats itself.
_SEQUENCE = {"input_ids", "inputs_embeds", "attention_mask", "position_ids"}


@dataclass(frozen=True, eq=False)
class Kept:
    """Which tokens of B rows of L stay.

    index: int64 (B, M), the column each new place takes its token from.  valid: bool (B, M), false on padding.
    length: L.  settled: the columns from here on stay in every row, one for one.
    """

    index: Tensor
    valid: Tensor
    length: int
    settled: int

    @classmethod
    def of(cls, stays: Tensor) -> "Kept":
        """From `stays` (B, L), true on each token that stays."""
        length = stays.shape[1]
        gone = (~stays).any(0).nonzero()  # (G, 1) columns
        settled = int(gone[-1]) + 1 if len(gone) else 0
        longest = int(stays.sum(1).max())
        order = stays.int().argsort(dim=1, stable=True)  # (B, L) what goes first, what stays last and in its order
        index = order[:, length - longest :]
        return cls(index, stays.gather(1, index), length, settled)

    def gather(self, x: Tensor) -> Tensor:
        """`x` (B, L, ...) at the kept tokens: (B, M, ...)."""
        index = self.index.to(x.device)
        return x.gather(1, index.view(*index.shape, *[1] * (x.ndim - 2)).expand(*index.shape, *x.shape[2:]))

    def positions(self, x: Tensor) -> Tensor:
        """Position ids (..., B or 1, L) at the kept tokens, zero on padding: (..., B, M)."""
        index, valid = self.index.to(x.device), self.valid.to(x.device)
        rows = x.expand(*x.shape[:-2], len(index), x.shape[-1])
        return rows.gather(-1, index.expand(*rows.shape[:-1], index.shape[1])) * valid

    def labels(self, x: Tensor, ignored: int = -100) -> Tensor:
        """Training targets (B, L) at the kept tokens, `ignored` on padding: (B, M)."""
        return self.gather(x).masked_fill(~self.valid.to(x.device), ignored)


def staying(clips: Sequence[Clip], reductions: Sequence[Reduction], real: Tensor) -> Tensor:
    """The tokens that stay, given those that are no padding, `real` (B, L): bool (B, L)."""
    stays = real.clone()
    for clip, reduction in zip(clips, reductions, strict=True):
        at = clip.at.to(real.device)
        stays[clip.row, at] = False
        stays[clip.row, at[reduction.kept.to(real.device)]] = True
    return stays


def reduce_arguments(
    adapter: Adapter,
    config: Any,
    arguments: dict[str, Any],
    clips: Sequence[Clip],
    reductions: Sequence[Reduction],
    kept: Kept,
    before: Tensor,  # (B, P) mask of what the cache already holds
    start: int,  # logical position of the first token
) -> dict[str, Any]:
    """The decoder's `arguments` for the kept tokens only.

    Raises `UnsupportedCall` for an argument that follows the sequence and that the adapter does not name.
    """
    embeds = arguments["inputs_embeds"]  # (B, L, D)
    batch, length, width = embeds.shape
    past, present = before.shape[1], kept.index.shape[1]
    places = [clip.row * length + clip.at for clip in clips]  # of each video in (B * L)
    new = dict(arguments)
    new["inputs_embeds"] = kept.gather(_fold(embeds.reshape(-1, width), places, reductions).view_as(embeds))

    positions = arguments.get("position_ids")
    if positions is None:
        positions = torch.arange(start, start + length, device=embeds.device)[None]
    positions = kept.positions(positions)
    if positions.ndim == 3 and len(positions) == 4:
        # Row 0 is no rotary position: it tells packed sequences apart, and a gap would read as a new sequence.
        text = (kept.valid.long().cumsum(-1) - 1).clamp(min=0) + past
        positions = torch.cat([text.to(positions)[None], positions[1:]])
    new["position_ids"] = positions

    # Always an explicit mask: without one, gaps in the positions would read as packed sequences.
    new["attention_mask"] = torch.cat([before, kept.valid.to(before)], 1)
    if positions.ndim == 2 and batch == 1 and is_flash_attention_requested(config):
        # For the same reason flash attention would take the number of keys from the gapped positions.
        ends = [torch.tensor([0, n], dtype=torch.int32, device=embeds.device) for n in (present, past + present)]
        new |= {"cu_seq_lens_q": ends[0], "cu_seq_lens_k": ends[1]}
        new |= {"max_length_q": present, "max_length_k": past + present}

    visual = arguments.get("visual_pos_masks")  # (B, L)
    for name in adapter.per_visual:
        if visual is not None and arguments.get(name) is not None:
            new[name] = [_gather_visual(x, visual, places, reductions, kept) for x in arguments[name]]
    for name in adapter.per_token:
        x = arguments.get(name)
        if x is not None:
            x = kept.gather(x)
            new[name] = x & kept.valid.to(x.device) if x.dtype == torch.bool else x
    for name, x in arguments.items():
        if name in _SEQUENCE or name in adapter.per_token:
            continue
        if isinstance(x, Tensor) and x.shape[:2] == (batch, length):
            raise UnsupportedCall(
                f"the decoder's argument {name} {tuple(x.shape)} seems to follow the sequence, and the adapter does "
                f"not say so; add {name!r} to its per_token (docs/adding_a_model.md)"
            )
    return new


def _fold(x: Tensor, places: Sequence[Tensor], reductions: Sequence[Reduction]) -> Tensor:
    """`x` (R, D) with the mean of all that it absorbed in each row that a merging reduction keeps."""
    for place, reduction in zip(places, reductions, strict=True):
        if reduction.merges:
            place = place.to(x.device)
            reduction = _on(reduction, x.device)
            x = x.index_copy(0, place[reduction.kept], reduction.apply(x[place]))
    return x


def _gather_visual(
    x: Tensor,  # (V, D), a row for each true place of `visual`
    visual: Tensor,  # (B, L)
    places: Sequence[Tensor],
    reductions: Sequence[Reduction],
    kept: Kept,
) -> Tensor:
    rank = visual.flatten().cumsum(0) - 1  # (B * L) row of x
    x = _fold(x, [rank[place.to(rank.device)] for place in places], reductions)
    stays = torch.zeros_like(visual).scatter_(1, kept.index.to(visual.device), kept.valid.to(visual))
    return x[stays[visual].to(x.device)]


def _on(reduction: Reduction, device: torch.device) -> Reduction:
    """`reduction` for tensors on `device`: a model spread over devices keeps its deepstack rows elsewhere."""
    if reduction.kept.device == device:
        return reduction
    return Reduction(reduction.kept.to(device), reduction.source.to(device), reduction.merges)
