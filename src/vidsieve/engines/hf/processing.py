"""Make processors faster, ask them about frames without pixels, and let them resize a chunk as the whole video.

`patching_first` cuts frames into patches while a pixel is still one byte, and normalises them last: the same values.
Moving pixels is most of the work of Qwen's processors; bytes take a quarter of the time and memory.
"""

import copy
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from vidsieve.errors import UnsupportedCall

PATCHING = ("Qwen2VLVideoProcessor", "Qwen3VLVideoProcessor")  # of transformers: they normalise, then cut
# They take pixels for a numpy array, to read its height and width.
MEASURING = ("LlavaNextVideoProcessor", "LlavaOnevisionProcessor", "PerceptionLMProcessor", "VideoLlavaProcessor")
# They make what a frame, or a temporal patch, becomes of that alone, once its size is settled.
_BY_FRAME = (
    *("Qwen2VL", "Qwen3VL", "VideoLlama3", "Glm4v", "Glm46V", "Glmga", "Glm5Next", "Cosmos3Edge", "CohereCompass"),
    *("MuseGlimmer", "LlavaOnevision", "LlavaNextVideo", "VideoLlava", "InternVL", "PerceptionLM"),
)
_STOCK = "vidsieve_stock"  # on a video processor that resizes to one size: the processor that this was made of
LINE = 64  # bytes
ROWS = 2048  # patches that are normalised at once, while they are in the processor's cache


def placed(processor: Any, pixels: Tensor, device: torch.device | str | None) -> Tensor:
    """Move pixels to where they are processed for a model on `device`: there, if that is CUDA, else to the CPU."""
    where = torch.device("cpu" if device is None else device)
    theirs = _kind(processor) is not None  # they compute on tensors alone; others may not
    return pixels if pixels.is_meta else pixels.to(where if where.type == "cuda" and theirs else "cpu")


def by_frame(processor: Any) -> bool:
    """Whether a video may be processed some frames at a time, with the tensors of the whole, bit for bit."""
    return _kind(processor) in [f"{name}VideoProcessor" for name in _BY_FRAME]


def _kind(processor: Any) -> str | None:
    """Name the class of a processor's part for videos; None for one that is not of transformers."""
    kind = type(getattr(processor, "video_processor", None))
    return kind.__name__ if kind.__module__.startswith("transformers.models.") else None


