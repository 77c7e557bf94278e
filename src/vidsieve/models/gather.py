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
    def of(cls, stays: Tensor, longest: int | None = None, settled: int | None = None) -> "Kept":
        """From `stays` (B, L), true on each token that stays.

        Waits for the device, unless it is told how many stay in the `longest` row and from where on all do, `settled`.
        """
        length = stays.shape[1]
        if longest is None or settled is None:
            gone = (~stays).any(0).nonzero()  # (G, 1) columns
            settled = int(gone[-1]) + 1 if len(gone) else 0
            longest = int(stays.sum(1).max())
        order = stays.int().argsort(dim=1, stable=True)  # (B, L) what goes first, what stays last and in its order
        index = order[:, length - longest :]
        return cls(index, stays.gather(1, index), length, settled)

    @classmethod
    def all(cls, real: Tensor) -> "Kept":
        """Every token, those that are no padding being `real` (B, L)."""
        index = torch.arange(real.shape[1], device=real.device).expand(real.shape)
        return cls(index, real, real.shape[1], 0)

    def then(self, later: "Kept") -> "Kept":
        """This followed by `later`, which saw the M tokens this one left."""
        tail = min(self.length - self.settled, later.length - later.settled)
        return Kept(self.index.gather(1, later.index), later.valid, self.length, self.length - tail)

    def places(self, row: int, columns: Tensor) -> Tensor:
        """Where the kept tokens at `columns` (n,) of a row went: (n,)."""
        order = torch.arange(self.index.shape[1], device=self.index.device)
        return torch.zeros(self.length, dtype=torch.int64, device=order.device).scatter_(0, self.index[row], order)[
            columns
        ]

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


@dataclass(frozen=True, eq=False)
class Fold:
    """One video's reduction, where its tokens are.

    row: the prompt.  at: int64 (N,), the columns of the tokens.  count: (N,), how many each of them stands for already,
    None where each is one.
    """

    row: int
    at: Tensor
    reduction: Reduction
    count: Tensor | None = None


def staying(folds: Sequence[Fold], real: Tensor) -> Tensor:
    """The tokens that stay, given those that are no padding, `real` (B, L): bool (B, L)."""
    stays = real.clone()
    for fold in folds:
        at = fold.at.to(real.device)
        stays[fold.row, at] = False
        stays[fold.row, at[fold.reduction.kept.to(real.device)]] = True
    return stays


def reduced(x: Tensor, folds: Sequence[Fold], kept: Kept) -> Tensor:
    """`x` (B, L, D) reduced to (B, M, D): gathered, and averaged where a reduction merges."""
    length, width = x.shape[1:]
    places = [fold.row * length + fold.at for fold in folds]  # of each video in (B * L)
    return kept.gather(_fold(x.reshape(-1, width), places, folds).view_as(x))


def reduce_arguments(
    adapter: Adapter,
    config: Any,
    arguments: dict[str, Any],
    folds: Sequence[Fold],
    kept: Kept,
    before: Tensor,  # (B, P) mask of what the cache already holds
    start: int,  # logical position of the first token
) -> dict[str, Any]:
    """The decoder's `arguments` for the kept tokens only.

    Raises `UnsupportedCall` for an argument that follows the sequence and that the adapter does not name.
    """
    embeds = arguments["inputs_embeds"]  # (B, L, D)
    batch, length = embeds.shape[:2]
    past, present = before.shape[1], kept.index.shape[1]
    new = dict(arguments)
    new["inputs_embeds"] = reduced(embeds, folds, kept)

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
            new[name] = [reduced_visual(x, visual, folds, kept)[1] for x in arguments[name]]
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


def reduced_visual(x: Tensor, visual: Tensor, folds: Sequence[Fold], kept: Kept) -> tuple[Tensor, Tensor]:
    """`visual` (B, L) at the kept tokens, (B, M), and the rows of `x` (V, D), one a true place, reduced alike."""
    visual = visual.to(x.device)
    rank = visual.flatten().cumsum(0) - 1  # (B * L) row of x
    x = _fold(x, [rank[fold.row * visual.shape[1] + fold.at.to(rank.device)] for fold in folds], folds)
    stays = torch.zeros_like(visual).scatter_(1, kept.index.to(visual.device), kept.valid.to(visual))
    return kept.gather(visual) & kept.valid.to(visual.device), x[stays[visual]]


def _fold(x: Tensor, places: Sequence[Tensor], folds: Sequence[Fold]) -> Tensor:
    """`x` (R, D) with the mean of all that it absorbed in each row that a merging reduction keeps."""
    for place, fold in zip(places, folds, strict=True):
        if fold.reduction.merges:
            place = place.to(x.device)
            reduction = _on(fold.reduction, x.device)
            count = None if fold.count is None else fold.count.to(x.device)
            x = x.index_copy(0, place[reduction.kept], reduction.apply(x[place], count))
    return x


def _on(reduction: Reduction, device: torch.device) -> Reduction:
    """`reduction` for tensors on `device`: a model spread over devices keeps its deepstack rows elsewhere."""
    if reduction.kept.device == device:
        return reduction
    return Reduction(reduction.kept.to(device), reduction.source.to(device), reduction.merges)
