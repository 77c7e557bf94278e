"""Map the rows of an output to columns of the prompt: a row per remaining token, or a row per column."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vidsieve.engines.hf.layouts import Array
from vidsieve.engines.hf.sequence import SequenceSelection
from vidsieve.errors import UnsupportedCall


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of an output (B, M, D) for a prompt (B, L).

    not_padding: bool (B, L), true on tokens.  stable_suffix: how many of the last columns are kept in every row.
    steps: the selections made of the prompt, one after another; empty if nothing was removed.
    """

    not_padding: Array
    stable_suffix: int = 0
    steps: Sequence[SequenceSelection] = ()

    @classmethod
    def none(cls) -> "Rows":
        """Make the rows of no prompt."""
        return cls(np.zeros((0, 0), dtype=bool))

    @cached_property
    def columns(self) -> Tensor:
        """The column of the prompt for each row: int64 (B, M), -1 on padding."""
        device = self.steps[0].index.device if self.steps else torch.device("cpu")
        columns = torch.arange(self.not_padding.shape[1], device=device).expand(self.not_padding.shape)
        columns = columns.masked_fill(torch.from_numpy(~self.not_padding).to(device), -1)
        return reduce(lambda x, step: step.labels(x, -1), self.steps, columns)

    def targets(self, labels: Tensor, spread: bool) -> Tensor:
        """Select the targets (B, M) of the rows from `labels` (B, L); if `spread`, (B, L) with -100 on dropped tokens.

        Labels of another shape do not belong to the prompt and are returned unchanged.
        """
        if not self.steps or labels.shape != self.not_padding.shape:
            return labels
        if spread:
            return labels.masked_fill(self.gone.to(labels.device), -100)
        return reduce(lambda x, step: step.labels(x), self.steps, labels)

    @cached_property
    def _last(self) -> tuple[Tensor, Tensor]:
        """For each column, the row of the last remaining token up to it, and whether it was dropped: (B, L) each."""
        kept = reduce(SequenceSelection.then, self.steps)
        shape = self.not_padding.shape
        column = torch.arange(shape[1], device=kept.index.device).expand(shape).contiguous()
        row = (torch.searchsorted(kept.index.contiguous(), column, right=True) - 1).clamp(min=0)
        stays = (kept.index.gather(1, row) == column) & kept.valid.gather(1, row).bool()
        return row, ~stays & torch.from_numpy(self.not_padding).to(stays.device)

    @property
    def gone(self) -> Tensor:
        """The tokens that were dropped: bool (B, L)."""
        return self._last[1]

    def spread(self, x: Tensor) -> Tensor:
        """Expand x (B, M, D) to every column, (B, L, D): a column has the row of the last remaining token up to it."""
        row = self._last[0].to(x.device)[..., None]
        return x.gather(1, row.expand(*row.shape[:2], x.shape[2]))

    def is_at_the_end(self, logits_to_keep: Any) -> bool:
        """Whether the rows that `logits_to_keep` asks for are the last rows of the output too.

        The output ends with the stable suffix of the prompt, and the row before that is the last remaining token.
        """
        return isinstance(logits_to_keep, int) and 0 < logits_to_keep <= self.stable_suffix + 1

    def check(self, logits_to_keep: Any) -> None:
        """Raise `UnsupportedCall` if `logits_to_keep` asks for tokens that were dropped."""
        if logits_to_keep is None or not self.steps or self.is_at_the_end(logits_to_keep):
            return
        gone = self.gone
        which = (
            slice(-logits_to_keep, None)
            if isinstance(logits_to_keep, int)
            else torch.as_tensor(logits_to_keep, device=gone.device)
        )
        if count := int(gone[:, which].sum()):
            raise UnsupportedCall(
                f"logits_to_keep counts the columns of the prompt, and {count} of the tokens it asks for were dropped; "
                f"ask for some that stay, as the last {self.stable_suffix + 1}, or attach(..., outputs='prompt')"
            )
