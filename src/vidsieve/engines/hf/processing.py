"""Let a processor cut frames into patches while a pixel is still one byte, and normalise the patches: the same values.

Moving pixels to their patches is most of the work of Qwen's processors, and takes a quarter of the time in bytes.
"""

import copy
from typing import Any

import torch
from torch import Tensor

PATCHING = ("Qwen2VLVideoProcessor", "Qwen3VLVideoProcessor")  # of transformers: they normalise, then cut
ROWS = 2048  # patches that are normalised at once, while they are in the processor's cache


def placed(processor: Any, pixels: Tensor, device: torch.device | str | None) -> Tensor:
    """Move pixels to where they are processed for a model on `device`: there, if that is CUDA, else to the CPU."""
    where = torch.device("cpu" if device is None else device)
    kind = type(getattr(processor, "video_processor", None))
    theirs = kind.__module__.startswith("transformers.models.")  # they compute on tensors alone; others may not
    return pixels if pixels.is_meta else pixels.to(where if where.type == "cuda" and theirs else "cpu")


def patching_first(processor: Any) -> Any:
    """Copy a processor to one that makes the same tensors, bit for bit, sooner; return others as they are.

    The original is left alone: other threads may be using it.
    """
    video: Any = getattr(processor, "video_processor", None)
    kind = type(video)
    ours = kind.__name__ in PATCHING and kind.__module__.startswith("transformers.models.")
    if not (ours and callable(getattr(video, "patchify", None)) and hasattr(video, "rescale_and_normalize")):
        return processor  # another family, a subclass, or a release that has them in one piece
    processor, video = copy.copy(processor), copy.copy(video)
    processor.video_processor = video
    normalise, patchify = video.rescale_and_normalize, video.patchify
    waiting: list[tuple[Any, ...]] = []  # the settings of a normalisation that is still to be done

    def defer(pixels: Tensor, *settings: Any) -> Tensor:
        if pixels.dtype != torch.uint8:
            return normalise(pixels, *settings)  # type: ignore[no-any-return]
        waiting.append(settings)
        return pixels

    def cut(pixels: Tensor, *args: Any, **sizes: Any) -> tuple[Any, ...]:
        patches, *grid = patchify(pixels, *args, **sizes)  # (B, N, C * n): the n values of each colour lie together
        if not waiting:
            return patches, *grid
        settings = waiting.pop()
        rows = patches.view(-1, pixels.shape[2], patches.shape[2] // pixels.shape[2], 1)
        done = rows.new_empty(rows.shape, dtype=normalise(rows[:1], *settings).dtype)
        for some, place in zip(rows.split(ROWS), done.split(ROWS), strict=True):
            place.copy_(normalise(some, *settings))
        return done.view(patches.shape), *grid

    video.rescale_and_normalize, video.patchify = defer, cut
    return processor
