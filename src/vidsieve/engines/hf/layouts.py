"""Cut the placeholders of a batch of prompts into videos and frames. `LAYOUTS` has one function for each layout.

A layout is a function of (adapter, config, placed, arguments) that yields a `VideoSpan` for each video, row after row.
config: of the model.  placed: for each row, int64 (n,), the columns of its placeholders.  arguments: of the body, on
the host, with its `input_ids` where it has them. It raises `UnsupportedCall` if the placeholders do not fit them.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from vidsieve.engines.hf.families import Adapter
from vidsieve.engines.hf.replayed import StoredVideo
from vidsieve.errors import UnsupportedCall

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class VideoSpan:
    """The place of one video in a batch of prompts.

    row: the prompt.  at: int64 (N,), the columns of its tokens.  frames: tokens in each frame.  grid: (rows, columns)
    of the tokens of a frame, None if they form none.  stored: None, or the encoded video that it is, of which the
    prompt has K tokens: `at` is then (K,), the others are of the whole video.
    """

    row: int
    at: Array
    frames: tuple[int, ...]
    grid: tuple[int, int] | None = None
    stored: StoredVideo | None = None


Described = list[tuple[tuple[int, ...], tuple[int, int] | None]]  # of each video, the tokens in each frame, and a grid


def _in_order(placed: list[Array], described: Described, said: str) -> Iterator[VideoSpan]:
    """Give the placeholders, row after row, to the videos that `said` describes."""
    queue = iter(described)
    for row, columns in enumerate(placed):
        taken = 0
        while taken < len(columns):
            lengths, shape = next(queue, ((), None))
            begin, taken = taken, taken + sum(lengths)
            if not lengths or taken > len(columns):
                raise UnsupportedCall(
                    f"row {row} has {len(columns)} video placeholders, which is no whole number of the videos that "
                    f"{said} describes; pass a prompt's videos in one call, unchunked"
                )
            yield VideoSpan(row, columns[begin:taken], lengths, shape)


def _by_grid(adapter: Adapter, config: Any, placed: list[Array], arguments: Mapping[str, Any]) -> Iterator[VideoSpan]:
    described = _described(adapter, config, placed, arguments)
    for span in _in_order(placed, described, f"{adapter.grids} = {arguments[adapter.grids].tolist()}"):
        if adapter.row_end and span.grid is not None:
            high, wide = span.grid[0], span.grid[1] - adapter.row_end
            at = span.at.reshape(-1, span.grid[1])[:, :wide].reshape(-1)
            span = VideoSpan(span.row, at, (high * wide,) * len(span.frames), (high, wide))
        yield span


def _by_frame(adapter: Adapter, config: Any, placed: list[Array], arguments: Mapping[str, Any]) -> Iterator[VideoSpan]:
    last, counts = (arguments.get(name) for name in ("video_position_ids", "num_frames_per_video"))
    if last is None or counts is None:
        raise UnsupportedCall(
            f"found {sum(map(len, placed))} video placeholders but no video_position_ids and num_frames_per_video to "
            "lay them out"
        )
    merge = getattr(config.vision_config, adapter.merge) if adapter.merge else 1
    grids = [(rows, columns) for columns, rows in ((last + 1) // merge).tolist()]
    described: Described = []
    for end, count in zip(np.cumsum(counts).tolist(), counts.tolist(), strict=True):
        of = grids[end - count : end]
        alike = of[0] if len(set(of)) == 1 else None
        described.append((tuple(rows * columns for rows, columns in of), alike))
    yield from _in_order(placed, described, f"video_position_ids of {counts.tolist()} frames")


def _by_part(adapter: Adapter, config: Any, placed: list[Array], arguments: Mapping[str, Any]) -> Iterator[VideoSpan]:
    for row, parts in groupby(_by_grid(adapter, config, placed, arguments), lambda span: span.row):
        spans = list(parts)
        shapes = {span.grid for span in spans}
        at = np.concatenate([span.at for span in spans])
        yield VideoSpan(row, at, tuple(chain(*(s.frames for s in spans))), shapes.pop() if len(shapes) == 1 else None)


def _described(adapter: Adapter, config: Any, placed: list[Array], arguments: Mapping[str, Any]) -> Described:
    """Read the tokens in each frame, and the grid of a frame, of every row of the grids of videos."""
    grids = arguments.get(adapter.grids)
    if grids is None:
        raise UnsupportedCall(
            f"found {sum(map(len, placed))} video placeholders but no {adapter.grids} to lay them out"
        )
    merges = arguments.get("video_merge_sizes")
    alike = getattr(config.vision_config, adapter.merge, 1)
    merges = [alike] * len(grids) if merges is None else merges.tolist()
    survives = arguments.get("video_compression_mask")  # (all tokens,) of VideoLLaMA 3, whose processor drops some
    described: Described = []
    seen = 0
    for (frames, high, wide), merge in zip(grids.tolist(), merges, strict=True):
        rows, columns = (merge, merge) if isinstance(merge, int) else merge
        grid = (high // rows, wide // columns + adapter.row_end)
        size = grid[0] * grid[1]
        if adapter.merged_frames is not None:
            frames //= (
                frames if adapter.merged_frames == "all" else getattr(config.vision_config, adapter.merged_frames)
            )
        if survives is None:
            described.append(((size,) * frames, grid))
            continue
        counts = survives[seen : seen + frames * size].reshape(frames, size).sum(1).tolist()
        seen += frames * size
        complete = all(count == size for count in counts)
        described.append((tuple(count for count in counts if count), grid if complete else None))
    return described


def _by_clip(adapter: Adapter, config: Any, placed: list[Array], arguments: Mapping[str, Any]) -> Iterator[VideoSpan]:
    pixels = arguments.get("pixel_values_videos")  # (videos, frames, 3, H, W)
    if pixels is None:
        raise UnsupportedCall(f"found {sum(map(len, placed))} video placeholders but no pixel_values_videos")
    videos, frames = pixels.shape[:2]
    length, odd = divmod(sum(map(len, placed)), videos)
    size, uneven = divmod(length - adapter.trailing, frames)
    if odd or uneven or size < 1:
        raise UnsupportedCall(
            f"expected {videos} videos of {frames} frames, {adapter.trailing} tokens after each, "
            f"got {sum(map(len, placed))} video placeholders"
        )
    for row, columns in enumerate(placed):
        if len(columns) % length:
            raise UnsupportedCall(f"row {row} has {len(columns)} video placeholders, no multiple of {length} a video")
        for at in columns.reshape(-1, length):
            yield VideoSpan(row, at[: size * frames], (size,) * frames, _square(adapter, size))


def _by_run(adapter: Adapter, config: Any, placed: list[Array], arguments: Mapping[str, Any]) -> Iterator[VideoSpan]:
    size = getattr(config, adapter.frame_tokens) if adapter.frame_tokens else None
    for row, columns in enumerate(placed):
        runs = _runs(columns)
        gaps = [math.inf, *(int(b[0] - a[-1]) - 1 for a, b in pairwise(runs)), math.inf]
        frames = [
            run
            for run, around in zip(runs, pairwise(gaps), strict=True)
            if min(around) >= adapter.gap and size in (None, len(run))
        ]
        if len(frames) > 1:  # a single one is an image
            lengths = tuple(len(run) for run in frames)
            grid = _square(adapter, lengths[0]) if len(set(lengths)) == 1 else None
            yield VideoSpan(row, np.concatenate(frames), lengths, grid)


def _by_slice(adapter: Adapter, config: Any, placed: list[Array], arguments: Mapping[str, Any]) -> Iterator[VideoSpan]:
    """Take each run for a slice of a frame, whose first one shows all of it. Before it stands what begins a frame.

    Frames of a video follow one another by the two marks between them.
    """
    ids, sizes = arguments.get("input_ids"), arguments.get("target_sizes_videos")  # (B, L), (slices, 2) in patches
    if ids is None:
        raise UnsupportedCall("expected input_ids, in which a mark begins each frame, got inputs_embeds alone")
    if sizes is None:
        raise UnsupportedCall(
            f"found {sum(map(len, placed))} video placeholders but no target_sizes_videos to lay them out"
        )
    pixels = arguments.get("pixel_values_videos")  # before 5.18, copied for each row of a prompt, unlike the sizes
    described = iter(sizes.tolist() * (1 if pixels is None else len(pixels)))
    for row, columns in enumerate(placed):
        videos: list[list[list[tuple[Array, tuple[int, int]]]]] = []  # of each, of each frame, slices and their grids
        last = begins = -1
        for run in _runs(columns):
            grid = _grid_of_slice(row, len(run), next(described, (0, 0)), len(sizes))
            before = int(ids[row, run[0] - 1])
            begins = before if not videos else begins
            if before != begins:
                videos[-1][-1].append((run, grid))
            elif videos and run[0] - last == 3:
                videos[-1].append([(run, grid)])
            else:
                videos.append([[(run, grid)]])
            last = int(run[-1])
        for video in videos:
            lengths = tuple(sum(len(run) for run, _ in frame) for frame in video)
            grids = {grid for frame in video for _, grid in frame}
            alike = grids.pop() if len(grids) == 1 and all(len(frame) == 1 for frame in video) else None
            yield VideoSpan(row, np.concatenate([run for frame in video for run, _ in frame]), lengths, alike)


def _grid_of_slice(row: int, tokens: int, patches: Sequence[int], slices: int) -> tuple[int, int]:
    """Divide the (rows, columns) of `patches` of a slice by the side of the square of them that is a token."""
    high, wide = patches
    side = math.isqrt(high * wide // tokens)
    if not side or high % side or wide % side or high * wide != tokens * side**2:
        raise UnsupportedCall(
            f"row {row} has {tokens} video placeholders in a row, which are not those of a slice of {high} by {wide} "
            f"patches; target_sizes_videos describes {slices}; pass a prompt's videos in one call, unchunked"
        )
    return high // side, wide // side


def _runs(columns: Array) -> list[Array]:
    """Cut the columns of a row where others stand between them."""
    return np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1) if len(columns) else []


def of_stored(videos: Sequence[StoredVideo], placed: list[Array]) -> Iterator[VideoSpan]:
    """Cut placeholders into encoded videos: a row of the batch has those of all `videos`, or none."""
    for row, columns in enumerate(placed):
        begin = 0
        for video in videos if len(columns) else ():
            at = columns[begin : begin + len(video.kept)]
            begin += video.placeholders
            yield VideoSpan(row, at, tuple(video.tokens.frames), video.tokens.grid, video)


def _square(adapter: Adapter, size: int) -> tuple[int, int] | None:
    side = math.isqrt(size)
    return (side, side) if adapter.square and side * side == size else None


Layout = Callable[[Adapter, Any, list[Array], Mapping[str, Any]], Iterator[VideoSpan]]
LAYOUTS: dict[str, Layout] = {
    "grid": _by_grid,
    "parts": _by_part,
    "frames": _by_frame,
    "clips": _by_clip,
    "runs": _by_run,
    "slices": _by_slice,
}
