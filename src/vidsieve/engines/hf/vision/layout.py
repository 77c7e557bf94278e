"""What a tower computes from the grids of its videos: once for all calls with the same grids."""

import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import vision_utils

from vidsieve.engines.hf.vision.tower import layout_functions
from vidsieve.stages import in_use, launched, wait_for

REMEMBERED = 8  # layouts; that of 64 frames of 784 patches takes some 3 MB


@dataclass(frozen=True, eq=False)
class TowerLayout:
    """The arguments that a tower takes in place of computing them from its grids, of N patches in M segments.

    grids: (frames, rows, columns) in patches, of each video or image.  unit: patches that become one token.
    arguments: by name.  longest: patches of the longest segment of full attention, and of the longest window.
    """

    grids: tuple[tuple[int, int, int], ...]
    unit: int
    arguments: dict[str, Any]
    longest: tuple[int, int]

    @property
    def patches(self) -> int:
        """N, of all grids."""
        return sum(t * h * w for t, h, w in self.grids)

    def longest_of(self, bounds: Tensor) -> int:
        """Get the length of the longest segment, where `bounds` (M + 1,) are those of full or of windowed attention."""
        full, window = self.longest
        return window if bounds.shape[0] == self._window_bounds else full

    def bounds_like(self, bounds: Tensor) -> Tensor:
        """Get those bounds of this layout that `bounds` (M + 1,), of fewer patches, correspond to."""
        windowed = bounds.shape[0] == self._window_bounds
        return cast(Tensor, self.arguments["cu_window_seqlens" if windowed else "cu_seqlens"])

    @cached_property
    def _window_bounds(self) -> int:
        """How many bounds windows have; 0 without windows."""
        return len(self.arguments.get("cu_window_seqlens", ()))

    @cached_property
    def order(self) -> Tensor | None:
        """The group at each place of the tower's own order: int64 (G,); None where that is the order of the pixels."""
        return self.arguments.get("window_index")

    @cached_property
    def place(self) -> Tensor | None:
        """The place of each group in the tower's own order: int64 (G,); None where that is the order of the pixels."""
        return None if self.order is None else self.order.argsort()

    @cached_property
    def _group_bounds(self) -> dict[str, Tensor]:
        """The bounds of segments, in groups."""
        names = [name for name in ("cu_seqlens", "cu_window_seqlens") if name in self.arguments]
        return {name: self.arguments[name].long() // self.unit for name in names}

    def patches_of(self, groups: Tensor) -> Tensor:
        """List the rows of the patches of `groups` (n,): (n * unit,)."""
        return (groups[:, None] * self.unit + torch.arange(self.unit, device=groups.device)).flatten()

    def of_kept(self, kept: Tensor) -> dict[str, Any]:
        """Make the arguments of a call with the groups `kept` int64 (K,), sorted, alone. Does not wait for the device.

        Bounds are of as many segments as before, some of which may be empty.
        """
        rows, bounds = self.patches_of(kept), self._group_bounds
        made = dict(self.arguments)
        made["position_ids"] = made["position_ids"][rows]
        made["cu_seqlens"] = (torch.searchsorted(kept, bounds["cu_seqlens"]) * self.unit).int()
        for name in ("interp_indices", "interp_weights"):  # (N, taps)
            if name in made:
                made[name] = made[name][rows]
        for name in ("bilinear_indices", "bilinear_weights"):  # (taps, N)
            if name in made:
                made[name] = made[name][:, rows]
        if self.place is not None:
            places, made["window_index"] = self.place[kept].sort()
            made["cu_window_seqlens"] = (torch.searchsorted(places, bounds["cu_window_seqlens"]) * self.unit).int()
        return made

    def patch_rows(self, source: Tensor, arguments: dict[str, Any]) -> Tensor:
        """Find, for each patch in the tower's own order, the row of the running patch that it repeats: int64 (N,).

        source: int64 (G,), for each group the one of the kept groups that it repeats.  arguments: from `of_kept`.
        """
        if self.order is None:
            return self.patches_of(source)
        return self.patches_of(arguments["window_index"].argsort()[source[self.order]])


class Layouts:
    """The layouts of the last grids that `tower` saw, of all threads."""

    def __init__(self, tower: nn.Module) -> None:
        self._tower: Any = tower
        self._functions = layout_functions(tower)
        self._found: OrderedDict[tuple[Any, ...], tuple[TowerLayout, torch.Event | None]] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, grid: Tensor, device: torch.device, merge_sizes: Tensor | None = None) -> TowerLayout:
        """Get the layout of `grid` int64 (videos, 3) on `device`. The host waits for the device if `grid` is there.

        merge_sizes: int64 (videos,), patches that become one token in each direction, where a tower is told.
        """
        grids = tuple((t, h, w) for t, h, w in grid.tolist())
        merges = None if merge_sizes is None else tuple(merge_sizes.tolist())
        key = grids, merges, device
        with self._lock:
            if key not in self._found:
                self._found[key] = self._make(grid.to(device), grids, merge_sizes), launched(device)
            self._found.move_to_end(key)
            found, made = self._found[key]
            while len(self._found) > REMEMBERED:
                self._found.popitem(last=False)
        # Another stream may have made it, and be no further yet. What a graph captures waits for nothing before it.
        if device.type != "cuda" or not torch.cuda.is_current_stream_capturing():
            wait_for(made, device)
            in_use(found.arguments.values())
        return found

    @torch.no_grad()
    def _make(self, grid: Tensor, grids: tuple[tuple[int, int, int], ...], merge_sizes: Tensor | None) -> TowerLayout:
        tower, functions = self._tower, self._functions
        merge = tower.config.spatial_merge_size if merge_sizes is None else merge_sizes
        arguments: dict[str, Any] = {
            "cu_seqlens": vision_utils.get_vision_cu_seqlens(grid),
            "position_ids": vision_utils.get_vision_position_ids(grid, merge),
        }
        longest = window = max(h * w for _, h, w in grids)
        if "get_vision_window_index" in functions:
            window = (tower.window_size // tower.patch_size) ** 2
            order, bounds = vision_utils.get_vision_window_index(
                grid, tower.spatial_merge_size, tower.window_size, tower.patch_size
            )
            arguments |= {"window_index": order.to(grid.device), "cu_window_seqlens": bounds}
        if "get_vision_interpolation_indices_and_weights" in functions:
            taps = vision_utils.get_vision_interpolation_indices_and_weights(
                grid,
                num_grid_per_side=tower.num_grid_per_side,
                mode=tower.interpolation_mode,
                align_corners=tower.interpolation_align_corners,
                spatial_merge_size=merge,
            )
            arguments |= dict(zip(("interp_indices", "interp_weights"), taps, strict=True))
        if "get_vision_bilinear_indices_and_weights" in functions:  # before 5.17
            taps = vision_utils.get_vision_bilinear_indices_and_weights(
                grid, num_grid_per_side=tower.num_grid_per_side, spatial_merge_size=merge
            )
            arguments |= dict(zip(("bilinear_indices", "bilinear_weights"), taps, strict=True))
        if "get_vision_attention_seqlens" in functions:  # from 5.17 on
            arguments["max_seqlen"] = longest
            if "cu_window_seqlens" in arguments:
                arguments["max_window_seqlen"] = window
        sizes = {merge} if isinstance(merge, int) else {*merge.tolist()}
        unit = sizes.pop() ** 2 if len(sizes) == 1 else 1
        return TowerLayout(grids, unit, arguments, (longest, window))
