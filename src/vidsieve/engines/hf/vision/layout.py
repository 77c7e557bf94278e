"""What a tower computes from the grids of its videos: once for all calls with the same grids, without a host sync."""

import threading
import weakref
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import vision_utils

from vidsieve.engines.hf.vision.tower import layout_functions

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
        windows = self.arguments.get("cu_window_seqlens")
        return self.longest[windows is not None and len(bounds) == len(windows)]


class Layouts:
    """The layouts of the last grids that `tower` saw, of all threads."""

    def __init__(self, tower: nn.Module) -> None:
        self._tower: Any = tower
        self._functions = layout_functions(tower)
        self._found: OrderedDict[tuple[Any, ...], TowerLayout] = OrderedDict()
        self._last: tuple[weakref.ref[Tensor], int, TowerLayout] | None = None
        self._lock = threading.Lock()

    def of(self, grid: Tensor, merge_sizes: Tensor | None = None) -> TowerLayout:
        """Get the layout of `grid` int64 (videos, 3); the first time it is made, and the host waits for the device.

        merge_sizes: int64 (videos,), patches that become one token in each direction, where a tower is told.
        """
        last = self._last
        if last is not None and last[0]() is grid and last[1] == grid._version and merge_sizes is None:
            return last[2]  # without a look at its values, for which the host would wait
        grids = tuple((t, h, w) for t, h, w in grid.tolist())
        merges = None if merge_sizes is None else tuple(merge_sizes.tolist())
        key = grids, merges, grid.device
        with self._lock:
            found = self._found.get(key) or self._make(grid, grids, merge_sizes)
            self._found[key] = found
            self._found.move_to_end(key)
            while len(self._found) > REMEMBERED:
                self._found.popitem(last=False)
            if merge_sizes is None:
                self._last = weakref.ref(grid), grid._version, found
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
        unit = merge**2 if isinstance(merge, int) else 1
        return TowerLayout(grids, unit, arguments, (longest, window))
