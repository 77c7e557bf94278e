"""Milliseconds per stage, measured only while somebody listens, and without making the device wait.

    with StageTimer() as timer:
        reducer.reduce(tokens)          # its `with timed("select"):` blocks report here
    timer.milliseconds()                # {"segment": 0.1, ...}

Outside a `StageTimer` a stage costs one context-variable look-up. On CUDA the moments are events, which are read only
when the figures are asked for. Each costs the host about what a launch does, so a stage begins with the event that
ended the one before it, also in a `StageTimer` within another: the little between two stages counts as the second's.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Self

import torch

_listening: ContextVar["StageTimer | None"] = ContextVar("vidsieve_stage_timer", default=None)


class StageTimer:
    """Collects the stages that run inside its `with` block, in this thread."""

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = device if device is not None and device.type == "cuda" else None
        self._stages: list[tuple[str, Any, Any, float]] = []  # name, begin, end, and its share

    def __enter__(self) -> Self:
        around = _listening.get()
        self._around = around if around is not None and around._device == self._device else None
        self._token = _listening.set(self)
        if self._around is None:
            self._stream = None if self._device is None else torch.cuda.current_stream(self._device)
            self._last: Any = None
        else:
            self._stream, self._last = self._around._stream, self._around._last
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _listening.reset(self._token)
        if self._around is not None:
            self._around._last = self._last

    def milliseconds(self) -> dict[str, float]:
        """Total milliseconds a stage. On CUDA this waits for the stages to finish."""
        totals: dict[str, float] = {}
        for name, begin, end, share in self._stages:
            if isinstance(end, torch.cuda.Event):
                end.synchronize()
                spent = begin.elapsed_time(end)
            else:
                spent = end - begin
            totals[name] = totals.get(name, 0.0) + share * spent
        return totals

    def shared(self, timer: "StageTimer", among: int) -> None:
        """Take over an equal share of what another measured for so many."""
        self._stages += [(*measured, share / among) for *measured, share in timer._stages]

    def _now(self) -> Any:
        """This moment: an event of the device, or milliseconds."""
        if self._stream is None:
            return 1e3 * time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return event


@contextmanager
def timing_disabled() -> Iterator[None]:
    """Nobody listens to the stages of this block."""
    token = _listening.set(None)
    try:
        yield
    finally:
        _listening.reset(token)


class timed:  # lower case, for it reads as a statement
    """Report the time of this block as stage `name` to the surrounding `StageTimer`, if there is one."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        self._timer = timer = _listening.get()
        if timer is not None and timer._last is None:
            timer._last = timer._now()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        timer = self._timer
        if timer is not None and error is None:
            begin, timer._last = timer._last, timer._now()
            timer._stages.append((self.name, begin, timer._last, 1.0))
