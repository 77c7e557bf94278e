"""What the parts of a fast tower know of the call that they are in."""

import threading
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from vidsieve import ops
from vidsieve.engines.hf.columns import Columns
from vidsieve.engines.hf.intercept import OfOneModel
from vidsieve.engines.hf.tracked import NonFiniteCheck

Grids = tuple[tuple[int, int, int], ...]  # frames, rows and columns of each video, in patches


class Layout(Protocol):
    """Where the segments of all patches are."""

    def longest_of(self, bounds: Tensor) -> int: ...

    def bounds_like(self, bounds: Tensor) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class TowerCall:
    """A call of a tower that is not stock.

    layout: of all patches.  fused: whether the modules of the tower run as kernels of ours.
    source: int64 (G,), for each group of patches the row, among those that run, of the group that it repeats; None if
    all run.  patch_rows: int64 (N,), the same for each patch, in the tower's own order.  holds_keys: whether patches
    that do not run have the keys and values of those that they repeat, or none.  nonfinite_check: of the pixels, where
    groups were chosen by them.
    Of a tower whose frames are one batch, kept: int64 (K,), the tokens that run.  bounds: int32 (T + 1,), of theirs in
    each frame.  operations: what it computes with.
    """

    layout: Layout
    fused: bool
    source: Tensor | None = None
    patch_rows: Tensor | None = None
    holds_keys: bool = False
    nonfinite_check: NonFiniteCheck | None = None
    kept: Tensor | None = None
    bounds: Tensor | None = None
    operations: ops.VisionOperations = ops.VisionOperations()

    def attend(self, query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, scale: float) -> Tensor:
        """Compute the attention of the patches that run, (N, H, d), to those of their segment."""
        key_bounds = None
        if self.holds_keys and self.patch_rows is not None:
            key, value, key_bounds = key[self.patch_rows], value[self.patch_rows], self.layout.bounds_like(bounds)
        longest = self.layout.longest_of(bounds)
        problem = ops.SegmentAttentionProblem(query, key, value, bounds, longest, scale, key_bounds)
        return self.operations.segment_attention(problem)

    def expand(self, rows: Tensor) -> Tensor:
        """Give every group a row, that of the group it repeats: (K, ...) to (G, ...)."""
        return rows if self.source is None else rows[self.source]

    def expand_patches(self, rows: Tensor) -> Tensor:
        """Give every patch, in the tower's own order, a row, that of the patch it repeats: (K * unit, D) to (N, D)."""
        return rows if self.patch_rows is None else rows[self.patch_rows]


class TowerCalls(OfOneModel, threading.local):
    """Holds the current call of each thread.

    current: the call of this thread; None outside of one, and in one that is to be stock.
    videos: the grids of the videos that are being encoded in this thread; None where there are none, but images.
    frames: of a tower whose frames are one batch, in place of grids: where in it those of each video are.
    """

    current: TowerCall | None = None
    videos: Grids | None = None
    frames: tuple[Columns, ...] | None = None

    def enter(self, call: TowerCall | None) -> None:
        """Begin a call; None for one that is to be stock."""
        self.current = call

    def leave(self) -> TowerCall | None:
        """End the call, and return it."""
        call, self.current = self.current, None
        return call
