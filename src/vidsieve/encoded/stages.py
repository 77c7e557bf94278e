"""Run stages in threads of their own, so that one works on the next item while another has this one."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from threading import Condition, Thread
from types import TracebackType
from typing import Self, TypeVar

T = TypeVar("T")


class Stopped(Exception):
    """Raised in a stage whose items nobody wants any more."""


class Stages:
    """Threads that make items ahead of who takes them, until the end of the `with` block, which waits for them.

    with Stages() as stages:
        decoded = stages.ahead(read_chunks(frames, 64))
        for inputs in stages.ahead(map(process, decoded)): ...

    """

    def __init__(self) -> None:
        self._stopped = False
        self._changed = Condition()
        self._threads: list[Thread] = []

    def ahead(self, items: Iterable[T], waiting: int = 1) -> Iterator[T]:
        """Make `items` in a thread; what it raises is raised here, after the items before it.

        waiting: how many there are at most that are not taken, with the one that is being made.
        """
        ready: deque[T] = deque()
        ended: list[BaseException | None] = []

        def work() -> None:
            error = None
            try:
                source = iter(items)
                while True:
                    self._wait(lambda: len(ready) < waiting)
                    item = next(source)
                    with self._changed:
                        ready.append(item)
                        self._changed.notify_all()
                    del item
            except StopIteration:
                pass
            except BaseException as raised:  # raised where the items are taken
                error = raised
            with self._changed:
                ended.append(error)
                self._changed.notify_all()

        thread = Thread(target=work, name="vidsieve-encode", daemon=True)
        self._threads.append(thread)
        thread.start()
        return self._taken(ready, ended)

    def check(self) -> None:
        """Raise `Stopped` if the block has ended; for a stage that takes long over one item."""
        if self._stopped:
            raise Stopped

    def _wait(self, done: Callable[[], bool]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or done())
        self.check()

    def _taken(self, ready: deque[T], ended: list[BaseException | None]) -> Iterator[T]:
        while True:
            self._wait(lambda: bool(ready or ended))
            if not ready:
                break
            with self._changed:
                item = ready.popleft()
                self._changed.notify_all()
            yield item
            del item
        if ended[0] is not None:
            raise ended[0]

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