def patching_first(processor: Any) -> Any:
    """Copy a processor to one that makes the same tensors, bit for bit, sooner; return others as they are.

    The original is left alone: other threads may be using it. The copy is for one thread.
    """
    video: Any = getattr(processor, "video_processor", None)
    apart = callable(getattr(video, "patchify", None)) and hasattr(video, "rescale_and_normalize")
    if not (apart and _kind(processor) in PATCHING):
        return processor  # another family, a subclass, or a release that has them in one piece
    stock = video._preprocess
    processor, video = copy.copy(processor), copy.copy(video)
    processor.video_processor = video
    normalise, process = video.rescale_and_normalize, video._preprocess
    waiting: list[tuple[Any, ...]] = []  # the settings of a normalisation that is still to be done

    def defer(pixels: Tensor, *settings: Any) -> Tensor:
        if pixels.dtype != torch.uint8:
            return normalise(pixels, *settings)  # type: ignore[no-any-return]
        waiting.append(settings)
        return pixels

    def processed(videos: list[Tensor], **settings: Any) -> Any:
        waiting.clear()
        if len({one.dtype for one in videos}) > 1:
            return stock(videos=videos, **settings)
        made = process(videos=videos, **settings)
        if waiting:
            patches = made["pixel_values_videos"]  # (N, C * n): the n values of each colour lie together
            colours = videos[0].shape[-3]
            rows = patches.view(-1, colours, patches.shape[1] // colours, 1)
            done = empty(rows.shape, normalise(rows[:1], *waiting[0]).dtype, rows.device)
            for some, place in zip(torch.split(rows, ROWS), torch.split(done, ROWS), strict=True):
                place.copy_(normalise(some, *waiting[0]))
            made["pixel_values_videos"] = done.view(patches.shape)
        return made

    video.rescale_and_normalize, video._preprocess = defer, processed
    return processor


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Make an empty tensor.

    On a CPU it is numpy's memory, for which Linux is asked for large pages: to be given a hundred megabytes by pages of
    4 kB takes longer than to fill them.
    """
    if device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    size = prod(shape) * dtype.itemsize
    room = np.empty(size + LINE, np.uint8)
    begin = -room.ctypes.data % LINE  # as torch's own: a matrix product may add up otherwise in memory that is not
    return torch.from_numpy(room[begin : begin + size]).view(dtype).view(shape)


def with_times(processor: Any) -> Any:
    """Copy a processor to one whose part for videos returns the times of frames, if it writes stamps; return others.

    Some say so themselves. Others are asked for it by `apply_chat_template` alone.
    """
    video: Any = getattr(processor, "video_processor", None)
    if not hasattr(processor, "replace_video_token") or getattr(video, "return_metadata", True):
        return processor
    processor, video = copy.copy(processor), copy.copy(video)
    processor.video_processor, video.return_metadata = video, True
    return processor


def kinds_of_tokens(processor: Any) -> dict[str, bool]:
    """Get the argument that makes a processor tell which tokens are video, where its model asks and it would not."""
    name = "return_mm_token_type_ids"
    asked = "mm_token_type_ids" in getattr(processor, "model_input_names", ()) and not getattr(processor, name, False)
    return {name: True} if asked else {}


def own_size(processor: Any) -> dict[str, Any]:
    """Get `size=` as the class of a processor sets it, whatever its part for videos has; nothing if it does not."""
    older = getattr(getattr(processor, "valid_processor_kwargs", None), "_defaults", {})
    settings = getattr(processor, "videos_kwargs", None) or older.get("videos_kwargs", {})
    return {"size": settings["size"]} if "size" in settings else {}


def without_pixels(processor: Any) -> Any:
    """Copy a processor to one that takes frames on "meta": its prompt, masks and grids are those of real frames.

    The pixels that come out are on "meta", or zeros that take no memory. Raises `UnsupportedCall` for VideoLLaMA 3
    while its processor drops tokens by what the pixels show.
    """
    video: Any = processor.video_processor
    compressing = "video_compression_mask" in getattr(video, "model_input_names", ())
    if compressing and video.use_token_compression:
        raise UnsupportedCall(
            f"{type(processor).__name__} leaves out tokens that look as in the frame before, so it cannot say what it "
            "makes of a video, or of a chunk of one, before every frame is decoded; let vidsieve alone choose the "
            "tokens: processor.video_processor.use_token_compression = False"
        )
    if not (compressing or type(processor).__name__ in MEASURING):
        return processor
    processor, video = copy.copy(processor), copy.copy(video)
    processor.video_processor = video
    process = video._preprocess

    def stand_in(*args: Any, **kwargs: Any) -> Any:
        made = process(*args, **kwargs)
        if compressing:
            made["video_compression_mask"] = torch.ones(made["video_compression_mask"].shape, dtype=torch.bool)
        else:
            pixels = made["pixel_values_videos"]
            made["pixel_values_videos"] = torch.zeros((), dtype=pixels.dtype).expand(pixels.shape)
        return made

    video._preprocess = stand_in
    return processor


class Padding(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """See which pictures are padded while this is entered.

    content: by the (height, width) of one that is padded, those of what it shows.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.content: dict[tuple[int, int], tuple[int, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.constant_pad_nd.default:
            (*_, inner_high, inner_wide), (*_, high, wide) = args[0].shape, made.shape
            self.content[high, wide] = (inner_high, inner_wide)
        return made


def resizing_to(processor: Any, height: int, width: int, content: tuple[int, int] | None = None) -> Any:
    """Copy a processor to one that resizes whatever video it is given to this size, by its own interpolation.

    content: the height and width to which pictures are resized, and then padded on the right and below, if not `height`
    and `width`. One that was made so before gets this size in place of that one.
    """
    from transformers.image_utils import SizeDict
    from transformers.video_processing_utils import BaseVideoProcessor

    stock = getattr(processor.video_processor, _STOCK, processor)
    processor = patching_first(stock)  # here: a copy of what resizes would not be what computes
    processor, video = copy.copy(processor), copy.copy(processor.video_processor)
    processor.video_processor = video

    high, wide = content or (height, width)
    process, size = video._preprocess, SizeDict(height=high, width=wide)

    def resized(videos: list[Tensor], **settings: Any) -> Any:
        made = [BaseVideoProcessor.resize(video, one, size=size, resample=settings["resample"]) for one in videos]
        if (high, wide) != (height, width):
            made = [functional.pad(one, (0, width - wide, 0, height - high)) for one in made]
        return process(videos=made, **settings | {"do_resize": False})

    video._preprocess = resized
    setattr(video, _STOCK, stock)
    return processor
