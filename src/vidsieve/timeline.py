"""Milliseconds per stage, measured only while somebody listens, and without making the device wait.

    with Timeline() as timeline:
        reducer.reduce(tokens)          # its `with stage("select"):` blocks report here
    timeline.milliseconds()             # {"segment": 0.1, ...}

Outside a `Timeline` a stage costs one context-variable look-up. On CUDA a stage is bracketed by events, which are read
only when the figures are asked for.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Self

import torch

_listening: ContextVar["Timeline | None"] = ContextVar("vidsieve_timeline", default=None)


class Timeline:
    """Collects the stages that run inside its `with` block, in this thread."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.cuda = device is not None and device.type == "cuda"
        self._stages: list[tuple[str, float | tuple[torch.cuda.Event, torch.cuda.Event], float]] = []  # and its share

    def __enter__(self) -> Self:
        self._token = _listening.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _listening.reset(self._token)

    def milliseconds(self) -> dict[str, float]:
        """Total milliseconds a stage. On CUDA this waits for the stages to finish."""
        totals: dict[str, float] = {}
        for name, value, share in self._stages:
            if isinstance(value, tuple):
                value[1].synchronize()
                value = value[0].elapsed_time(value[1])
            totals[name] = totals.get(name, 0.0) + share * value
        return totals

    def shared(self, timeline: "Timeline", among: int) -> None:
        """Take over an equal share of what another measured for so many."""
        self._stages += [(name, value, share / among) for name, value, share in timeline._stages]

    @contextmanager
    def _measure(self, name: str) -> Iterator[None]:
        if self.cuda:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begin.record()
            yield
            end.record()
            self._stages.append((name, (begin, end), 1.0))
        else:
            start = time.perf_counter()
            yield
            self._stages.append((name, 1e3 * (time.perf_counter() - start), 1.0))


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Report the time of this block as stage `name` to the surrounding `Timeline`, if there is one."""
    timeline = _listening.get()
    if timeline is None:
        yield
    else:
        with timeline._measure(name):
            yield
