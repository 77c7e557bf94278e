"""Columns of a sequence, whose order the host knows without waiting for the device."""

from functools import cached_property

import torch
from torch import Tensor


class Columns:
    """Columns of a row, of which the host knows where they begin and whether they are consecutive.

    begin: the first column, or a bound below it if the first ones were dropped.
    """

    def __init__(self, begin: int, length: int, device: torch.device, scattered: Tensor | None = None) -> None:
        self.begin, self.length, self.device, self._scattered = begin, length, device, scattered

    def __len__(self) -> int:
        return self.length

    @cached_property
    def at(self) -> Tensor:
        """All columns: int64 (n,)."""
        if self._scattered is not None:
            return self._scattered
        return torch.arange(self.begin, self.begin + self.length, device=self.device)

    @property
    def as_slice(self) -> slice | None:
        """The columns as a slice if they are consecutive, else None."""
        return None if self._scattered is not None else slice(self.begin, self.begin + self.length)

    def take(self, x: Tensor) -> Tensor:
        """Take the rows of x (L, ...) at these columns: a view if they are consecutive, else a copy."""
        return x.index_select(0, self.at.to(x.device)) if self.as_slice is None else x[self.as_slice]

    def among(self, kept: Tensor) -> Tensor:
        """Take the columns at `kept` (K,): int64 (K,)."""
        return kept + self.begin if self.as_slice is not None else self.at.index_select(0, kept)
