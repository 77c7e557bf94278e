"""Selection: the tokens that stay of a video, with their features and the order in which they were picked."""

import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import torch
from torch import Tensor

from vidsieve import ops
from vidsieve.checks import check_keep, show
from vidsieve.errors import BudgetError, WrongArgument


def kept_count(keep: float, original_count: int) -> int:
    """How many of `original_count` tokens a fraction `keep` leaves: round(keep * original_count), and never none."""
    return max(1, round(keep * original_count))


def shared(total: int, lengths: Tensor, gains: Tensor | None, floor: float) -> Tensor:
    """Share `total` picks among segments as `Prune` does: int64 (S,), eq. 3."""
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    return ops.apportion(ops.ApportionProblem(gains, offsets, total, floor))


class Rows(NamedTuple):
    """n picked tokens of a video.

    kept: int64 (n,), indices among its tokens.  features: (n, D).  others: (layers, n, D) each.
    step: int32 (n,), when each was picked within its segment.  segment: int32 (n,).
    """

    kept: Tensor
    features: Tensor
    others: Mapping[str, Tensor]
    step: Tensor
    segment: Tensor

    def take(self, index: Tensor) -> "Rows":
        """Those at `index`, int64 (m,), or where it is true, bool (n,)."""
        others = {name: stacked[:, index] for name, stacked in self.others.items()}
        return Rows(self.kept[index], self.features[index], others, self.step[index], self.segment[index])

    def to(self, device: torch.device | str) -> "Rows":
        """The same on `device`."""
        others = {name: stacked.to(device) for name, stacked in self.others.items()}
        kept, features, _, step, segment = self
        return Rows(kept.to(device), features.to(device), others, step.to(device), segment.to(device))

    def in_pages(self) -> "Rows":
        """The same, on the CPU in memory that goes back to the system as soon as it is freed.

        An allocator keeps what it is given back: rows of 200 MiB, freed one part after another, stay with the process.
        """
        others = {name: _in_pages(stacked) for name, stacked in self.others.items()}
        return self._replace(features=_in_pages(self.features), others=others)

    def new(self, count: int) -> "Rows":
        """Make `count` rows like these, to be filled."""
        others = {name: x.new_empty(x.shape[0], count, *x.shape[2:]) for name, x in self.others.items()}
        kept, features, _, step, segment = self
        return Rows(
            kept.new_empty(count),
            features.new_empty(count, *features.shape[1:]),
            others,
            step.new_empty(count),
            segment.new_empty(count),
        )

    def fill(self, begin: int, rows: "Rows") -> None:
        """Write `rows` here, from row `begin` on."""
        here = slice(begin, begin + len(rows.kept))
        for mine, theirs in zip(self[:2] + self[3:], rows[:2] + rows[3:], strict=True):
            mine[here] = theirs
        for name, stacked in self.others.items():
            stacked[:, here] = rows.others[name]

    @classmethod
    def join(cls, parts: Sequence["Rows"]) -> Self:
        """One after another."""
        others = {name: torch.cat([part.others[name] for part in parts], 1) for name in parts[0].others}
        kept, features, _, step, segment = zip(*parts, strict=True)
        return cls(torch.cat(kept), torch.cat(features), others, torch.cat(step), torch.cat(segment))


def _in_pages(x: Tensor) -> Tensor:
    if not x.numel():
        return x
    pages = mmap.mmap(-1, x.nbytes, access=mmap.ACCESS_COPY)  # of this process alone, in no file
    return torch.frombuffer(pages, dtype=x.dtype).view(x.shape).copy_(x)


