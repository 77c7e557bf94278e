"""Run stages in threads of their own, so that one works on the next item while another has this one.

On a GPU a thread alone is not enough: what several threads launch on one stream runs in one line, and whoever waits for
a result waits for the others' work too. So each thread has a stream of its own there.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from threading import Condition, Thread
from types import TracebackType
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
Check = Callable[[], None]  # is called often, and raises where nobody wants the rest


CPU = torch.device("cpu")


def own_stream(device: torch.device, name: str) -> AbstractContextManager[Any]:
    """On CUDA, a context whose work is launched on the stream of this name; elsewhere, one that does nothing."""
    return torch.cuda.stream(_stream(device, name)) if device.type == "cuda" else nullcontext()


@cache  # memory that was freed on a stream is for that stream alone: new ones would each keep some
def _stream(device: torch.device, name: str) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def launched(device: torch.device) -> torch.Event | None:
    """Mark what this thread has launched so far; None where work is done when a call returns."""
    return torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None


def wait_for(event: torch.Event | None, device: torch.device) -> None:
    """Let what this thread launches on `device` from now on wait for `event`."""
    if event is not None:
        torch.cuda.current_stream(device).wait_event(event)


def in_use(tensors: Iterable[Any]) -> None:
    """Tell the allocator that this thread's stream uses tensors that another made.

    Without it their memory could be given away while they are still read here.
    """
    for x in tensors:
        if isinstance(x, Tensor) and x.is_cuda:
            x.record_stream(torch.cuda.current_stream(x.device))


def unchecked() -> None:
    """Go on."""


class Stopped(Exception):
    """Raised in a stage whose items nobody wants any more."""


class Stages:
    """Threads that make items ahead of who takes them, until the end of the `with` block, which waits for them.

    with Stages(model.device) as stages:
        decoded = stages.ahead(read_chunks(frames, 64))
        for inputs in stages.ahead(map(process, decoded)): ...

    On CUDA, what takes an item waits on its own stream for what made it; it says which tensors it uses by `in_use`.
    """

    def __init__(self, device: torch.device = CPU) -> None:
        self._device = device
        self._stopped = False
        self._changed = Condition()
        self._threads: list[Thread] = []

    def ahead(self, *sources: Iterable[T], waiting: int = 1) -> Iterator[T]:
        """Make the items of each source in a thread; of several sources they are taken as they come.

        What a thread raises is raised here, after the items before it.
        waiting: how many there are at most that are not taken, with the one that is being made in each thread.
        """
        ready: deque[tuple[T, torch.Event | None]] = deque()
        ended: list[BaseException | None] = []
        for source in sources:
            work = partial(self._make, source, ready, ended, waiting, f"stage {len(self._threads)}")
            thread = Thread(target=work, name="vidsieve-stage", daemon=True)
            thread.start()
            self._threads.append(thread)  # once it is there: the end of the block waits for all of them
        return self._taken(ready, ended, len(sources))

    def _make(
        self,
        items: Iterable[T],
        ready: deque[tuple[T, torch.Event | None]],
        ended: list[BaseException | None],
        waiting: int,
        stream: str,
    ) -> None:
        error = source = None
        try:
            with own_stream(self._device, stream):
                source = iter(items)
                while True:
                    self._wait(lambda: len(ready) < waiting)
                    item = next(source)
                    with self._changed:
                        ready.append((item, launched(self._device)))
                        self._changed.notify_all()
                    del item
        except (StopIteration, Stopped):
            pass
        except BaseException as raised:  # raised where the items are taken
            error = raised
        finally:
            if isinstance(source, Generator):
                source.close()  # at once: it may have a file open
        with self._changed:
            ended.append(error)
            error = None  # or it and this frame would hold each other, and the item, until garbage is collected
            self._changed.notify_all()

    def check(self) -> None:
        """Raise `Stopped` if the block has ended; for a stage that takes long over one item."""
        if self._stopped:
            raise Stopped

    def _wait(self, done: Callable[[], bool]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or done())
        self.check()

    def _taken(
        self, ready: deque[tuple[T, torch.Event | None]], ended: list[BaseException | None], sources: int
    ) -> Iterator[T]:
        while True:
            self._wait(lambda: bool(ready) or len(ended) == sources or any(one is not None for one in ended))
            if not ready:
                break
            with self._changed:
                item, event = ready.popleft()
                self._changed.notify_all()
            wait_for(event, self._device)
            yield item
            del item
        error = next(filter(None, ended), None)
        ended.clear()  # the list is held by a frame that an error holds
        if error is not None:
            try:
                raise error
            finally:
                del error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
