"""Encode a video of any length in bounded memory: decoding, tower and selection go chunk by chunk. docs/long.md.

encoded = vidsieve.encode(model, processor, "lecture.mp4", keep=0.1, fps=1)
encoded.ask(model, processor, "Who speaks?")
"""

import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

import torch

from vidsieve.checks import check_keep, check_number, describe
from vidsieve.encoded.chunks import FeatureChunk, encode_chunks
from vidsieve.encoded.fingerprint import Fingerprint
from vidsieve.encoded.video import EncodedVideo
from vidsieve.engines.hf import arguments
from vidsieve.engines.hf.loading import frames_joined
from vidsieve.errors import UnsupportedCall, VidsieveError, WrongArgument
from vidsieve.methods.base import Reducer
from vidsieve.methods.chunked import ChunkedPrune, in_chunks
from vidsieve.methods.pixels import KCenter
from vidsieve.methods.prune import Prune
from vidsieve.stages import in_use, launched, own_stream, wait_for
from vidsieve.types.frames import Frames
from vidsieve.types.selection import Selection
from vidsieve.video.chunks import plan_video
from vidsieve.video.wanted import LONGEST_SIDE, Sampling, Size

LONGEST_CHUNK = 64  # sampled frames that are decoded, processed and encoded at a time
# Of a short clip at least: one chunk alone would leave nothing to overlap. On a GPU each costs the host the launches of
# the tower, which take as long for few frames as for many, and slow the decoders.
CHUNKS = {"cpu": 10, "cuda": 4}
FIRST = 4  # the first chunk is so many times shorter, for the tower waits until it is decoded
CHUNK_BYTES = {"cpu": 16 << 20, "cuda": 64 << 20}  # of pixels in one


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
    pixels: float | None = None,
    num_frames: int | None = None,
    fps: float | None = None,
    start: float = 0.0,
    end: float | None = None,
    max_frames: int | None = None,
    size: Size = LONGEST_SIDE,
    sampling: Sampling = "even",
    strict: bool = False,
    chunk: int | None = None,
    progress: Callable[[Progress], None] = _silent,
) -> EncodedVideo:
    """Encode `clip`, and keep a share `keep` of its tokens: what every later question is answered from.

    Memory does not grow with the length of the clip, but for what is kept: a few chunks of pixels and features are held
    at a time. Exactly round(keep * N) of the N tokens of the whole video stay, and which ones does not depend on
    `chunk`. They are those that the method keeps of the whole video at once, but for the centre of eq. 1, which is the
    mean of the frames so far, and for long scenes, which are cut into runs instead of even parts (docs/long.md).

    keep, method: as `attach` takes them; a method that can select chunk after chunk (`in_chunks`).
    pixels: of each chunk, the share of the groups of pixels that the vision tower computes, by `KCenter`; None for all.
    Which those are does depend on `chunk`.
    num_frames, fps, start, end, max_frames, size, sampling, strict: as `read_video` takes them.
    chunk: sampled frames that are processed at a time, at first a quarter, rounded up to what the model merges into one
    token frame; None for a tenth of them, at most 64, and at most 16 MiB of pixels; on a GPU a quarter, and 64 MiB.
    progress: called after each chunk.
    Raises `VideoError` for a clip that cannot be read, `WrongArgument` for a method that cannot select in chunks,
    `UnsupportedCall` for a model whose tower cannot be called in chunks, or not for fewer groups of pixels,
    `UnsupportedModel` without an adapter.
    """
    model = arguments.unwrap_model(model)
    _check_processor(processor)
    reducer = chunkwise(method, keep)
    selector = None if pixels is None else KCenter(pixels)
    if chunk is not None:
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
    first, size = lengths(chunk or chunk_of(frames, model.device), processor)
    chunks = encode_chunks(model, processor, frames, size, first=first, strict=strict, pixels=selector)
    with closing(chunks):  # at once, or a traceback that somebody keeps would keep the model attached
        found = select(model, processor, frames, chunks, reducer, progress)
    fingerprint = replace(found.fingerprint, method=chosen_by(reducer, pixels))
    return replace(found, strict=strict, fingerprint=fingerprint)


