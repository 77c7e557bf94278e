"""Load a checkpoint, and prepare its inputs from frames and a question."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch

from vidsieve.checks import check_question, describe, require
from vidsieve.engines.hf import hub
from vidsieve.engines.hf.processing import (
    kinds_of_tokens,
    own_size,
    patching_first,
    placed,
    with_times,
    without_pixels,
)
from vidsieve.engines.torchvision import make_importable
from vidsieve.errors import UnsupportedModel, VidsieveError, WrongArgument
from vidsieve.ops.dispatch import start_hashing
from vidsieve.types.frames import Frames

MICRO = 10**6  # a second in microseconds


def load(name: str, device: str | None = None, dtype: str | None = None, bar: bool = True) -> tuple[Any, Any]:
    """Load processor and model of a checkpoint folder or Hub id. bar: whether to show the progress bar of transformers.

    Raises `UnsupportedModel` before any weight is read, `VidsieveError` if nothing can be loaded by that name or the
    device cannot be used.
    """
    require("transformers", "hf")
    make_importable()
    from transformers import AutoModelForImageTextToText, AutoProcessor

    where_to = usable_device(device)
    if where_to.type == "cuda":
        start_hashing()
    dtype = dtype or ("float32" if where_to.type == "cpu" else "auto")
    where = check(name)
    with loading(name), nullcontext() if bar else without_bars():
        processor = AutoProcessor.from_pretrained(name, **where)
        model = AutoModelForImageTextToText.from_pretrained(name, dtype=dtype, **where)
    if getattr(processor, "video_processor", None) is None:
        raise UnsupportedModel(f"{name} has no video processor; expected the checkpoint of a video language model")
    return processor, model.to(where_to).eval()


def usable_device(name: str | None = None) -> torch.device:
    """Get the device of this name; CUDA, or else the CPU, if None. Raises `VidsieveError` if it cannot be used here."""
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (AssertionError, RuntimeError) as error:  # torch built without CUDA raises the former
        raise VidsieveError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error


def check(name: str) -> dict[str, Any]:
    """Raise as `load` does for a model that cannot be found or is not supported. Reads its configuration only.

    Returns the arguments of `from_pretrained` besides the name.
    """
    require("transformers", "hf")
    where = hub.find(os.fspath(name))
    from transformers import AutoConfig

    from vidsieve.engines.hf import adapter_for

    with loading(name):
        described: Any = _Described(AutoConfig.from_pretrained(name, **where))
    adapter_for(described)
    return where


@contextmanager
def loading(name: str) -> Iterator[None]:
    """Raise what transformers raises for a checkpoint as a `VidsieveError` of one line."""
    try:
        yield
    except VidsieveError:
        raise
    except (OSError, ValueError) as error:
        raise VidsieveError(f"model {name!r} cannot be loaded: {' '.join(str(error).split())}") from error


@dataclass(frozen=True)
class _Described:
    """A model with nothing but its configuration."""

    config: Any


def prepare(processor: Any, frames: Frames, question: str, device: torch.device | str | None = None) -> Any:
    """Make the inputs of `model.generate`: the processor's tensors for one video and one question, frames as sampled.

    Time stamps are those of the frames. The last frame is repeated for a processor whose patches span several frames
    and for a model that would take a single frame for an image. Frames on "meta" (`plan_video`) give the prompt, masks
    and grids of the video without a pixel of it: tensors of pixels are on "meta". Raises `UnsupportedCall` if a
    processor cannot tell them without pixels.
    device: of the model. On CUDA the frames are moved there as bytes, and scaled, normalised and cut into patches there
    by the processors of transformers, which rounds otherwise. Else they are processed on the CPU.
    """
    return prepare_turns(processor, (frames,), (question,), device)


def prepare_turns(
    processor: Any, videos: Sequence[Frames], turns: Sequence[str], device: torch.device | str | None = None
) -> Any:
    """Do what `prepare` does for several videos, all before the first question, and a conversation about them.

    turns: question, answer, question, ..., question.
    """
    for frames in videos:
        if not isinstance(frames, Frames):
            raise WrongArgument(f'expected Frames, got {describe(frames)}; read them first: read_video("clip.mp4")')
    for question in turns[::2]:
        check_question(question)
    messages = [
        {"role": ("user", "assistant")[turn % 2], "content": [{"type": "text", "text": text}]}
        for turn, text in enumerate(turns)
    ]
    messages[0]["content"] = [*({"type": "video"} for _ in videos), {"type": "text", "text": turns[0]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    begin = processor.tokenizer.bos_token
    filled = [long_enough(processor, frames) for frames in videos]
    described = all(frames.pixels.is_meta for frames in filled)
    shown: list[Any] = [placed(processor, frames.pixels, device).permute(0, 3, 1, 2) for frames in filled]
    if hasattr(processor, "image_seq_len"):  # SmolVLM, which in older releases counts videos prompt by prompt
        shown = [shown]
    inputs = with_times((without_pixels if described else patching_first)(processor))(
        text=[text],
        videos=shown,
        video_metadata=[_metadata(*pair) for pair in zip(videos, filled, strict=True)],
        do_sample_frames=False,
        return_tensors="pt",
        # The template may have written it already; twice would be another prompt.
        **kinds_of_tokens(processor),
        **({"add_special_tokens": False} if begin and text.startswith(begin) else {}),
    )
    inputs.pop("video_metadata", None)  # which no model takes
    for name in [name for name in inputs if described and name.startswith("pixel_")]:
        inputs[name] = inputs[name].to("meta")
    return inputs


def prepare_video(processor: Any, frames: Frames, device: torch.device | str | None = None) -> Any:
    """Make what `prepare` makes of the video alone: pixels and grids, without writing a prompt."""
    filled = long_enough(processor, frames)
    return (without_pixels if frames.pixels.is_meta else patching_first)(processor).video_processor(
        videos=[placed(processor, filled.pixels, device).permute(0, 3, 1, 2)],
        video_metadata=[_metadata(frames, filled)],
        do_sample_frames=False,
        return_tensors="pt",
        **own_size(processor),
    )


def long_enough(processor: Any, frames: Frames) -> Frames:
    """Repeat the last frame until the processor can take them as a video."""
    lone = hasattr(processor, "image_seq_length") or hasattr(processor, "image_seq_len")  # InternVL, SmolVLM
    needed = max(frames_joined(processor), 2 * lone)
    missing = max(0, needed - len(frames))
    if not missing:
        return frames
    return replace(
        frames,
        pixels=torch.cat([frames.pixels, *[frames.pixels[-1:]] * missing]),
        index=(*frames.index, *frames.index[-1:] * missing),
        seconds=(*frames.seconds, *frames.seconds[-1:] * missing),
    )


def _metadata(frames: Frames, filled: Frames) -> Any:
    """Describe `filled`, which are `frames` and perhaps the last one again, as processors of transformers expect it."""
    from transformers.video_utils import VideoMetadata

    steps = [abs(b - a) for a, b in pairwise(frames.seconds)]
    step = sum(steps) / max(len(steps), 1) or frames.duration / max(frames.total, 1) or 1.0
    # Processors take index / fps for the time of a frame, and frames / total_num_frames * fps for the rate of sampling.
    # Counted in microseconds, both are true of any clip, and exact for the times that are printed.
    return VideoMetadata(
        total_num_frames=round(len(filled) * step * MICRO),
        fps=float(MICRO),
        width=filled.pixels.shape[2],
        height=filled.pixels.shape[1],
        duration=frames.duration,
        video_backend="pyav",
        frames_indices=[round(second * MICRO) for second in filled.seconds],
    )


@contextmanager
def without_bars() -> Iterator[None]:
    """Hide the progress bar of loading weights; downloads keep theirs."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging as theirs

    shown, downloads = theirs.is_progress_bar_enabled(), not are_progress_bars_disabled()
    theirs.disable_progress_bar()  # and that of downloads
    if downloads:
        enable_progress_bars()
    try:
        yield
    finally:
        if shown:
            theirs.enable_progress_bar()


def frames_joined(processor: Any) -> int:
    """How many frames the processor makes one token frame of."""
    return int(getattr(processor.video_processor, "temporal_patch_size", 1))
