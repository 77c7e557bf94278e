"""Write the processor's prompt of a long video without spelling out each placeholder.

A processor writes a placeholder for each visual token as text, and reads it again: 5 s for the 921 600 of an hour. Of
frames that are one token in size it writes one each, between the same words and time stamps, which are then repeated.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vidsieve.engines.hf import adapter_for
from vidsieve.engines.hf.loading import prepare_turns
from vidsieve.engines.hf.processing import resizing_to
from vidsieve.types.frames import Frames

LONG = 4_096  # visual tokens; shorter prompts are written as they are

Grids = Sequence[tuple[int, int] | None]


def write(
    model: Any, processor: Any, videos: Sequence[Frames], grids: Grids, tokens: int, turns: Sequence[str]
) -> dict[str, Any]:
    """Make what `prepare_turns` makes of videos on meta, but for their pixels.

    grids: rows and columns of the tokens of a frame, of each video.  tokens: how many they have together.
    A prompt is repeated only where the processor writes that of the videos' ends so; else it is spelled out.
    """
    known = [grid for grid in grids if grid is not None]
    sized = adapter_for(model).layout == "grid" and hasattr(processor.video_processor, "merge_size")
    repeats = tokens > LONG and sized and len(known) == len(videos)
    if repeats and all(_is_repeated(model, processor, *pair, turns) for pair in zip(videos, known, strict=True)):
        return _repeated(model, processor, videos, known, turns)
    return without_pixels(prepare_turns(processor, videos, turns))


def without_pixels(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What is not on meta."""
    return {name: x for name, x in inputs.items() if not (isinstance(x, Tensor) and x.is_meta)}


def ends(videos: Sequence[Frames]) -> list[Frames]:
    """The last frames of videos, after whose last token a processor may write their time; in pairs as in the whole."""
    return [_end(frames) for frames in videos]


def _end(frames: Frames) -> Frames:
    part = slice(-4 + len(frames) % 2, None)
    return replace(frames, pixels=frames.pixels[part], index=frames.index[part], seconds=frames.seconds[part])


def _is_repeated(model: Any, processor: Any, video: Frames, grid: tuple[int, int], turns: Sequence[str]) -> bool:
    """Whether the processor writes the end of a video as `_repeated` does."""
    short, side = ends([video]), _side(processor)
    true = without_pixels(prepare_turns(resizing_to(processor, grid[0] * side, grid[1] * side), short, turns))
    made = _repeated(model, processor, short, [grid], turns)
    return made.keys() == true.keys() and all(
        torch.equal(x, made[name]) if isinstance(x, Tensor) else x == made[name] for name, x in true.items()
    )


def _side(processor: Any) -> int:
    """Pixels of a token, in each direction."""
    side: int = processor.video_processor.merge_size * processor.video_processor.patch_size
    return side


def _repeated(
    model: Any, processor: Any, videos: Sequence[Frames], grids: Sequence[tuple[int, int]], turns: Sequence[str]
) -> dict[str, Any]:
    """Write a placeholder a frame, and repeat each as often as the frame has tokens."""
    merge, side = processor.video_processor.merge_size, _side(processor)
    made = without_pixels(prepare_turns(resizing_to(processor, side, side), videos, turns))
    thw = made["video_grid_thw"]  # (V, 3)
    sizes = torch.tensor([rows * columns for rows, columns in grids])
    ids = made["input_ids"]  # (1, L)
    visual = ids[0] == getattr(model.config, adapter_for(model).token)
    per_frame = sizes.repeat_interleave(thw[:, 0])
    if int(visual.sum()) != len(per_frame):
        return {}
    times = torch.ones_like(ids[0])
    times[visual] = per_frame
    for name, x in made.items():
        if isinstance(x, Tensor) and x.shape == ids.shape:
            made[name] = x.repeat_interleave(times, 1)
    made["video_grid_thw"] = torch.cat([thw[:, :1], merge * torch.tensor(grids)], 1)
    return made
