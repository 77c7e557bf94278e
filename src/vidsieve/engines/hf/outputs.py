"""What the rows of an output are of the prompt: the tokens that are left, or a row for every column."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vidsieve.engines.hf.prompt import Array
from vidsieve.engines.hf.sequence import SequenceSelection
from vidsieve.errors import UnsupportedCall


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of an output (B, M, D), of a prompt (B, L).

    not_padding: bool (B, L), the tokens that are no padding.  stable_suffix: how many of the last columns stay in every
    row.  steps: what was left of the prompt, and what of that; empty where nothing was removed.
    """

    not_padding: Array
    stable_suffix: int = 0
    steps: Sequence[SequenceSelection] = ()

    @classmethod
    def none(cls) -> "Rows":
        """Of no prompt."""
        return cls(np.zeros((0, 0), dtype=bool))

    @cached_property
    def columns(self) -> Tensor:
        """The prompt's column that each row is of: int64 (B, M), -1 on padding."""
        device = self.steps[0].index.device if self.steps else torch.device("cpu")
        columns = torch.arange(self.not_padding.shape[1], device=device).expand(self.not_padding.shape)
        columns = columns.masked_fill(torch.from_numpy(~self.not_padding).to(device), -1)
        return reduce(lambda x, step: step.labels(x, -1), self.steps, columns)

    def targets(self, labels: Tensor, spread: bool) -> Tensor:
        """Training targets (B, L) of the rows, (B, M), or where these are `spread`, (B, L): -100 on what is gone.

        Labels of another shape are of something else, and stay as they are.
        """
        if not self.steps or labels.shape != self.not_padding.shape:
            return labels
        if spread:
            return labels.masked_fill(self.gone.to(labels.device), -100)
        return reduce(lambda x, step: step.labels(x), self.steps, labels)

    @cached_property
    def _last(self) -> tuple[Tensor, Tensor]:
        """For each column the row of the last token left up to there, and whether it is gone: (B, L) int64 and bool."""
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
        """`x` (B, M, D) with a row for every column of the prompt, (B, L, D): of the last token left up to there."""
        row = self._last[0].to(x.device)[..., None]
        return x.gather(1, row.expand(*row.shape[:2], x.shape[2]))

    def is_at_the_end(self, asked: Any) -> bool:
        """Whether `asked`, the `logits_to_keep` of a call, is about rows that are at the end of the output too.

        What is left ends as the prompt does; before its stable suffix comes the last token left before it.
        """
        return isinstance(asked, int) and 0 < asked <= self.stable_suffix + 1

    def check(self, asked: Any) -> None:
        """Raise `UnsupportedCall` where `asked`, the `logits_to_keep` of a call, is about tokens that are gone."""
        if asked is None or not self.steps or self.is_at_the_end(asked):
            return
        gone = self.gone
        which = slice(-asked, None) if isinstance(asked, int) else torch.as_tensor(asked, device=gone.device)
        if count := int(gone[:, which].sum()):
            raise UnsupportedCall(
                f"logits_to_keep counts the columns of the prompt, and {count} of the tokens it asks for were dropped; "
                f"ask for some that stay, as the last {self.stable_suffix + 1}, or attach(..., outputs='prompt')"
            )
