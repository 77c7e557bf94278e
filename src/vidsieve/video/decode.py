"""Read `Frames` of a video file: sampled evenly, at a rate, or by frame number, and resized while it decodes.

    frames = read_video("clip.mp4", num_frames=64)

The file is read twice. The first pass reads packets without decoding them: their time stamps, sorted, say which
frame is the i-th one, whatever the container claims (variable frame rate, B-frames, a start other than zero, no frame
count). The second pass seeks from key frame to key frame and decodes only what leads to a sampled frame (`chosen`), by
several decoders side by side where torch has several threads.
Where stamps cannot tell frames apart, or the decoder does not give what they promise, every frame is decoded and
counted instead.
Each thread holds one full-size picture at a time. `pieces` has only a part of the frames in memory; `chunks` makes use
of that.
"""

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

from vidsieve.checks import require
from vidsieve.errors import VideoError, redacted
from vidsieve.stages import Check, unchecked
from vidsieve.types.coming import Come
from vidsieve.types.frames import Frames
from vidsieve.video import torchcodec
from vidsieve.video.chosen import Decoder, Miscounted
from vidsieve.video.demux import (
    PATIENCE,
    Index,
    by_decoding,
    by_packets,
    check_unchanged,
    lacks_its_index,
    locate,
    opened,
    video_stream,
    without_secrets,
)
from vidsieve.video.scaling import TURNS, Scaling, orientation, scaled
from vidsieve.video.wanted import LONGEST_SIDE, Library, Sampling, Size, Wanted

LONG_CLIP = 30.0  # seconds; below it a progress bar would be gone before it is read
_LACKING = (
    "is damaged: cut off before the end of its index (moov), without which nothing of it can be read; fetch it again"
)

T = TypeVar("T")


def read_video(
    path: str | os.PathLike[str],
    *,
    num_frames: int | None = None,
    fps: float | None = None,
    index: Sequence[int] | None = None,
    size: Size = LONGEST_SIDE,
    progress: bool = False,
    strict: bool = False,
    sampling: Sampling = "even",
    start: float = 0.0,
    end: float | None = None,
    max_frames: int | None = None,
    decoder: Library = "pyav",
    device: str | None = None,
) -> Frames:
    """Read frames of a video, RGB uint8 (T, H, W, 3), as a player shows them: upright, in square pixels, of one size.

    path: of a file; or a file:// or http(s):// address, which is read two or three times. Reads its first video stream.
    At most one of
      num_frames: that many, evenly from the first frame to the last; all of them if there are fewer (default 64).
      fps: the frame on screen at 0, 1/fps, 2/fps, ... seconds after `start`; no frame twice.
      index: exactly these frame numbers, in this order. Frames lost to damage have no number if decoding detects it.
    size: (height, width); or the longest side in pixels, in proportion and never enlarged; or None, as shown. Frames
      of another size than the file's first are scaled to it, as ffmpeg does.
    progress: a progress bar on standard error for long clips, if that is a terminal.
    strict: raise for a file that is cut short or damaged, instead of a warning.
    sampling: "even"; or "keyframes", which takes num_frames of the key frames, evenly among them, or all if they are
      fewer, and decodes no other. They lie where the encoder put them, at uneven distances: `seconds` says when.
    start, end: seconds; as if the file were only what is on screen from `start` on and before `end`. Numbers and time
      stamps stay those of the whole file.
    max_frames: if more would be read, that many evenly among them.
    decoder: "pyav"; or "torchcodec", for undamaged files of one size, which gives the same frames, scaled by a filter
      that rounds differently, and no progress bar. It does not say which frames are damaged.
    device: with torchcodec, "cpu" (the default), or "cuda", ..., where decoding and the pixels then are.

    Raises `VideoError`, in one line, for a file that is missing, a directory, empty, not a video, without a picture or
    without the frame asked for, or that ends before `start`; `MissingExtra` without PyAV, or without the decoder asked
    for; `ValueError` for invalid arguments.
    Warns if a file is cut short or frames are damaged: what they show is the decoder's guess.
    """
    wanted = Wanted(num_frames, fps, index, size, progress, strict, sampling, start, end, max_frames, decoder, device)
    return indexed(path, wanted)()


def to_warning(fault: str) -> None:
    """Warn of a fault of a file."""
    warnings.warn(fault, stacklevel=4)


