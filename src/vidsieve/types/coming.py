"""Frames that are still being decoded: those that are there already, and at last all of them."""

import time
from collections.abc import Callable, Iterator, Sequence
from math import ceil
from threading import Condition, Thread

from vidsieve.types.frames import Frames

SPANS = 8  # that frames are taken in as they come: an eighth is left to do after the last one
SHORTEST = 4  # frames of a span: each costs calls, and a processor may show a lone frame twice

Come = Callable[[Frames, int], None]


class ComingFrames:
    """Frames that a thread of its own decodes from now on (`begin_video`).

    ended: when that was done, by `time.perf_counter`; None until then.
    """

    def __init__(
        self,
        decode: Callable[[Come], Frames],
        faults: Sequence[str] = (),
        warn: Callable[[str], None] = lambda fault: None,
    ) -> None:
        """decode: makes the frames; calls what it is given with them and how many, from the first on, are there.

        faults: what `decode` finds wrong, of which `warn` is told in the thread that asks for the result.
        """
        self.ended: float | None = None
        self._changed = Condition()
        self._frames: Frames | None = None  # of which so many are there:
        self._count = 0
        self._result: Frames | BaseException | None = None
        self._faults, self._warn = iter(faults), warn
        # An error or Ctrl-C elsewhere does not wait for it.
        Thread(target=self._run, args=(decode,), name="vidsieve-decode", daemon=True).start()

    def _run(self, decode: Callable[[Come], Frames]) -> None:
        try:
            self._result = decode(self._come)
        except BaseException as error:  # raised where the result is asked for
            self._result = error
        with self._changed:
            self.ended = time.perf_counter()
            self._changed.notify_all()

    def _come(self, frames: Frames, count: int) -> None:
        with self._changed:
            self._frames, self._count = frames, count
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

    def spans(self, joined: int = 1) -> Iterator[tuple[Frames, int, int]]:
        """Yield frames, and from which to which of these are there now, span after span, until decoding ends.

        Begins at 0 once more, with other frames, if the decoder has to begin anew; ends early if it fails. Yields
        nothing if all are there before, or are told of only at the end. joined: a span is a multiple of so many frames.
        """
        frames, end = None, 0
        while self.ended is None or frames is not None:
            span = self._next(frames, end, joined)
            if span is None:
                return
            frames, _, end = span
            yield span

    def _next(self, frames: Frames | None, taken: int, joined: int) -> tuple[Frames, int, int] | None:
        """Wait for the span after those `taken` of `frames`, or the first of others; None if there will be none."""
        with self._changed:
            while True:
                if self._frames is not None:
                    length = ceil(max(len(self._frames) / SPANS, SHORTEST) / joined) * joined
                    begin = taken if self._frames is frames else 0
                    end = min(begin + length, len(self._frames))
                    if begin < end <= self._count:
                        return self._frames, begin, end
                if self.ended is not None:
                    return None
                self._changed.wait()
