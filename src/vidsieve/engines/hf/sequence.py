"""Select the kept tokens from all arguments of the decoder, each with its original position.

B rows of L tokens become B rows of M, the kept ones right-aligned; a row with fewer of them is padded on the left.
Padding after the first token of a row is kept, so that the text after the videos has the same distance from the end.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers.utils.generic import is_flash_attention_requested

from vidsieve import ops
from vidsieve.engines.hf.columns import Columns
from vidsieve.engines.hf.families import Adapter
from vidsieve.errors import UnsupportedCall
from vidsieve.types.reduction import Reduction
from vidsieve.types.tokens import Provenance

# Arguments that `reduce_arguments` handles by name.
_SEQUENCE = {"input_ids", "inputs_embeds", "attention_mask", "position_ids"}


@dataclass(frozen=True, eq=False)
class SequenceSelection:
    """The tokens of B rows of L that are kept.

    index: int64 (B, M), the old column of each new one.  valid: int64 (B, M), 0 on padding, else 1.
    padded: whether there is padding.  slots: the new column of each kept one, int64 (B, L); one for each of several
    selections that followed one another.
    """

    index: Tensor
    valid: Tensor
    padded: bool
    slots: tuple[Tensor, ...]

    @classmethod
    def of(cls, kept_row: Tensor, counts: Sequence[int], begin: int = 0, length: int = 0) -> "SequenceSelection":
        """Make it from `kept_row` (B, N), below 0 on dropped tokens; `counts` are kept in each row."""
        problem = ops.CompactRowsProblem(kept_row, max(counts), begin, length or kept_row.shape[1])
        index, valid, slot = ops.compact_rows(problem)
        return cls(index, valid, len(set(counts)) > 1, (slot,))

    @property
    def length(self) -> int:
        """Columns before the selection: L."""
        return self.slots[0].shape[1]

    def then(self, later: "SequenceSelection") -> "SequenceSelection":
        """Compose this selection with `later`, which was made of the M tokens kept here."""
        return SequenceSelection(self.index.gather(1, later.index), later.valid, later.padded, self.slots + later.slots)

    def places(self, row: int, columns: Tensor) -> Tensor:
        """Find the new columns of the kept tokens at `columns` (n,) of a row: (n,)."""
        for slot in self.slots:
            columns = slot[row].index_select(0, columns)
        return columns

    def gather(self, x: Tensor) -> Tensor:
        """Gather x (B, L, ...) at the kept tokens: (B, M, ...)."""
        index = self.index.to(x.device)
        return x.gather(1, index.view(*index.shape, *[1] * (x.ndim - 2)).expand(*index.shape, *x.shape[2:]))

    def positions(self, x: Tensor) -> Tensor:
        """Gather position ids (..., B or 1, L) at the kept tokens, zero on padding: (..., B, M)."""
        index = self.index.to(x.device)
        if len(index) == x.shape[-2] == 1:
            return x.index_select(-1, index[0])
        rows = x.expand(*x.shape[:-2], len(index), x.shape[-1])
        taken = rows.gather(-1, index.expand(*rows.shape[:-1], index.shape[1]))
        return taken * self.valid.to(x.device) if self.padded else taken

    def rotations(self, x: Tensor) -> Tensor:
        """Gather cosines or sines of positions (..., B or 1, L, d) at the kept tokens: (..., B, M, d)."""
        index = self.index.to(x.device)[..., None]  # (B, M, 1)
        rows = x.expand(*x.shape[:-3], len(index), *x.shape[-2:])
        return rows.gather(-2, index.expand(*rows.shape[:-2], index.shape[1], rows.shape[-1]))

    def labels(self, x: Tensor, ignored: int = -100) -> Tensor:
        """Gather training targets (B, L) at the kept tokens, `ignored` on padding: (B, M)."""
        return self.gather(x).masked_fill(self.valid.to(x.device) == 0, ignored)


@dataclass(frozen=True, eq=False)
class VideoReduction:
    """The reduction of one video, and the place of its tokens.

    row: the prompt.  at: the columns of the N tokens.  origin: their provenance, None if they are of the prompt itself.
    """

    row: int
    at: Columns
    reduction: Reduction
    origin: Provenance | None = None

    @cached_property
    def kept_columns(self) -> Tensor:
        """The columns of the kept tokens: (K,)."""
        return self.at.among(self.reduction.kept)

    def merged(self, x: Tensor) -> Tensor:
        """Reduce x (N, D), a row per token, to the kept tokens: the mean of all tokens merged into each, (K, D)."""
        return _on(self.reduction, x.device).apply(x, self._count(x.device))

    def among(self, x: Tensor, index: Tensor) -> Tensor:
        """Gather x (L, D) of the prompt at `index` (M,), with the means of merged tokens at the kept tokens: (M, D)."""
        reduction = _on(self.reduction, x.device)
        source, kept, link = reduction.assigned_to, reduction.kept, reduction.next_member
        problem = ops.MergeProblem(x, source, kept, self._count(x.device), link)
        return ops.merge_among(ops.MergeAmongProblem(problem, index, self.at.begin))

    def _count(self, device: torch.device) -> Tensor | None:
        count = None if self.origin is None else self.origin.multiplicity
        return None if count is None else count.to(device)


def select_remaining(
    reductions: Sequence[VideoReduction],
    valid: Tensor | None,
    length: int,
    counts: Sequence[int],
    holes: Sequence[int] = (),
) -> SequenceSelection:
    """Select the tokens that `reductions` keep of rows of `length`, `counts` in each row.

    valid: int64 (B, L), 0 on padding, else 1; None without padding.  holes: padding after the first token of each row.
    """
    if len(reductions) == len(counts) == 1 and reductions[0].at.as_slice is not None and valid is None:
        return SequenceSelection.of(reductions[0].reduction.kept_row[None], counts, reductions[0].at.begin, length)
    if valid is None:
        kept_row = torch.zeros(len(counts), length, dtype=torch.int64, device=reductions[0].at.device)
    else:
        kept_row = (valid.cummax(1).values if any(holes) else valid) - 1
    for one in reductions:
        row = kept_row[one.row]
        if one.at.as_slice is None:
            row.index_copy_(0, one.at.at, one.reduction.kept_row)
        else:
            row[one.at.as_slice].copy_(one.reduction.kept_row)
    if valid is None or not any(holes):
        return SequenceSelection.of(kept_row, counts)
    kept = SequenceSelection.of(kept_row, [count + hole for count, hole in zip(counts, holes, strict=True)])
    return replace(kept, valid=kept.valid * valid.gather(1, kept.index), padded=True)


def moved(
    columns: Columns,
    row: int,
    reductions: Sequence[VideoReduction],
    kept: SequenceSelection,
    own: VideoReduction | None = None,
) -> Columns:
    """Find the new columns of `columns` of a row, of which `own` says which are kept; None for all.

    Everything after them is kept, padding too, so the host knows their distance from the end: the old one, less the
    tokens dropped from there on.
    """
    gone = sum(len(f.at) - len(f.reduction) for f in reductions if f.row == row and f.at.begin >= columns.begin)
    begin = kept.index.shape[1] - (kept.length - columns.begin - gone)
    length = len(columns) if own is None else len(own.reduction)
    if columns.as_slice is not None:
        return Columns(begin, length, columns.device)
    return Columns(begin, length, columns.device, kept.places(row, columns.at if own is None else own.kept_columns))


def reduced(x: Tensor, reductions: Sequence[VideoReduction], kept: SequenceSelection) -> Tensor:
    """Reduce x (B, L, D) to (B, M, D): gather, and average where a reduction merges."""
    merging = [one for one in reductions if one.reduction.merges]
    if len(x) == len(merging) == 1 and merging[0].at.as_slice is not None:
        return merging[0].among(x[0], kept.index[0].to(x.device))[None]
    out = kept.gather(x)
    for one in merging:
        places = moved(one.at, one.row, reductions, kept, one)
        out[one.row].index_copy_(0, places.at.to(x.device), one.merged(one.at.take(x[one.row])))
    return out


def reduce_arguments(
    adapter: Adapter,
    config: Any,
    arguments: dict[str, Any],
    reductions: Sequence[VideoReduction],
    kept: SequenceSelection,
    before: Tensor | None,  # (B, P) mask of what the cache already holds, if it holds anything
    start: int,  # logical position of the first token
) -> dict[str, Any]:
    """Reduce the decoder's `arguments` to the kept tokens.

    Raises `UnsupportedCall` for an argument that follows the sequence and that the adapter does not name.
    """
    embeds = arguments["inputs_embeds"]  # (B, L, D)
    batch, length = embeds.shape[:2]
    past = 0 if before is None else before.shape[1]
    new = dict(arguments)
    new["inputs_embeds"] = reduced(embeds, reductions, kept)

    positions = arguments.get("position_ids")
    if positions is None:
        positions = torch.arange(start, start + length, device=embeds.device)[None]
    if positions.ndim == 3 and len(positions) == 4:
        positions = positions[1:]  # row 0 is for packed sequences, and a gap in it would read as the begin of another
    positions = kept.positions(positions)
    new["position_ids"] = positions

    # Without a mask and without a cache, gaps in the positions would read as packed sequences.
    new["attention_mask"] = kept.valid if before is None else torch.cat([before, kept.valid.to(before)], 1)
    new |= flash_lengths(config, positions, new["inputs_embeds"], past)

    visual = arguments.get("visual_pos_masks")  # (B, L)
    for name in adapter.per_visual:
        if visual is not None and arguments.get(name) is not None:
            new[name] = [reduced_visual(x, visual, reductions, kept)[1] for x in arguments[name]]
    for name in adapter.per_token:
        x = arguments.get(name)
        if x is not None:
            if x.shape[1] != length:
                raise UnsupportedCall(
                    f"expected {name} of all {length} tokens, got {tuple(x.shape)}: transformers does not lengthen it "
                    "for candidates, or for tokens said without a cache; generate without these"
                )
            x = kept.gather(x)
            new[name] = x & kept.valid.to(x.device).bool() if x.dtype == torch.bool and kept.padded else x
    for name, x in arguments.items():
        if name in _SEQUENCE or name in adapter.per_token:
            continue
        if isinstance(x, Tensor) and x.shape[:2] == (batch, length):
            raise UnsupportedCall(
                f"the decoder's argument {name} {tuple(x.shape)} seems to follow the sequence, and the adapter does "
                f"not say so; add {name!r} to its per_token (docs/adding_a_model.md)"
            )
    return new


def flash_lengths(config: Any, positions: Tensor, embeds: Tensor, past: int) -> dict[str, Any]:
    """Make the arguments that tell flash attention the lengths of one sequence; none where it does not need them.

    It would take the number of keys from `positions` (B, M), and gaps in them would read as packed sequences.
    embeds: (B, M, D).  past: tokens that the cache holds.
    """
    batch, present = embeds.shape[:2]
    if positions.ndim != 2 or batch != 1 or not is_flash_attention_requested(config):
        return {}
    ends = [torch.tensor([0, n], dtype=torch.int32, device=embeds.device) for n in (present, past + present)]
    lengths = {"max_length_q": present, "max_length_k": past + present}
    return {"cu_seq_lens_q": ends[0], "cu_seq_lens_k": ends[1], **lengths}


def reduced_visual(
    x: Tensor, visual: Tensor, reductions: Sequence[VideoReduction], kept: SequenceSelection
) -> tuple[Tensor, Tensor]:
    """Reduce `visual` (B, L) to the kept tokens, (B, M), and x (V, D), a row for each true column, in the same way.

    How many are left is known to the host: indexing by a mask would ask the device, and wait for the vision tower.
    """
    visual = visual.to(x.device)
    rank = (visual.flatten().cumsum(0) - 1).view_as(visual)  # (B, L) row of x
    now = kept.gather(visual)
    now = now & kept.valid.to(x.device).bool() if kept.padded else now
    count = len(x) - sum(len(one.reduction.assigned_to) - len(one.reduction) for one in reductions)
    rank_now = (now.flatten().cumsum(0) - 1).view_as(now)  # (B, M) row of what is left of x
    row = rank.new_empty(count + 1)  # and one for columns that are not visual
    row.scatter_(0, rank_now.where(now, count).flatten(), kept.gather(rank).flatten())
    out = x[row[:count]]
    for one in reductions:
        if one.reduction.merges:
            places = rank_now[one.row, kept.places(one.row, one.kept_columns).to(x.device)]
            out.index_copy_(0, places, one.merged(x[one.at.take(rank[one.row])]))
    return now, out


def _on(reduction: Reduction, device: torch.device) -> Reduction:
    """Copy `reduction` to `device`: a model spread over devices may have its deepstack rows on another one."""
    if reduction.kept.device == device:
        return reduction
    link = None if reduction.next_member is None else reduction.next_member.to(device)
    return Reduction(reduction.kept.to(device), reduction.assigned_to.to(device), reduction.merges, next_member=link)