@dataclass(frozen=True, eq=False)
class Selection:
    """K tokens kept of the N of a video, in S segments.

    kept: int64 (K,), sorted and unique, indices among the N.  features: (K, D).
    others: per-token arguments of the decoder by name, (layers, K, D) each (Qwen3-VL's deepstack).
    step: int32 (K,), when each was picked within its segment, from 0.  segment: int32 (K,), the segment of each.
    lengths: int64 (S,), tokens of each segment, on the CPU as `gains` are.
    gains: float32 (S,), what the budget of each segment was weighed by; None where lengths alone did.
    floor: in [0, 1], the part of its share by length that each segment gets whatever its gain is: eq. 3.
    original_count: N; 0 for the sum of the lengths.
    spare: the next pick of each segment that has one, because a smaller share of a smaller total can round up where the
    larger was rounded down; None where none was held.
    capped: tokens that one shot would have kept and that were not held, whose places went to others.
    Raises `WrongArgument` for tensors of other types or shapes.
    """

    kept: Tensor
    features: Tensor
    others: Mapping[str, Tensor]
    step: Tensor
    segment: Tensor
    lengths: Tensor
    gains: Tensor | None = None
    floor: float = 0.0
    original_count: int = 0
    spare: Rows | None = None
    capped: int = 0

    def __post_init__(self) -> None:
        types = {"kept": torch.int64, "step": torch.int32, "segment": torch.int32, "lengths": torch.int64}
        for name, dtype in types.items():
            value = getattr(self, name)
            rows: tuple[int, ...] = tuple(value.shape[:1]) if name == "lengths" else (len(self.features),)
            if value.dtype != dtype or value.shape != rows:
                raise WrongArgument(f"expected {name} {str(dtype).removeprefix('torch.')}{rows}, got {show(value)}")
        if self.features.ndim != 2 or not self.features.is_floating_point():
            raise WrongArgument(f"expected features (K, D), got {show(self.features)}")
        for name, stacked in self.others.items():
            if stacked.ndim != 3 or stacked.shape[1] != len(self.kept):
                raise WrongArgument(f"expected {name} (layers, {len(self.kept)}, D), got {show(stacked)}")
        if self.gains is not None and (self.gains.dtype != torch.float32 or self.gains.shape != self.lengths.shape):
            raise WrongArgument(f"expected gains float32{tuple(self.lengths.shape)}, got {show(self.gains)}")
        if not self.original_count:
            object.__setattr__(self, "original_count", int(self.lengths.sum()))

    def __len__(self) -> int:
        return len(self.kept)

    @property
    def rows(self) -> Rows:
        """The kept tokens."""
        return Rows(self.kept, self.features, self.others, self.step, self.segment)

    @classmethod
    def of(
        cls,
        parts: list[Rows],
        budget: Tensor,
        lengths: Tensor,
        gains: Tensor | None,
        floor: float,
        count: int,
        capped: int,
    ) -> Self:
        """The first budget (S,) picks of each segment, and the next one as `spare`; the other arguments as above.

        parts: of the video, in its order, each with rows in any order: of each segment its first picks without a gap,
        at least as many as its budget. The list is emptied, from its end, so that little is held twice.
        """
        end = int(budget.sum())
        chosen, spare = parts[0].new(end), []
        while parts:
            rows = parts.pop()
            allowed, index = budget.to(rows.step.device)[rows.segment], rows.kept.argsort()
            kept = rows.take(index[(rows.step < allowed)[index]])
            end -= len(kept.kept)
            chosen.fill(end, kept)
            spare.append(rows.take(rows.step == allowed))
        return cls(*chosen, lengths, gains, floor, count, Rows.join(spare[::-1]), capped)

    def at(self, keep: float) -> "Selection":
        """The selection of a smaller share: the tokens that one shot with that `keep` keeps, exactly.

        Raises `BudgetError` for a larger share than this, and where that shot keeps more picks of a segment than are
        held: which happens only where some were `capped`, or where there are more segments than tokens to keep.
        """
        check_keep(keep)
        total = kept_count(keep, self.original_count)
        if total > len(self):
            raise BudgetError(
                f"keep={keep} of {self.original_count} tokens is {total}, and {len(self)} are held; select with a "
                "larger keep, then cut"
            )
        if total == len(self):
            return self
        rows = self.rows if self.spare is None else Rows.join([self.rows, self.spare])
        budget = shared(total, self.lengths, self.gains, self.floor)
        held = torch.bincount(rows.segment, minlength=len(self.lengths)).to(budget.device)
        if missing := int((budget - held).clamp(min=0).sum()):
            raise BudgetError(
                f"of the {total} tokens that one shot with keep={keep} keeps of {len(self.lengths)} segments, "
                f"{missing} are not held; select with that keep"
            )
        return self.of([rows], budget, self.lengths, self.gains, self.floor, self.original_count, 0)

    def to(self, device: torch.device | str) -> "Selection":
        """The same with rows on `device`."""
        spare = None if self.spare is None else self.spare.to(device)
        return replace(self, **self.rows.to(device)._asdict(), spare=spare)
