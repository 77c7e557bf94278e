"""Columns of a sequence whose order the host knows, so that it need not ask the device where they are."""

from functools import cached_property

import torch
from torch import Tensor


class Columns:
    """Columns of a row that the host knows something about: where they begin, and whether they follow one another.

    begin: the first, or where the stretch begins whose first ones are gone.
    """

    def __init__(self, begin: int, length: int, device: torch.device, scattered: Tensor | None = None) -> None:
        self.begin, self.length, self.device, self._scattered = begin, length, device, scattered

    def __len__(self) -> int:
        return self.length

    @cached_property
    def at(self) -> Tensor:
        """The columns: int64 (n,)."""
        if self._scattered is not None:
            return self._scattered
        return torch.arange(self.begin, self.begin + self.length, device=self.device)

    @property
    def as_slice(self) -> slice | None:
        """The same, where they follow one another."""
        return None if self._scattered is not None else slice(self.begin, self.begin + self.length)

    def take(self, x: Tensor) -> Tensor:
        """The rows of x (L, ...) at these columns: a view where they follow one another."""
        return x.index_select(0, self.at.to(x.device)) if self.as_slice is None else x[self.as_slice]

    def among(self, kept: Tensor) -> Tensor:
        """Those of the columns at `kept` (K,)."""
        return kept + self.begin if self.as_slice is not None else self.at.index_select(0, kept)
