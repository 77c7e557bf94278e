"""Read a video in chunks: plan which frames, of which size, then decode some of them at a time.

frames = plan_video("lecture.mp4", fps=1)    # described, not decoded: pixels on the device "meta"
for chunk in read_chunks(frames, 64): ...    # the pixels of `read_video`, 64 frames at a time
"""

import os
from bisect import bisect_right
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import pairwise

import torch

from vidsieve.checks import check_number, describe, require
from vidsieve.errors import VideoError, WrongArgument, redacted
from vidsieve.stages import Check, unchecked
from vidsieve.types.frames import Frames
from vidsieve.video.chosen import Decoder, Miscounted
from vidsieve.video.decode import Faults, described, index_of, one_line, pieces, to_warning, trusting
from vidsieve.video.demux import (
    Index,
    by_decoding,
    locate,
    opened,
    video_stream,
    without_secrets,
)
from vidsieve.video.scaling import scaled
from vidsieve.video.wanted import LONGEST_SIDE, Sampling, Size, Wanted

SAME_TIME = 1e-3  # seconds


@dataclass(frozen=True, eq=False, repr=False)
class Planned(Frames):
    """Frames that are described, with the index of their file, so that reading them need not make it again.

    address: to read them from, where `source` does not say all of it.
    """

    found: Index | None = None
    address: str = ""


def plan_video(
    path: str | os.PathLike[str],
    *,
    num_frames: int | None = None,
    fps: float | None = None,
    index: Sequence[int] | None = None,
    size: Size = LONGEST_SIDE,
    strict: bool = False,
    sampling: Sampling = "even",
    start: float = 0.0,
    end: float | None = None,
    max_frames: int | None = None,
) -> Frames:
    """Describe the frames that `read_video` would read with these arguments: `pixels` (T, H, W, 3) are on "meta".

    Reads the packets of the file, and decodes its first frame alone, whose size all have; or all of them, once, if the
    packets leave doubt which frame is which. `index` must rise. Warns and raises as `read_video` does.
    """
    return plan(
        os.fsdecode(path), Wanted(num_frames, fps, index, size, False, strict, sampling, start, end, max_frames)
    )


def plan(name: str, wanted: Wanted, warn: Callable[[str], None] = to_warning) -> Frames:
    """Plan as `plan_video` does. warn: is given each fault that is no error."""

    def planned(found: Index) -> Planned:
        numbers = wanted.numbers(found, name)
        _check_order(numbers)
        with opened(locate(name)) as container:
            stream = video_stream(container, name)
            shape = scaled(stream, Decoder(container, stream, found, name).first(), wanted.size, name)
        Faults(name, wanted.strict, warn, cut=wanted.strict or wanted.index is None).tell_of(found)
        pixels = torch.empty(len(numbers), *shape, 3, dtype=torch.uint8, device="meta")
        frames = described(pixels, numbers, found, name)
        return Planned(
            **{field.name: getattr(frames, field.name) for field in fields(frames)}, found=found, address=name
        )

    return trusting(index_of(name, spare=wanted.sampling != "keyframes"), name, wanted, planned)


def read_chunks(
    frames: Frames,
    size: int,
    *,
    first: int | None = None,
    progress: bool = False,
    strict: bool = False,
    warn: Callable[[str], None] = to_warning,
    check: Check = unchecked,
) -> Generator[Frames]:
    """Decode what `plan_video` described, `size` frames at a time: the pixels of `read_video`, of one chunk in memory.

    first: frames of the first chunk, where what follows should not wait for a whole one; None for `size`.
    progress, strict: as in `read_video`.  warn: is given each fault that is no error. A frame that is lost to damage is
    shown as the one before it, which is such a fault.  check: is called for each packet, and ends it by what it raises.
    Raises `VideoError` if the file is no longer what was planned, maybe after some chunks.
    """
    if not (isinstance(frames, Frames) and frames.pixels.is_meta and frames.source):
        raise WrongArgument(f'expected frames of plan_video("clip.mp4"), got {describe(frames)}')
    check_number("size is a whole number of frames, at least 1", size, 1, integer=True)
    if first is not None:
        check_number("first is a whole number of frames, at least 1", first, 1, integer=True)
    _check_order(frames.index)
    faults = Faults(frames.source, strict, warn, cut=strict)
    shape = (frames.pixels.shape[1], frames.pixels.shape[2])
    read = partial(pieces, size=shape, length=size, first=first, faults=faults, progress=progress, check=check)
    return _chunks(frames, read, faults, check)


def _chunks(frames: Frames, read: Callable[..., Iterator[Frames]], faults: Faults, check: Check) -> Generator[Frames]:
    av = require("av", "video")
    planned = frames if isinstance(frames, Planned) and frames.source == redacted(frames.address) else None
    name, found = (frames.source, None) if planned is None else (planned.address, planned.found)
    if found is None:
        found = trusting(index_of(name, check), name, Wanted(), lambda index: index, check)
        _check_same(found, frames)
    done = 0
    with one_line(locate(name), name):
        try:
            for chunk in read(found, name, frames.index):
                done += len(chunk)
                yield chunk
                del chunk  # before the next is allocated
            return
        except (Miscounted, av.error.InvalidDataError) as error:
            if not found.keys or index_of(name, check) != found:
                raise VideoError(f"{name}: has changed since it was planned; plan it again") from without_secrets(error)
        yield from _around_damage(frames, done, by_decoding(locate(name), name, found, check), read, faults)


def _around_damage(
    frames: Frames, done: int, counted: Index, read: Callable[..., Iterator[Frames]], faults: Faults
) -> Iterator[Frames]:
    """Decode the frames from the `done`-th on of a file that has lost some, each by its time stamp."""
    left = frames.seconds[done:]
    numbers = [max(0, bisect_right(counted.seconds, at + SAME_TIME) - 1) for at in left]
    lost = sum(abs(counted.seconds[number] - at) > SAME_TIME for number, at in zip(numbers, left, strict=True))
    if lost:
        faults.tell(f"{lost} of {len(frames)} frames are lost to damage; the one before is shown instead")
    for chunk in read(counted, frames.source, numbers):
        here = slice(done, done := done + len(chunk))
        yield replace(frames, pixels=chunk.pixels, index=frames.index[here], seconds=frames.seconds[here])
        del chunk


def _check_order(numbers: Sequence[int]) -> None:
    if any(a > b for a, b in pairwise(numbers)):
        raise ValueError(f"expected frame numbers that rise, to be read in chunks; got {describe(list(numbers))}")


def _check_same(found: Index, frames: Frames) -> None:
    """Raise `VideoError` unless the index is of the file that `frames` were planned from."""
    if len(found) == frames.total and all(
        abs(found.seconds[number] - at) <= SAME_TIME for number, at in zip(frames.index, frames.seconds, strict=True)
    ):
        return
    raise VideoError(
        f"{frames.source}: is not the file that was planned: it has {len(found)} frames in {found.duration:.1f} s, "
        f"expected {frames.total} in {frames.duration:.1f} s at the same times"
    )
