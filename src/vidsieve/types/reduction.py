"""What became of the tokens of a video: which stay, and who absorbed the others."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from vidsieve import ops
from vidsieve.checks import show
from vidsieve.types.statistics import OriginalStatistics


@dataclass(frozen=True, eq=False)
class Reduction:
    """What became of N tokens: K of them are kept, the others dropped or folded into a kept one.

    kept: int64 (K,), sorted and unique, the tokens that stay.
    assigned_to: int64 (N,), the row of `kept` that absorbed each token, -1 where it was dropped.
    merges: whether any token was folded, so that `apply` averages rather than gathers.
    next_member: int64 (N,), from each kept token through those it absorbed, -1 at the end of the way; None where not
    known.
    row: int64 (N,), the row of each token that stays, -1 of others; None where not known.
    offsets, budget: the segments (S + 1,) and their budgets (S,) that led here, for reports.
    nonfinite: above 0 for NaN, inf or lengths out of range in the features (N,) it was made from, and in the prompt,
    where nobody has looked yet: see `check`.
    original_statistics: what is known by now of the video as it came, for later reductions of what is left; None where
    not known.
    """

    kept: Tensor
    assigned_to: Tensor
    merges: bool = False
    offsets: Tensor | None = None
    budget: Tensor | None = None
    nonfinite: Tensor | None = None
    next_member: Tensor | None = None
    row: Tensor | None = None
    original_statistics: OriginalStatistics | None = None

    def __post_init__(self) -> None:
        for name in ("kept", "assigned_to"):
            value = getattr(self, name)
            if value.ndim != 1 or value.dtype != torch.int64:
                raise ValueError(f"expected {name} int64 (n,), got {show(value)}")
        if len(self.kept) > len(self.assigned_to):
            raise ValueError(f"kept {len(self.kept)} of only {len(self.assigned_to)} tokens")
        # On an accelerator a look at the values would wait for the device; the contract tests look there instead.
        if self.kept.device.type == "cpu" and len(self.kept):
            if (self.kept.diff() <= 0).any() or self.kept[0] < 0 or self.kept[-1] >= len(self.assigned_to):
                raise ValueError(
                    f"expected kept sorted, unique and within [0, {len(self.assigned_to)}), got {self.kept}"
                )
            if not torch.equal(self.assigned_to[self.kept], torch.arange(len(self.kept))):
                raise ValueError("expected every kept token to be its own source")

    @classmethod
    def select(cls, kept: Tensor, total: int, *, offsets: Tensor | None = None, budget: Tensor | None = None) -> Self:
        """Keep `kept` (K,) of `total` tokens and drop the others."""
        assigned_to = torch.full((total,), -1, dtype=torch.int64, device=kept.device)
        rows = torch.arange(len(kept), device=kept.device)
        return cls(kept, assigned_to.scatter_(0, kept, rows), offsets=offsets, budget=budget)

    @classmethod
    def identity(
        cls,
        total: int,
        device: torch.device,
        nonfinite: Tensor | None = None,
        original_statistics: OriginalStatistics | None = None,
    ) -> Self:
        """Keep every token."""
        everything = torch.arange(total, device=device)
        return cls(everything, everything, nonfinite=nonfinite, original_statistics=original_statistics)

    def __len__(self) -> int:
        return self.kept.shape[0]

    @property
    def kept_row(self) -> Tensor:
        """The row of each token that stays, -1 of others: int64 (N,)."""
        if not self.merges:
            return self.assigned_to
        return Reduction.select(self.kept, len(self.assigned_to)).assigned_to if self.row is None else self.row

    def __repr__(self) -> str:
        verb = "merged" if self.merges else "dropped"
        n, k = len(self.assigned_to), len(self)
        return f"Reduction({n} tokens -> {k} kept, {n - k} {verb})"

    def check(self) -> None:
        """Raise `NonFiniteFeatures` if the features or the prompt held NaN or inf. Waits for the device.

        On CPU a reducer has looked before it returns; on an accelerator that would be its only wait, so it is left to
        whoever waits anyway.
        """
        if self.nonfinite is not None:
            ops.raise_if_nonfinite(self.nonfinite)

    def gather(self, x: Tensor) -> Tensor:
        """The kept rows of `x` (N, ...), for what must not be averaged (positions, masks): (K, ...)."""
        self._expect("x", x)
        return x.index_select(0, self.kept)

    def _expect(self, name: str, x: Tensor) -> None:
        if x.ndim < 1 or len(x) != len(self.assigned_to):
            raise ValueError(f"expected {name} of the {len(self.assigned_to)} tokens that were reduced, got {show(x)}")

    def apply(self, x: Tensor, count: Tensor | None = None) -> Tensor:
        """`x` (N, ...) reduced to (K, ...): the kept rows, or the mean of all that each kept row absorbed.

        count: (N,), how many tokens each row already stands for, which is its weight; None where each is one.
        The mean is taken in float32 and returned in the dtype of `x`.
        """
        self._expect("x", x)
        if count is not None:
            self._expect("count", count)
        if not self.merges:
            return self.gather(x)
        return ops.merge_mean(ops.MergeProblem(x, self.assigned_to, self.kept, count, self.next_member))

    def then(self, later: "Reduction") -> "Reduction":
        """This reduction followed by `later`, which saw the K tokens this one kept.

        offsets, budget: those of `later`, the bounds counted in the N tokens here; this one's where `later` dropped
        nothing and had none, and None where it dropped tokens without saying by which segments.
        """
        if len(later.assigned_to) != len(self.kept):
            raise ValueError(f"expected a reduction of {len(self.kept)} tokens to follow, got {later}")
        assigned_to = torch.where(self.assigned_to < 0, -1, later.assigned_to[self.assigned_to.clamp(min=0)])
        offsets, budget = later.offsets, later.budget
        if offsets is not None:  # a segment of what was left begins where its first token is among the N
            end = self.kept.new_full((1,), len(self.assigned_to))
            offsets = torch.cat([self.kept.new_zeros(1), self.kept[1:], end])[offsets]
        elif len(later) == len(self):
            offsets, budget = self.offsets, self.budget
        merges = self.merges or later.merges
        return Reduction(
            self.kept[later.kept], assigned_to, merges, offsets, budget, self._nonfinite_before(later),
            original_statistics=later.original_statistics or self.original_statistics,
        )  # fmt: skip

    def _nonfinite_before(self, later: "Reduction") -> Tensor | None:
        """`nonfinite` of the N tokens here, or where none is, of those `later` saw: NaN that merged counts once."""
        if later.nonfinite is None:
            return self.nonfinite
        found = later.nonfinite.new_zeros(len(self.assigned_to)).index_copy_(0, self.kept, later.nonfinite)
        return found if self.nonfinite is None else torch.where(self.nonfinite.any(), self.nonfinite, found)
