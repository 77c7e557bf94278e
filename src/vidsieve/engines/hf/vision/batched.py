"""Compute fewer patches in a tower that takes the frames of a video as one batch: SigLIP, CLIP, InternViT.

The group of a pixel selector is the patch, or the square of patches that becomes one token. After the embeddings the
patches that run are one row, and attention stays within frames; before the features are read, every patch has those of
the patch that it repeats.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from vidsieve.engines.hf import contract
from vidsieve.engines.hf.columns import Columns
from vidsieve.engines.hf.families import adapter_for
from vidsieve.engines.hf.intercept import Interceptions, OfOneModel
from vidsieve.engines.hf.tracked import NonFiniteCheck
from vidsieve.engines.hf.vision.as_images import FramesAsImages
from vidsieve.engines.hf.vision.calls import TowerCall, TowerCalls
from vidsieve.engines.hf.vision.packed import SegmentedAttention
from vidsieve.engines.hf.vision.tower import PIXELS, why_stock
from vidsieve.errors import UnsupportedCall, UnsupportedModel
from vidsieve.methods.pixels import PixelSelector, selection_of
from vidsieve.telemetry.trace import Trace
from vidsieve.types.pixels import PixelSelection


@dataclass(frozen=True, eq=False)
class BatchLayout:
    """The tokens of `frames` frames, one after another: of each `extra` that are no patches, then `rows` of patches.

    rows, columns: of the patches of a frame.  side: of the square of them that is a group.
    """

    frames: int
    extra: int
    rows: int
    columns: int
    side: int = 1

    @property
    def tokens(self) -> int:
        """Tokens of a frame."""
        return self.extra + self.rows * self.columns

    @property
    def groups(self) -> int:
        """Groups of a frame."""
        return self.rows * self.columns // self.side**2

    def longest_of(self, bounds: Tensor) -> int:
        """Get the number of tokens in a frame."""
        return self.tokens

    def bounds_like(self, bounds: Tensor) -> Tensor:
        """Get the bounds of all tokens of each frame."""
        return self.bounds(bounds.device)

    def bounds(self, device: torch.device) -> Tensor:
        """Make the bounds of the frames: int32 (T + 1,)."""
        return torch.arange(0, self.frames * self.tokens + 1, self.tokens, device=device, dtype=torch.int32)

    def _patches_of(self, groups: Tensor) -> Tensor:
        """List the patches of `groups` (n,) within their frame: (n, side * side)."""
        side = self.side
        patch = torch.arange(self.rows * self.columns, device=groups.device)
        squares = patch.view(self.rows // side, side, self.columns // side, side).transpose(1, 2)
        return squares.reshape(self.groups, -1)[groups]

    def with_extra(self, videos: Sequence[Columns], selections: list[PixelSelection]) -> tuple[Tensor, Tensor]:
        """Combine selections of groups, and run what is no patch, and every frame that is of no video.

        videos: the frames of each.  Returned are kept: int64 (K,), the tokens that run.  source: int64 (N,), for each
        token the row of the one it repeats.
        """
        device, groups, side = selections[0].kept.device, self.groups, self.side
        repeated = torch.arange(self.frames * groups, device=device)  # the group that each repeats
        for frames, selection in zip(videos, selections, strict=True):
            own = (frames.at[:, None] * groups + torch.arange(groups, device=device)).flatten()
            repeated[own] = own[selection.kept[selection.source]]
        token = (repeated // groups * self.tokens + self.extra)[:, None] + self._patches_of(repeated % groups)
        squares = token.view(self.frames, self.rows // side, self.columns // side, side, side)
        begin = torch.arange(self.frames, device=device)[:, None] * self.tokens
        first = begin + torch.arange(self.extra, device=device)
        every = torch.cat([first, squares.transpose(2, 3).reshape(self.frames, -1)], 1).flatten()
        computed = sum(map(len, selections)) + (self.frames - sum(map(len, videos))) * groups
        total = computed * side**2 + self.frames * self.extra
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
    """Hooks on `tower` of `model`, so that `pixels` chooses the groups of patches of its videos that are computed."""

    def __init__(self, model: Any, tower: nn.Module, pixels: PixelSelector, trace: Trace, hooks: Interceptions) -> None:
        self._pixels, self._trace, self._calls = pixels, trace, TowerCalls()
        found = [module for name, module in tower.named_modules() if name.split(".")[-1] == "embeddings"]
        if len(found) != 1 or not hasattr(found[0], "patch_size"):
            raise UnsupportedModel(
                f"{pixels!r} cannot act before {type(tower).__name__}, of which the embeddings are not known here"
            )
        size = cast(Any, found[0].patch_size)
        self._size: tuple[int, int] = (size, size) if isinstance(size, int) else tuple(size)
        adapter = adapter_for(model)
        # Where it is not told how many squares a frame has, each a token, patches are what is pooled, or are tokens.
        self._frame_tokens = getattr(model.config, adapter.frame_tokens) if adapter.frame_tokens else None
        SegmentedAttention(tower, self._calls, self._bounds, hooks)
        if self._frame_tokens is None:
            hooks.wrap(model.base_model, "get_video_features", self._video)
        else:
            FramesAsImages(model, self._frame_tokens, pixels, self._calls, hooks)
        hooks.before(tower, self._before)
        hooks.after(found[0], self._pack)
        hooks.after(tower, self._after)

    def _video(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        given = contract.by_name(inner, args, kwargs)
        pixels = next(given[name] for name in PIXELS if name in given)  # (B, T, 3, H, W)
        videos, frames = pixels.shape[:2]
        self._calls.frames = tuple(Columns(i * frames, frames, pixels.device) for i in range(videos))
        try:
            return inner(**given)
        finally:
            self._calls.frames = None

    def _before(self, tower: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._calls.enter(None)
        if self._calls.frames is not None and (why := why_stock(tower, contract.by_name(tower, args, kwargs))):
            raise UnsupportedCall(f"{self._pixels!r} cannot act before this call of the vision tower, where {why}")

    def _pack(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Choose groups of the pixels that `module` embeds, and go on with their patches: (1, K, D) of (T, tokens, D).

        How many tokens are no patches is seen here.
        """
        videos = self._calls.frames
        if output is None or videos is None:
            return output
        pixels: Tensor = contract.by_name(module, args, kwargs)["pixel_values"]
        rows, columns = (length // size for length, size in zip(pixels.shape[-2:], self._size, strict=True))
        layout = BatchLayout(len(pixels), output.shape[1] - rows * columns, rows, columns, self._side(rows, columns))
        groups = self._groups(pixels, layout)
        selections = [selection_of(self._pixels, frames.take(groups)) for frames in videos]
        nonfinite = NonFiniteCheck()
        nonfinite.start(selections)
        kept, source = layout.with_extra(videos, selections)
        self._trace.pixels = tuple(selections)
        total = sum(len(selection.source) for selection in selections)
        what = "patches" if layout.side == 1 else "groups of pixels"
        self._trace.tower = f"{sum(map(len, selections))} of {total} {what} computed"
        self._calls.enter(
            TowerCall(
                layout,
                fused=False,
                source=source,
                patch_rows=source,
                holds_keys=self._pixels.holds_keys,
                nonfinite_check=nonfinite,
                kept=kept,
                bounds=torch.searchsorted(kept, layout.bounds(kept.device).long()).int(),
            )
        )
        return output.flatten(0, 1)[kept][None]

    def _side(self, rows: int, columns: int) -> int:
        """Find the side of the square of patches that is a group."""
        if self._frame_tokens is None:
            return 1
        side = math.isqrt(rows * columns // self._frame_tokens)
        if side < 1 or rows % side or columns % side or rows * columns != self._frame_tokens * side**2:
            raise UnsupportedCall(
                f"{self._pixels!r} cannot act before this call of the vision tower: expected {self._frame_tokens} "
                f"squares of patches in a frame, each a token, got {rows} by {columns} patches"
            )
        return side

    def _groups(self, pixels: Tensor, layout: BatchLayout) -> Tensor:
        """Cut pixels (T, C, H, W) into the groups of patches that the embeddings see: (T, P, C * height * width)."""
        height, width = (size * layout.side for size in self._size)
        rows, columns = layout.rows // layout.side, layout.columns // layout.side
        seen = pixels[..., : rows * height, : columns * width]
        grid = seen.reshape(*seen.shape[:2], rows, height, columns, width)
        return grid.permute(0, 2, 4, 1, 3, 5).reshape(len(grid), rows * columns, -1)

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

        def expand(states: Tensor) -> Tensor:  # None in the place of hidden states that nobody asked for
            return states if states is None else call.expand(states[0]).view(layout.frames, layout.tokens, -1)

        output.last_hidden_state = expand(output.last_hidden_state)
        if output.get("pooler_output") is not None:
            output.pooler_output = None  # made of the one row that holds the patches of all frames
        if output.get("hidden_states") is not None:
            expanded = _Expanded(output.hidden_states)
            expanded.expand = expand
            output.hidden_states = expanded
