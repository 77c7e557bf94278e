"""Encode a video of any length in bounded memory: decoding, tower and selection go chunk by chunk. docs/long.md.

encoded = vidsieve.encode(model, processor, "lecture.mp4", keep=0.1, fps=1)
encoded.ask(model, processor, "Who speaks?")
"""

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from vidsieve.checks import check_keep, check_number
from vidsieve.encoded.chunks import FeatureChunk, encode_chunks
from vidsieve.encoded.fingerprint import Fingerprint
from vidsieve.encoded.video import EncodedVideo
from vidsieve.engines.hf import adapter_for, arguments
from vidsieve.engines.hf.loading import prepare
from vidsieve.errors import UnsupportedCall, VidsieveError
from vidsieve.methods.base import Reducer
from vidsieve.methods.chunked import ChunkedPrune, in_chunks
from vidsieve.methods.prune import Prune
from vidsieve.types.frames import Frames
from vidsieve.video.chunks import plan_video
from vidsieve.video.wanted import LONGEST_SIDE, Sampling, Size

CHUNK = 16  # sampled frames that are decoded, processed and encoded at a time
_ANY = "?"  # a question, where only the video's part of a prompt is wanted


@dataclass(frozen=True)
class Progress:
    """How far an encoding is: `frames` of `total` sampled ones, `seconds` after it began."""

    frames: int
    total: int
    seconds: float

    @property
    def seconds_left(self) -> float:
        """Estimate the seconds until the last frame, at the speed so far."""
        return self.seconds * (self.total - self.frames) / max(self.frames, 1)


def _silent(progress: Progress) -> None:
    pass


def encode(
    model: Any,
    processor: Any,
    clip: str | os.PathLike[str],
    keep: float | None = None,
    *,
    method: str | Reducer = "vidsieve",
    num_frames: int | None = None,
    fps: float | None = None,
    start: float = 0.0,
    end: float | None = None,
    max_frames: int | None = None,
    size: Size = LONGEST_SIDE,
    sampling: Sampling = "even",
    strict: bool = False,
    chunk: int = CHUNK,
    progress: Callable[[Progress], None] = _silent,
) -> EncodedVideo:
    """Encode `clip`, and keep a share `keep` of its tokens: what every later question is answered from.

    Memory does not grow with the length of the clip, but for what is kept: a few chunks of pixels and features are held
    at a time. Exactly round(keep * N) of the N tokens of the whole video stay, and which ones does not depend on
    `chunk`. They are those that the method keeps of the whole video at once, but for the centre of eq. 1, which is the
    mean of the frames so far, and for long scenes, which are cut into runs instead of even parts (docs/long.md).

    keep, method: as `attach` takes them; a method that can select chunk after chunk (`in_chunks`).
    num_frames, fps, start, end, max_frames, size, sampling, strict: as `read_video` takes them.
    chunk: sampled frames that are processed at a time; rounded up to what the model merges into one token frame.
    progress: called after each chunk.
    Raises `VideoError` for a clip that cannot be read, `WrongArgument` for a method that cannot select in chunks,
    `UnsupportedCall` for a model whose tower cannot be called in chunks, `UnsupportedModel` without an adapter.
    """
    model = arguments.unwrap_model(model)
    reducer = chunkwise(method, keep)
    check_number("chunk is a whole number of frames, at least 1", chunk, 1, integer=True)
    frames = plan_video(
        clip,
        num_frames=num_frames,
        fps=fps,
        size=size,
        strict=strict,
        sampling=sampling,
        start=start,
        end=end,
        max_frames=max_frames,
    )
    joined = getattr(processor.video_processor, "temporal_patch_size", 1)
    chunks = encode_chunks(model, processor, frames, -(-chunk // joined) * joined, strict=strict)
    return select(model, processor, frames, chunks, reducer, progress)


@torch.no_grad()
def select(
    model: Any,
    processor: Any,
    frames: Frames,
    chunks: Iterable[FeatureChunk],
    method: Prune,
    progress: Callable[[Progress], None] = _silent,
) -> EncodedVideo:
    """Keep what `method` (from `in_chunks`) selects of the `chunks` of features that `model` makes of `frames`."""
    began = time.perf_counter()
    adapter = adapter_for(model)
    ids = prepare(processor, frames, _ANY)["input_ids"]
    total = int((ids == getattr(model.config, adapter.token)).sum()) - adapter.trailing
    if total < 1:
        raise VidsieveError(f"{type(model).__name__} was shown no video token; nothing can be encoded")
    chunked, grid, trailing = ChunkedPrune(method, total), None, None
    tokens: list[int] = []
    for chunk in chunks:
        chunked.add(chunk.features, chunk.tokens, chunk.others)
        tokens += chunk.tokens
        grid, trailing = chunk.grid, chunk.trailing
        done = len(frames) * sum(tokens) // total
        progress(Progress(done, len(frames), time.perf_counter() - began))
    if trailing is None:
        raise VidsieveError(f"{frames.source}: gave no frame; nothing can be encoded")
    selection = chunked.finish()
    fingerprint = Fingerprint.of(model, method.keep, repr(method))
    return EncodedVideo(frames, selection, trailing, tuple(tokens), grid, fingerprint)


def chunkwise(method: str | Reducer, keep: float | None) -> Prune:
    """Make the method as it selects chunk after chunk."""
    made = arguments.named(method, keep, {})
    if not isinstance(made, Reducer):
        raise UnsupportedCall(f"{made!r} does not reduce before the language model alone; expected a Prune")
    reducer = in_chunks(made)
    check_keep(reducer.keep)
    return reducer
