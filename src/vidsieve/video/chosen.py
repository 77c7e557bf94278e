"""Decode chosen frames of an indexed video stream, and as few others as possible.

Frames are decoded in runs. A run begins at a key frame and ends at the last packet that its frames need, where the
decoder is emptied: frames that it would hold back, or threads would decode beyond, cost nothing. Pictures that no other
is made from do not go into the decoder unless they are wanted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vidsieve.errors import VideoError
from vidsieve.video.demux import Check, Index, packets, pictures, unchecked


class Miscounted(VideoError):
    """The decoder does not give the frames that the index lists."""


@dataclass(frozen=True)
class Run:
    """Frames that are decoded from one key frame on. key: its number and the stamp to seek to.  numbers: in order."""

    key: tuple[int, int]
    numbers: list[int]


def plan(found: Index, numbers: Sequence[int]) -> list[Run]:
    """Divide frame numbers into runs: jump to a key frame where that leaves out frames, be it one."""
    runs: list[Run] = []
    for number in sorted(set(numbers)):
        key = found.keys[found.key_before(number)]
        if runs and key[0] - runs[-1].numbers[-1] <= 1:
            runs[-1].numbers.append(number)
        else:
            runs.append(Run(key, [number]))
    return runs


class Decoder:
    """Decodes chosen frames. decoded: how many frames it had to decode for them."""

    def __init__(self, container: Any, stream: Any, found: Index, name: str, check: Check = unchecked) -> None:
        self.container, self.stream, self.found, self.name, self.check = container, stream, found, name, check
        self.decoded = 0

    def frames(self, numbers: Sequence[int]) -> Iterator[tuple[int, Any]]:
        """Yield the first frame of the file and those of `numbers`, each once and in order, with their numbers.

        Raises `Miscounted` if they are not what the index lists, maybe after some were yielded.
        """
        if self.found.keys:
            number_of = {stamp: number for number, stamp in enumerate(self.found.pts)}
            for run in plan(self.found, [0, *numbers]):
                yield from self._run(run, number_of)
        else:
            yield from self._counted({0, *numbers})

    def _counted(self, chosen: set[int]) -> Iterator[tuple[int, Any]]:
        left = sorted(chosen, reverse=True)
        number = -1
        for came, frame in enumerate(pictures(self.container, self.stream, self.found.intact, self.check)):
            self.decoded += 1
            if came in self.found.late:
                continue
            number += 1
            if number == left[-1]:
                yield number, frame
                left.pop()
                if not left:
                    return
        raise self._miscounted(left[-1])

    def _run(self, run: Run, number_of: dict[int, int]) -> Iterator[tuple[int, Any]]:
        begin = run.key[0]
        if self.decoded:
            self._seek(run.key)
        missing = set(run.numbers)
        sent: list[int] = []
        came: list[int] = []
        for frame in self._shown(begin, missing, sent, number_of):
            number = number_of.get(frame.pts, -1)
            if frame.pts is not None and frame.pts < self.found.pts[begin]:
                continue  # pictures shown before the key frame lack what they are made from
            came.append(number)
            if number in run.numbers:
                yield number, frame
        if missing or came != sorted(sent):
            raise self._miscounted(min(missing, default=run.numbers[-1]))

    def _shown(self, begin: int, missing: set[int], sent: list[int], number_of: dict[int, int]) -> Iterator[Any]:
        """Send packets from key frame `begin` on until none is `missing`; `sent` lists the frames they should give."""
        reached = False
        for packet in packets(self.container, self.stream, self.check):
            number = number_of.get(packet.pts, -1)
            reached = reached or number == begin  # demuxers may stop before it
            if not reached or (number in self.found.spare and number not in missing):
                continue
            self.decoded += 1
            if number >= begin:
                sent.append(number)
            yield from self.stream.decode(packet)
            missing.discard(number)
            if not missing:
                break
        yield from self.stream.decode(None)

    def _seek(self, key: tuple[int, int]) -> None:
        from av.error import FFmpegError

        try:
            self.container.seek(key[1], stream=self.stream)
        except FFmpegError as error:
            raise self._miscounted(key[0]) from error

    def _miscounted(self, number: int) -> Miscounted:
        return Miscounted(f"{self.name}: frame {number} of {len(self.found)} cannot be decoded; the file has changed")