def indexed(
    path: str | os.PathLike[str],
    wanted: Wanted,
    warn: Callable[[str], None] = to_warning,
    check: Check = unchecked,
) -> Callable[..., Frames]:
    """Read which frames a file has; returns the function that decodes those `wanted`, once.

    warn: is given each fault that is no error.  check: is called for each packet, and ends it by what it raises.
    The function calls what it is given as `pieces` calls `come`.
    Both raise as `read_video` does: this for what is no video, the function for what cannot be decoded.
    """
    name = os.fsdecode(path)
    if wanted.decoder == "torchcodec":
        torchcodec.load()
    found = index_of(name, check, spare=wanted.sampling != "keyframes")

    def decode(come: Come = _untold) -> Frames:
        return trusting(found, name, wanted, lambda index: _read(index, name, wanted, warn, come, check), check)

    return decode


def index_of(name: str, check: Check = unchecked, spare: bool = True) -> Index:
    """Make the index of a file's packets, as `by_packets` does. Raises as `read_video` does for what is no video."""
    require("av", "video")
    require("numpy", "video")
    place = locate(name)
    with one_line(place, name):
        return by_packets(place, name, check, spare)


def trusting(found: Index, name: str, wanted: Wanted, act: Callable[[Index], T], check: Check = unchecked) -> T:
    """Call `act` with the index of the packets; if the decoder does not give what it lists, with one that is counted.

    Raises `VideoError` in one line for what the decoder raises.
    """
    av = require("av", "video")
    place = locate(name)
    with one_line(place, name):
        if found.keys:
            try:
                return act(found)
            except (Miscounted, av.error.InvalidDataError):
                pass
        if wanted.sampling == "keyframes":
            raise VideoError(
                f"{name}: lists no key frames that can be relied on, because of its time stamps or of damage; "
                'sample it with sampling="even"'
            )
        counted = by_decoding(place, name, found, check)
        if not len(counted):
            raise _without_frames(place, name)
        return act(counted)


@contextmanager
def one_line(place: str, name: str) -> Iterator[None]:
    """Raise what the decoder raises as a `VideoError` of one line."""
    import av

    try:
        yield
    except av.error.FFmpegError as error:
        if isinstance(error, av.error.InvalidDataError):
            unknown = f"is not a video that can be decoded, or is damaged ({error.strerror})"
            raised = VideoError(f"{name}: {_LACKING if lacks_its_index(place) else unknown}")
        elif isinstance(error, av.error.EOFError):
            raised = _without_frames(place, name)
        elif isinstance(error, av.error.ExitError):
            raised = VideoError(f"{name}: no answer in {PATIENCE:g} s; download it first")
        else:
            raised = VideoError(f"{name}: cannot be read as a video ({error.strerror})")
        raise raised from without_secrets(error)


def _without_frames(place: str, name: str) -> VideoError:
    return VideoError(f"{name}: {_LACKING if lacks_its_index(place) else 'has not a single frame in it'}")


def _untold(frames: Frames, place: int) -> None: ...


def _read(found: Index, name: str, wanted: Wanted, warn: Callable[[str], None], come: Come, check: Check) -> Frames:
    numbers = wanted.numbers(found, name)
    faults = Faults(name, wanted.strict, warn, cut=wanted.strict or wanted.index is None)
    if wanted.decoder == "torchcodec":
        return _by_torchcodec(found, name, numbers, wanted, faults)
    [frames] = pieces(found, name, numbers, wanted.size, len(numbers), faults, wanted.progress, check, come=come)
    return frames


def _by_torchcodec(found: Index, name: str, numbers: list[int], wanted: Wanted, faults: "Faults") -> Frames:
    torchcodec.check_readable(found, name)
    place = locate(name)
    check_unchanged(found, place, name)
    with opened(place) as container:
        stream = video_stream(container, name)
        first = Decoder(container, stream, found, name).first()
        shape, turn = scaled(stream, first, wanted.size, name), orientation(first, name)
        if turn not in TURNS:
            raise VideoError(f"{name}: is mirrored, and torchcodec can only turn pictures; {torchcodec.INSTEAD}")
        stamps = [pts * stream.time_base for pts in found.pts]
        pixels = torchcodec.decode(place, name, stream.index, stamps, numbers, shape, wanted.device or "cpu")
    check_unchanged(found, place, name)
    faults.tell_of(found)
    return described(pixels, numbers, found, name)


