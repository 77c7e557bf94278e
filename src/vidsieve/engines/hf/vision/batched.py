"""Compute fewer patches in a tower that takes the frames of a video as one batch: SigLIP, CLIP.

The group of a pixel selector is the patch here. After the embeddings the patches that run are one row, and attention
stays within frames; before the features are read, every patch has those of the patch that it repeats.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from vidsieve.engines.hf import contract
from vidsieve.engines.hf.intercept import Interceptions, OfOneModel
from vidsieve.engines.hf.tracked import NonFiniteCheck
from vidsieve.engines.hf.vision.calls import TowerCall, TowerCalls
from vidsieve.engines.hf.vision.packed import SegmentedAttention
from vidsieve.engines.hf.vision.tower import PIXELS, why_stock
from vidsieve.errors import UnsupportedCall, UnsupportedModel
from vidsieve.methods.pixels import PixelSelector, selection_of
from vidsieve.telemetry.trace import Trace
from vidsieve.types.pixels import PixelSelection


@dataclass(frozen=True, eq=False)
class BatchLayout:
    """The tokens of `frames` frames, one after another: of each `tokens`, of which the first `extra` are no patches."""

    frames: int
    tokens: int
    extra: int

    def longest_of(self, bounds: Tensor) -> int:
        """Get the number of tokens in a frame."""
        return self.tokens

    def bounds_like(self, bounds: Tensor) -> Tensor:
        """Get the bounds of all tokens of each frame."""
        return self.bounds(bounds.device)

    def bounds(self, device: torch.device) -> Tensor:
        """Make the bounds of the frames: int32 (T + 1,)."""
        return torch.arange(0, self.frames * self.tokens + 1, self.tokens, device=device, dtype=torch.int32)

    def patches_of(self, groups: Tensor) -> Tensor:
        """List the rows of groups, each of one token."""
        return groups

    def with_extra(self, selections: list[PixelSelection]) -> tuple[Tensor, Tensor]:
        """Combine selections of patches, and run what is no patch in every frame.

        kept: int64 (K,), the tokens that run.  source: int64 (N,), for each token the row of the one it repeats.
        """
        patches = self.tokens - self.extra
        device = selections[0].kept.device
        begin, repeated = 0, []
        for selection in selections:
            repeated.append(selection.kept[selection.source] + begin)
            begin += len(selection.source)
        of_patch = torch.cat(repeated).view(self.frames, patches)  # the patch that each repeats
        token = of_patch + (of_patch // patches + 1) * self.extra
        own = torch.arange(self.frames, device=device)[:, None] * self.tokens
        first = own + torch.arange(self.extra, device=device)
        every = torch.cat([first, token], 1).flatten()
        total = sum(map(len, selections)) + self.frames * self.extra
        runs = every == torch.arange(len(every), device=device)
        row = runs.cumsum(0) - 1
        kept = row.new_zeros(total + 1).scatter_(0, row.where(runs, total), torch.arange(len(row), device=device))
        return kept[:total], row[every]


class _Expanded(tuple[Tensor, ...]):
    """Hidden states (1, K, D), of which the one that is read gets a row for every token: (T, tokens, D)."""

    expand: Callable[[Tensor], Tensor]

    def __iter__(self) -> Iterator[Tensor]:
        return map(self.expand, super().__iter__())

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        return self.expand(found) if isinstance(found, Tensor) else tuple(map(self.expand, found))


class BatchedPixels(OfOneModel):
    """Hooks on `tower` of `model`, so that `pixels` chooses the patches of its videos that are computed."""

    def __init__(self, model: Any, tower: nn.Module, pixels: PixelSelector, trace: Trace, hooks: Interceptions) -> None:
        self._pixels, self._trace, self._calls = pixels, trace, TowerCalls()
        found = [module for name, module in tower.named_modules() if name.split(".")[-1] == "embeddings"]
        if len(found) != 1 or not hasattr(found[0], "patch_size"):
            raise UnsupportedModel(
                f"{pixels!r} cannot act before {type(tower).__name__}, of which the embeddings are not known here"
            )
        self._size = int(found[0].patch_size)
        SegmentedAttention(tower, self._calls, self._bounds, hooks)
        hooks.wrap(model.base_model, "get_video_features", self._video)
        hooks.before(tower, self._before)
        hooks.after(found[0], self._pack)
        hooks.after(tower, self._after)

    def _video(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        given = contract.by_name(inner, args, kwargs)
        pixels = next(given[name] for name in PIXELS if name in given)  # (B, T, 3, H, W)
        videos, frames = pixels.shape[:2]
        self._calls.videos = ((frames, 0, 0),) * videos
        try:
            return inner(**given)
        finally:
            self._calls.videos = None

    def _before(self, tower: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._calls.enter(None)
        videos = self._calls.videos
        if videos is None:
            return
        arguments = contract.by_name(tower, args, kwargs)
        pixels: Tensor = arguments["pixel_values"]
        if why := why_stock(tower, arguments):
            raise UnsupportedCall(f"{self._pixels!r} cannot act before this call of the vision tower, where {why}")
        groups = self._patches(pixels)
        selections, begin = [], 0
        for frames, _, _ in videos:
            selections.append(selection_of(self._pixels, groups[begin : begin + frames]))
            begin += frames
        nonfinite = NonFiniteCheck()
        nonfinite.start(selections)
        positions = next(m for n, m in tower.named_modules() if n.endswith("embeddings.position_embedding"))
        tokens = cast(Any, positions).num_embeddings
        layout = BatchLayout(len(groups), tokens, tokens - groups.shape[1])
        kept, source = layout.with_extra(selections)
        bounds = layout.bounds(kept.device)
        self._trace.pixels = tuple(selections)
        self._trace.tower = f"{sum(map(len, selections))} of {groups.shape[0] * groups.shape[1]} patches computed"
        self._calls.enter(
            TowerCall(
                layout,
                fused=False,
                source=source,
                patch_rows=source,
                holds_keys=self._pixels.holds_keys,
                nonfinite_check=nonfinite,
                kept=kept,
                bounds=torch.searchsorted(kept, bounds.long()).int(),
            )
        )

    def _patches(self, pixels: Tensor) -> Tensor:
        """Cut pixels (T, C, H, W) into the patches that the embeddings see: (T, P, C * size * size)."""
        size = self._size
        rows, columns = pixels.shape[-2] // size, pixels.shape[-1] // size
        seen = pixels[..., : rows * size, : columns * size]
        grid = seen.reshape(*seen.shape[:2], rows, size, columns, size)
        return grid.permute(0, 2, 4, 1, 3, 5).reshape(len(grid), rows * columns, -1)

    def _pack(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        call = self._calls.current
        if output is None or call is None or call.kept is None:
            return output
        return output.flatten(0, 1)[call.kept][None]

    def _bounds(self, kwargs: dict[str, Any]) -> Tensor:
        """Get the bounds of the frames in the current call."""
        return cast(Tensor, cast(TowerCall, self._calls.current).bounds)

    def _after(self, tower: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        call = self._calls.leave()
        if call is None or output is None:
            return
        if call.nonfinite_check is not None:
            call.nonfinite_check.check()  # the device looked before it began with the tower
        layout = cast(BatchLayout, call.layout)

        def expand(states: Tensor) -> Tensor:
            return call.expand(states[0]).view(layout.frames, layout.tokens, -1)

        output.last_hidden_state = expand(output.last_hidden_state)
        if output.get("pooler_output") is not None:
            output.pooler_output = None  # made of the one row that holds the patches of all frames
        if output.get("hidden_states") is not None:
            expanded = _Expanded(output.hidden_states)
            expanded.expand = expand
            output.hidden_states = expanded
