"""Load a checkpoint, and prepare its inputs from frames and a question."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil
from typing import Any, NamedTuple

import torch

from vidsieve.checks import check_question, describe, require
from vidsieve.engines.hf import hub
from vidsieve.engines.hf.arguments import unwrap_model
from vidsieve.engines.hf.processing import (
    Padding,
    by_frame,
    empty,
    kinds_of_tokens,
    own_size,
    patching_first,
    placed,
    resizing_to,
    with_times,
    without_pixels,
)
from vidsieve.engines.torchvision import make_importable
from vidsieve.errors import UnsupportedCall, UnsupportedModel, VidsieveError, WrongArgument
from vidsieve.ops.dispatch import start_hashing
from vidsieve.types.coming import ComingFrames
from vidsieve.types.frames import Frames

MICRO = 10**6  # a second in microseconds
# In how many parts a video is processed while it is decoded, of no fewer frames: a processor may show a lone one twice.
# In fewer and longer ones where the tower runs too: launching its kernels takes the host as long for a few frames as
# for many, and slows the decoders.
PARTS, TOWER_PARTS = (8, 4), (4, 16)


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


def prepare(
    processor: Any,
    frames: Frames | ComingFrames,
    question: str,
    device: torch.device | str | None = None,
    *,
    model: Any = None,
) -> Any:
    """Make the inputs of `model.generate`: the processor's tensors for one video and one question, frames as sampled.

    Time stamps are those of the frames. The last frame is repeated for a processor whose patches span several frames
    and for a model that would take a single frame for an image. Frames on "meta" (`plan_video`) give the prompt, masks
    and grids of the video without a pixel of it: tensors of pixels are on "meta". Raises `UnsupportedCall` if a
    processor cannot tell them without pixels. Of `begin_video`, the prompt is written and the first frames are
    processed while others are decoded, on CUDA or by cores that do not decode, if the processor is known to make each
    frame by itself; the tensors are the same.
    device: of the model. On CUDA the frames are moved there as bytes, and scaled, normalised and cut into patches there
    by the processors of transformers, which rounds otherwise. Else they are processed on the CPU.
    model: in place of its device: the tensors are on that, and in its precision. If something is attached to it, and
    its tower computes each frame by itself, the tower runs while others are decoded too, and `generate` finds the
    features when it comes to these very pixels (docs/vision.md).
    """
    if model is not None:
        if device is not None:
            raise WrongArgument(f"expected device or model, not both; got {device!r} and {describe(model)}")
        if isinstance(frames, Frames) and frames.pixels.is_meta:
            raise WrongArgument(
                "expected frames with pixels for a model; got described ones, which are prepared without"
            )
        model = unwrap_model(model)
        device = model.device
        if model.device.type == "meta":
            raise WrongArgument(
                "expected a model with its weights in place, got one that is offloaded; give the device"
            )
    if isinstance(frames, ComingFrames):
        made = _prepare_coming(processor, frames, question, device, model)
    else:
        made = prepare_turns(processor, (frames,), (question,), device)
    return made if model is None else made.to(model.device, model.dtype)


def _prepare_coming(
    processor: Any, coming: ComingFrames, question: str, device: torch.device | str | None, model: Any
) -> Any:
    check_question(question)
    inputs: _GrowingInputs | None = None
    ahead = None if model is None else _features_ahead(model)
    parts = PARTS if ahead is None else TOWER_PARTS
    beside = by_frame(processor) and (torch.device(device or "cpu").type == "cuda" or cores_are_left())
    with suppress(UnsupportedCall):  # of a processor that looks at all frames before it says anything
        for frames, places in coming.spans(*parts, frames_joined(processor)) if beside else ():
            if inputs is None or not inputs.show(frames):
                inputs = _GrowingInputs(processor, frames, question, device, model, ahead)
            inputs.add(frames, places)
    frames = coming.result()
    if inputs is not None and inputs.are_of(frames):
        return inputs.finished()
    return prepare_turns(processor, (frames,), (question,), device)


def cores_are_left() -> bool:
    """Whether torch leaves cores alone. Where it does not, decoding has all of them, and what is beside it slows it."""
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return torch.get_num_threads() < mine


class _GrowingInputs:
    """What `prepare` makes of a video: its prompt at once, and the pixels of some frames after the other.

    `finished` gives the inputs, once they `are_of` all frames.
    """

    def __init__(
        self,
        processor: Any,
        frames: Frames,
        question: str,
        device: torch.device | str | None,
        model: Any = None,
        ahead: Any = None,
    ) -> None:
        """model: whose device and precision they get.  ahead: its `FeaturesAhead`."""
        self._pixels, bare = frames.pixels, replace(frames, pixels=frames.pixels.to("meta"))
        self._made = prepare(processor, bare, question)
        [self._name] = [name for name in self._made if name.startswith("pixel_")]
        self._along = int(self._made[self._name].ndim == 5)  # (1, T, C, H, W), else the first
        self._joined = frames_joined(processor)
        self._count = self._left = ceil(len(frames) / self._joined)
        self._device, self._model, self._ahead = device, model, ahead
        self._sized = Sized(processor, bare)
        self._features = ahead and ahead.begin(self._count, self._made.get("video_grid_thw"))

    def show(self, frames: Frames) -> bool:
        """Whether they are inputs of these frames."""
        return frames.pixels is self._pixels

    def are_of(self, frames: Frames) -> bool:
        """Whether all of these frames are in them."""
        return self.show(frames) and not self._left

    def add(self, frames: Frames, places: Sequence[int]) -> None:
        """Process the frames at these places, which are whole temporal patches, and put their pixels in place."""
        chunk = frames.chosen(places)
        made = prepare_video(self._sized(chunk), chunk, self._device)
        [some] = [x for name, x in made.items() if name.startswith("pixel_")]
        whole = self._made[self._name]
        some = some.flatten(0, some.ndim - whole.ndim)  # InternVL's prompt has the frames of all videos in a row
        if self._model is not None:
            some = some.to(self._model.device, self._model.dtype)
        if whole.is_meta:
            dtype = whole.dtype if self._model is None else some.dtype
            whole = self._made[self._name] = empty(whole.shape, dtype, some.device)
        at = torch.tensor([place // self._joined for place in places[:: self._joined]], device=whole.device)
        patches = whole.unflatten(self._along, (self._count, -1))  # of each temporal patch
        some = some.unflatten(self._along, (-1, patches.shape[self._along + 1]))
        some = some.narrow(self._along, 0, len(at))  # a lone frame may be there twice
        patches.index_copy_(self._along, at, some)
        if self._features is not None:
            self._features.add(some.flatten(0, 1), at)
        self._left -= len(at)

    def finished(self) -> Any:
        """Make the inputs of all frames."""
        if self._model is None:
            return self._made
        made = self._made.to(self._model.device, self._model.dtype)
        if self._ahead is not None and self._features is not None:
            self._ahead.keep(self._features, made[self._name], made["video_grid_thw"])
        return made


def _features_ahead(model: Any) -> Any:
    """Get what keeps features that are made before `model` asks for them; None where nothing that does is attached."""
    from vidsieve.engines.hf.attach import attachment_of  # needs transformers, as all of a model does

    attachment = attachment_of(model.base_model)
    return None if attachment is None else attachment.vision.ahead


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


class Grid(NamedTuple):
    """How a processor cuts frames. patches: T, H, W.  merge: side of a token in patches, if the processor says so.

    size: height and width of the pictures.  content: of what is not padding in them; None if all is.
    """

    patches: tuple[int, int, int]
    merge: int | None
    size: tuple[int, int]
    content: tuple[int, int] | None


def grid_of(processor: Any, frames: Frames) -> Grid | None:
    """Ask a processor how it would cut frames, without pixels; None where it makes no grid."""
    with Padding() as padding:
        made = prepare_video(processor, replace(frames, pixels=frames.pixels.to("meta")))
    if "video_grid_thw" not in made:
        return None
    [(count, high, wide)] = made["video_grid_thw"].tolist()
    merges, patch = made.get("video_merge_sizes"), processor.video_processor.patch_size
    size = (high * patch, wide * patch)
    return Grid((count, high, wide), None if merges is None else int(merges[0]), size, padding.content.get(size))


class Sized:
    """Gives the chunks of a video the size of the whole, for sizes of pictures depend on the number of frames."""

    def __init__(self, processor: Any, frames: Frames) -> None:
        self._processor, self._whole = processor, grid_of(processor, frames)
        self._found: dict[int, Any] = {}  # by the frames of a chunk

    def pinned(self) -> tuple[Any, tuple[int, int] | None]:
        """Copy the processor to one that gives any video this size, with that; itself, and None, where it has one."""
        if self._whole is None:
            return self._processor, None
        return resizing_to(self._processor, *self._whole.size, self._whole.content), self._whole.size

    def __call__(self, chunk: Frames) -> Any:
        """Find the processor for a chunk."""
        count = len(chunk)
        if count not in self._found:
            alone = self._whole and grid_of(self._processor, chunk)
            alike = self._whole is None or (alone is not None and alone[2:] == self._whole[2:])
            self._found[count] = self._processor if alike else self.pinned()[0]
        return self._found[count]


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