@dataclass(frozen=True)
class Faults:
    """How the faults of a file are told: raised as `VideoError` if strict, else given to `warn`.

    cut: whether it is a fault that the file ends too soon.
    """

    name: str
    strict: bool
    warn: Callable[[str], None]
    cut: bool = True

    def tell(self, fault: str) -> None:
        """Tell one fault."""
        if self.strict:
            raise VideoError(f"{self.name}: {fault}; without strict, that is a warning")
        self.warn(redacted(f"{self.name}: {fault}"))

    def tell_of(self, found: Index, damaged: int = 0, count: int = 0, between: int = 0) -> None:
        """Tell the faults of a file, of which `damaged` of `count` frames are damaged, and `between` them others."""
        if found.truncated and self.cut:
            self.tell(f"is cut short: only {len(found)} frames ({found.duration:.1f} s) are there")
        if found.seconds[0]:
            self.tell(f"its first {found.seconds[0]:.2f} s cannot be decoded")
        if found.late:
            came = len(found) + len(found.late)
            self.tell(f"{len(found.late)} of {came} frames came after ones that are shown later, and are left out")
        if damaged:
            self.tell(f"{damaged} of {count} frames are damaged; what they show is the decoder's guess")
        if between:  # a decoder marks the damaged frame alone
            self.tell(f"{between} of the frames between those read are damaged; what is made from them is a guess too")


def spans(count: int, length: int, first: int | None = None) -> Iterator[tuple[int, int]]:
    """Cut 0..count into spans (begin, end) of `length`, the first of `first` if that is given."""
    return pairwise([0, *range(first or length, count, length), count])


def pieces(
    found: Index,
    name: str,
    numbers: Sequence[int],
    size: Size,
    length: int,
    faults: Faults,
    progress: bool = False,
    check: Check = unchecked,
    first: int | None = None,
    come: Come = _untold,
) -> Iterator[Frames]:
    """Decode the frames `numbers`, `length` at a time, with one decoder. Numbers must rise if there are several pieces.

    first: how many the first piece has; None for `length`.
    come: is called with a piece whose frames are being filled in, and the place of each that is: those of a single
    piece in any order, as decoders side by side make them, which takes a little longer in all.
    The first frame of the file has the height and width of all.
    Raises `Miscounted`, maybe after some were yielded.
    """
    np = require("numpy", "video")
    damaged = before = 0
    place = locate(name)
    check_unchanged(found, place, name)
    with ExitStack() as stack:
        container = stack.enter_context(opened(place))
        advance = stack.enter_context(_progress_bar(progress and found.duration >= LONG_CLIP, len(numbers)))
        stream = video_stream(container, name)
        decoder = Decoder(container, stream, found, name, check)
        scaling, ordered = Scaling(stream, size, name), length < len(numbers) or come is _untold
        made = decoder.frames(numbers, scaling, lambda one: one[0].nbytes, ordered)
        shown = stack.enter_context(closing(made))  # or a traceback would hold its threads, and what they have open
        number, (picture, corrupt) = next(shown)
        shape, unread = picture.shape, corrupt and 0 not in numbers
        for begin, end in spans(len(numbers), length, first):
            some = numbers[begin:end]
            pixels = np.empty((len(some), *shape), np.uint8)
            piece = described(torch.from_numpy(pixels), some, found, name)
            places: dict[int, list[int]] = {}
            for at, wanted in enumerate(some):
                places.setdefault(wanted, []).append(at)
            while True:
                for at in places.pop(number, ()):
                    pixels[at] = picture
                    damaged += corrupt
                    advance()
                    come(piece, at)
                if not places:
                    break
                number, (picture, corrupt) = next(shown)
            if end == len(numbers):
                next(shown, None)  # which sees whether they were the frames that the index lists
                check_unchanged(found, place, name)
                faults.tell_of(found, damaged, len(numbers), decoder.damaged + unread)
            yield replace(piece, decoded=decoder.decoded - before)
            before = decoder.decoded
            del pixels, piece  # before the next are allocated


def described(pixels: Tensor, numbers: Sequence[int], found: Index, name: str) -> Frames:
    """Make `Frames` of the frames `numbers` of an indexed file."""
    return Frames(
        pixels,
        tuple(numbers),
        tuple(found.seconds[i] for i in numbers),
        len(found) / found.duration if found.duration else 0.0,
        len(found),
        found.duration,
        name,
        key_frames=len(found.keys),
    )


@contextmanager
def _progress_bar(show: bool, total: int) -> Iterator[Callable[[], None]]:
    """Show a progress bar; yields the function to call after each of `total` frames."""
    if not (show and sys.stderr.isatty()):
        yield lambda: None
        return
    require("rich", "video")
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("decoding", total=total)
        yield lambda: bar.advance(task)
