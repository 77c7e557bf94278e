"""Decode chosen frames of an indexed video stream, and as few others as possible.

Frames are decoded in runs. A run begins at a key frame and ends at the last packet that its frames need, where the
decoder is emptied: frames that it would hold back, or threads would decode beyond, cost nothing. Pictures that no other
is made from do not go into the decoder unless they are wanted. Runs of a file that share no frame are decoded side by
side, each by a decoder of its own.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import inf
from typing import Any, TypeVar

import torch

from vidsieve.errors import VideoError
from vidsieve.stages import Check, Stages, unchecked
from vidsieve.video.demux import Index, locate, opened, packets, pictures, video_stream

DECODERS = 8  # side by side, at most: each has the frames that others are made from in memory
WORTH = 16  # frames to decode and to scale, below which to open the file once more takes longer
HELD = 256 << 20  # bytes of frames that are decoded before they are taken, at their own size or as read, the larger

T = TypeVar("T")


class Miscounted(VideoError):
    """The decoder does not give the frames that the index lists."""


@dataclass(frozen=True)
class Run:
    """Frames that are decoded from one key frame on. key: its number and the stamp to seek to.  numbers: in order."""

    key: tuple[int, int]
    numbers: list[int]

    @property
    def work(self) -> int:
        """Count the frames to decode, and those to scale."""
        return self.numbers[-1] - self.key[0] + 1 + len(self.numbers)


def plan(found: Index, numbers: Sequence[int], worth: float = inf) -> list[Run]:
    """Divide frame numbers into runs: jump to a key frame where that leaves out frames, be it one.

    worth: jump to the next key frame too once a run has so much work, for decoders side by side.
    """
    runs: list[Run] = []
    for number in sorted(set(numbers)):
        key = found.keys[found.key_before(number)]
        if runs and key[0] - runs[-1].numbers[-1] <= (runs[-1].work < worth):
            runs[-1].numbers.append(number)
        else:
            runs.append(Run(key, [number]))
    return runs


class Decoder:
    """Decodes chosen frames, by as many threads as torch has."""

    def __init__(self, container: Any, stream: Any, found: Index, name: str, check: Check = unchecked) -> None:
        self.container, self.stream, self.found, self.name, self.check = container, stream, found, name, check
        self._number_of = {stamp: number for number, stamp in enumerate(found.pts)} if found.keys else {}
        self._sent = self._unread = 0
        self._seeks_to_shown = True
        self._beside: list[Decoder] = []
        self._wanted: Check = unchecked

    @property
    def decoded(self) -> int:
        """Count the frames that were decoded so far."""
        return self._sent + sum(other.decoded for other in self._beside)

    @property
    def damaged(self) -> int:
        """Count the damaged frames among those that were decoded for others, and not yielded."""
        return self._unread + sum(other.damaged for other in self._beside)

    def first(self) -> Any:
        """Decode the first frame. Raises `Miscounted` if it is not what the index lists."""
        [(_, frame)] = self.frames([], lambda frame: frame)
        return frame

    def frames(
        self,
        numbers: Sequence[int],
        convert: Callable[[Any], T],
        size_of: Callable[[T], int] = lambda made: 0,
        ordered: bool = True,
    ) -> Generator[tuple[int, T]]:
        """Yield the first frame of the file, then those of `numbers`, each once, with their numbers.

        convert: is called for each frame where it is decoded: for the first before all others, then in any thread.
        size_of: the bytes of what it makes, which may be more than the frame's.
        ordered: yield them in order, rather than as they come from decoders side by side.
        Raises `Miscounted` if they are not what the index lists, maybe after some were yielded.
        """
        if not self.found.keys:
            for number, frame in self._counted({0, *numbers}):
                yield number, convert(frame)
            return
        first, *others = plan(self.found, [0, *numbers], WORTH)
        threads = self._threads(others)
        if threads == 1:
            first, *others = plan(self.found, [0, *numbers])
        shown = self._run(first)
        number, frame = next(shown)
        made = convert(frame)
        waiting = HELD // max(3 * frame.width * frame.height, size_of(made))
        yield number, made
        del frame, made
        rest = ((number, convert(frame)) for number, frame in shown)
        if threads == 1:
            yield from rest
            yield from self._converted(others, convert)
            return
        try:
            with Stages() as stages:
                self._wanted = stages.check
                lanes = [self._aside(others[i::threads], convert, stages.check) for i in range(threads)]
                if ordered:
                    yield from self._in_order(rest, lanes, others, waiting, stages)
                else:
                    yield from stages.ahead(rest, *lanes, waiting=max(1, waiting))
                    self.check()  # which ended the threads, if nobody wants the rest
        finally:
            self._wanted = unchecked

    def _in_order(
        self,
        rest: Iterator[tuple[int, T]],
        lanes: Sequence[Iterator[tuple[int, T]]],
        others: Sequence[Run],
        waiting: int,
        stages: Stages,
    ) -> Iterator[tuple[int, T]]:
        ahead = [stages.ahead(lane, waiting=max(1, waiting // len(lanes))) for lane in lanes]
        yield from rest
        for i, run in enumerate(others):
            yield from islice(ahead[i % len(lanes)], len(run.numbers))
            self.check()  # which ended the thread, if nobody wants the rest
        for lane in ahead:
            next(lane, None)  # sees whether they were the frames that the index lists

    def _threads(self, runs: Sequence[Run]) -> int:
        """Choose how many threads decode `runs`; one, which is this, where it is no file on this machine."""
        if self.found.stamp is None:
            return 1
        return max(1, min(torch.get_num_threads(), DECODERS, len(runs), sum(run.work for run in runs) // WORTH))

    def _aside(self, runs: Sequence[Run], convert: Callable[[Any], T], wanted: Check) -> Iterator[tuple[int, T]]:
        """Decode `runs` from the file, opened once more. wanted: raises where nobody wants the rest."""

        def check() -> None:
            wanted()
            self.check()

        with opened(locate(self.name)) as container:
            stream = video_stream(container, self.name)
            stream.codec_context.thread_count = 2  # of slices; all cores have another decoder
            beside = Decoder(container, stream, self.found, self.name, check)
            self._beside.append(beside)
            yield from beside._converted(runs, convert)

    def _converted(self, runs: Sequence[Run], convert: Callable[[Any], T]) -> Iterator[tuple[int, T]]:
        for run in runs:
            for number, frame in self._run(run):
                yield number, convert(frame)

    def _counted(self, chosen: set[int]) -> Iterator[tuple[int, Any]]:
        left = sorted(chosen, reverse=True)
        number = -1
        for came, frame in enumerate(pictures(self.container, self.stream, self.found.intact, self.check)):
            self._sent += 1
            if came in self.found.late:
                continue
            number += 1
            if number == left[-1]:
                yield number, frame
                left.pop()
                if not left:
                    return
            else:
                self._unread += frame.is_corrupt
        raise self._miscounted(left[-1])

    def _run(self, run: Run) -> Iterator[tuple[int, Any]]:
        begin = run.key[0]
        wanted = frozenset(run.numbers)
        missing = set(run.numbers)
        sent: list[int] = []
        came: list[int] = []
        for frame in self._shown(run, missing, sent):
            number = self._number_of.get(frame.pts, -1)
            if frame.pts is not None and frame.pts < self.found.pts[begin]:
                continue  # pictures shown before the key frame lack what they are made from
            rises = not came or number > came[-1]
            came.append(number)
            if not rises:  # a packet may hold two frames, and who takes one would not come to the end of the run
                break
            if number in wanted:
                yield number, frame
            else:
                self._unread += frame.is_corrupt
        if missing or came != sorted(sent):
            raise self._miscounted(min(missing, default=run.numbers[-1]))

    def _shown(self, run: Run, missing: set[int], sent: list[int]) -> Iterator[Any]:
        """Send packets from the key frame on until none is `missing`; `sent` lists the frames they should give."""
        for packet in self._packets(run.key):
            number = self._number_of.get(packet.pts, -1)
            if number in self.found.spare and number not in missing:
                continue
            self._sent += 1
            if number >= run.key[0]:
                sent.append(number)
            yield from self.stream.decode(packet)
            missing.discard(number)
            if not missing:
                break
        yield from self.stream.decode(None)

    def _packets(self, key: tuple[int, int]) -> Iterator[Any]:
        """Read packets from a key frame on.

        Some demuxers seek by the time at which frames are shown, others by that at which they are decoded. Those get to
        the key frame before with the latter, and beyond the key frame with the former.
        """
        number, decoding = key
        showing = self.found.pts[number]
        for stamp in (showing, decoding) if self._seeks_to_shown else (decoding,):
            if number or self._sent:
                self._seek(stamp, number)
            source = packets(self.container, self.stream, self._check_packet)
            for packet in source:
                if self._number_of.get(packet.pts, -1) == number:
                    yield packet
                    yield from source
                    return
                if stamp > decoding and packet.dts is not None and packet.dts > decoding:
                    self._seeks_to_shown = False
                    break

    def _check_packet(self) -> None:
        self._wanted()
        self.check()

    def _seek(self, stamp: int, number: int) -> None:
        from av.error import FFmpegError

        try:
            self.container.seek(stamp, stream=self.stream)
        except FFmpegError as error:
            raise self._miscounted(number) from error

    def _miscounted(self, number: int) -> Miscounted:
        return Miscounted(f"{self.name}: frame {number} of {len(self.found)} cannot be decoded; the file has changed")