def _check_processor(processor: Any) -> None:
    if getattr(processor, "video_processor", None) is None:
        raise WrongArgument(
            f"expected the model's processor, with a video processor, got {describe(processor)}; "
            "AutoProcessor.from_pretrained(...) is it"
        )


def chosen_by(method: Prune, pixels: float | None) -> str:
    """Write what a stored video was chosen by."""
    return repr(method) if pixels is None else f"{method!r} after {KCenter(pixels)!r}"


def chunk_of(frames: Frames, device: torch.device) -> int:
    """Choose how many frames are processed at a time."""
    kind = "cpu" if device.type == "cpu" else "cuda"
    return max(1, min(LONGEST_CHUNK, len(frames) // CHUNKS[kind], CHUNK_BYTES[kind] // frames.pixels[0].nbytes))


def lengths(size: int, processor: Any) -> tuple[int, int]:
    """Round `size` frames up to whole temporal patches: frames of the first chunk, and of each other."""
    joined = frames_joined(processor)
    return -(-size // FIRST // joined) * joined, -(-size // joined) * joined


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
    grid, trailing = None, None
    tokens: list[int] = []
    with _Selecting(method, model.device) as selecting:
        for chunk in chunks:
            selecting.add(chunk)
            tokens += chunk.tokens
            grid, trailing = chunk.grid, chunk.trailing
            done = len(frames) * sum(tokens) // chunk.total
            progress(Progress(done, len(frames), time.perf_counter() - began))
            del chunk  # before the tower makes the next
        selection = selecting.finish()
    if selection is None or trailing is None:
        raise VidsieveError(f"{frames.source}: gave no frame; nothing can be encoded")
    fingerprint = Fingerprint.of(model, method.keep, repr(method))
    return EncodedVideo(frames, selection, trailing.cpu(), tuple(tokens), grid, fingerprint)


class _Selecting:
    """Selects of a chunk in a thread of its own, while the tower encodes the next.

    The tower is no stage of `Stages`: it stays in the caller's thread, whose autocast and modes it runs under.
    """

    def __init__(self, method: Prune, device: torch.device) -> None:
        self._method, self._device = method, device
        self._stream = own_stream(device, "select")
        self._thread = ThreadPoolExecutor(1, "vidsieve-select")
        self._chunked: ChunkedPrune | None = None
        self._adding: Future[None] | None = None

    def add(self, chunk: FeatureChunk) -> None:
        """Begin with `chunk` when the one before it is done. What goes wrong is raised by the next call."""
        made = launched(self._device)
        self._wait()
        self._adding = self._thread.submit(self._add, chunk, made)

    def finish(self) -> Selection | None:
        """Wait for all, and select of the whole video; None if there was no chunk."""
        self._wait()
        return self._thread.submit(self._finish).result()

    def _wait(self) -> None:
        adding, self._adding = self._adding, None
        try:
            if adding is not None:
                adding.result()
        finally:
            del adding  # what it raised holds this frame, and the chunk: until garbage is collected, if that holds it

    @torch.no_grad()
    def _add(self, chunk: FeatureChunk, made: torch.Event | None) -> None:
        if self._chunked is None:
            self._chunked = ChunkedPrune(self._method, chunk.total, held_on="cpu")
        with self._stream:
            wait_for(made, self._device)
            in_use([chunk.features, *chunk.others.values()])
            self._chunked.add(chunk.features, chunk.tokens, chunk.others)

    @torch.no_grad()
    def _finish(self) -> Selection | None:
        with self._stream:
            return None if self._chunked is None else self._chunked.finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._thread.shutdown()


def chunkwise(method: str | Reducer, keep: float | None) -> Prune:
    """Make the method as it selects chunk after chunk."""
    made = arguments.named(method, keep, {})
    if not isinstance(made, Reducer):
        raise UnsupportedCall(f"{made!r} does not reduce before the language model alone; expected a Prune")
    reducer = in_chunks(made)
    check_keep(reducer.keep)
    return reducer
