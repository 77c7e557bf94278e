"""Frames that are still being decoded: those that are there already, in any order, and at last all of them."""

import time
from collections.abc import Callable, Iterator, Sequence
from math import ceil
from threading import Condition, Thread
from types import TracebackType
from typing import Self, cast

from vidsieve.stages import Check, Stopped
from vidsieve.types.frames import Frames

Come = Callable[[Frames, int], None]


class ComingFrames:
    """Frames that a thread of its own decodes from now on (`begin_video`); in a `with` block, until that fails.

    ended: when that was done, by `time.perf_counter`; None until then.
    """

    def __init__(
        self,
        look: Callable[[Check], Callable[[Come], Frames]],
        faults: Sequence[str] = (),
        warn: Callable[[str], None] = lambda fault: None,
    ) -> None:
        """look: finds out which frames there are, and returns what makes them: that calls what it is given with the
        frames and the place of each that is there. Both often call what `look` is given, which raises where nobody
        wants them any more.

        faults: what the two find wrong, of which `warn` is told in the thread that asks for the result.
        """
        self.ended: float | None = None
        self._known = self._stopped = False
        self._changed = Condition()
        self._frames: Frames | None = None  # of which are there, in the order in which they came:
        self._places: list[int] = []
        self._result: Frames | BaseException | None = None
        self._faults, self._warn = iter(faults), warn
        # An error or Ctrl-C elsewhere does not wait for it.
        Thread(target=self._run, args=(look,), name="vidsieve-decode", daemon=True).start()

    def _run(self, look: Callable[[Check], Callable[[Come], Frames]]) -> None:
        try:
            decode = look(self._check)
            with self._changed:
                self._known = True
                self._changed.notify_all()
            self._result = decode(self._come)
        except BaseException as error:  # raised where the result is asked for
            self._result = error
        with self._changed:
            self.ended = time.perf_counter()
            self._changed.notify_all()

    def wait_until_known(self) -> None:
        """Wait until it is known which frames there are. Raises what that raises, as for what is no video."""
        with self._changed:
            self._changed.wait_for(lambda: self._known or self.ended is not None)
        if not self._known:
            self.result()

    def stop(self) -> None:
        """End decoding at the next packet; `result` raises `Stopped` then, if it was not done."""
        self._stopped = True

    def _check(self) -> None:
        if self._stopped:
            raise Stopped("nobody wants the rest of these frames")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self.stop()

    def _come(self, frames: Frames, place: int) -> None:
        with self._changed:
            if frames is not self._frames:
                self._frames, self._places = frames, []
            self._places.append(place)
            self._changed.notify_all()

    def result(self) -> Frames:
        """Wait for all frames. Raises what the decoder raised, and warns of the faults of the file, once."""
        with self._changed:
            self._changed.wait_for(lambda: self.ended is not None)
        if not isinstance(self._result, Frames):
            raise self._result or RuntimeError("the decoder ended without frames")
        for fault in self._faults:
            self._warn(fault)
        return self._result

    def spans(self, parts: int, shortest: int, joined: int = 1) -> Iterator[tuple[Frames, list[int]]]:
        """Yield frames, and the places of some of these that are there now, span after span, until decoding ends.

        All come, in any order, unless decoding fails; all of other frames, if the decoder has to begin anew. Yields
        nothing if all are there before.
        parts: how many spans there are, the last of which is left to do after decoding; fewer, if they would be of less
        than `shortest` frames.
        joined: how many frames that follow one another come together.
        """
        frames: Frames | None = None
        taken, groups = 0, _Groups(0, 1, joined)
        ended = self.ended is not None
        while not ended:
            with self._changed:
                while self.ended is None and self._frames is frames and len(self._places) == taken:
                    self._changed.wait()
                ended = self.ended is not None
                if self._frames is not None and self._frames is not frames:
                    frames, taken = self._frames, 0
                    groups = _Groups(len(frames), max(ceil(len(frames) / parts), shortest), joined)
                come, taken = self._places[taken:], len(self._places)
            for span in groups.add(come) if frames is not None else ():
                yield cast(Frames, frames), span


class _Groups:
    """Which of `count` frames, in groups of `joined`, have come, and which of these are yet to be yielded."""

    def __init__(self, count: int, length: int, joined: int) -> None:
        self._groups = [range(begin, min(begin + joined, count)) for begin in range(0, count, joined)]
        self._missing = [len(group) for group in self._groups]
        self._joined, self._whole, self._left = joined, list[range](), len(self._groups)
        self._length = ceil(length / joined)

    def add(self, places: Sequence[int]) -> Iterator[list[int]]:
        """Yield the spans that these frames make up, with those that came before: the last one may be shorter."""
        for place in places:
            group = place // self._joined
            self._missing[group] -= 1
            if not self._missing[group]:
                self._whole.append(self._groups[group])
        while self._whole and len(self._whole) >= min(self._length, self._left):
            span, self._whole = self._whole[: self._length], self._whole[self._length :]
            self._left -= len(span)
            yield [place for group in sorted(span, key=min) for place in group]
