"""Reductions on a GPU, captured as a CUDA graph for a layout of video and replayed for the next video laid out alike.

To reduce a video takes some ten launches, and to launch them one by one takes the host several times what they take the
device. A graph of them is one launch. So a layout that is seen a few times in a row is captured, with the memory it
needs, until another layout is; a video of any other layout is reduced launch by launch, as ever.

What is captured reads its input and leaves its answer where it always did. So the features are copied there, and the
answer is copied out: as one piece, for a copy costs the host what a launch does.
"""

import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from vidsieve import ops
from vidsieve.engines.streams import stream_for
from vidsieve.methods.base import Plan, PlannedReducer, Reducer
from vidsieve.telemetry.timing import timed, timing_disabled
from vidsieve.types.reduction import Reduction
from vidsieve.types.segments import Segments
from vidsieve.types.statistics import OriginalStatistics
from vidsieve.types.tokens import Prompt, VideoTokens

T = TypeVar("T")

# Bytes of features, and of what a reduction needs besides them: with more it is the device that takes long, and what a
# graph holds is lost to all others.
LARGEST, MOST = 1 << 27, 1 << 29
TIMES = 4  # that a layout comes in a row before it is captured, which costs what some five replays save
PERSISTENCE, CUT = "persistence of the original", "segments of the original"  # as parts of an answer
ALIGNED = 16  # bytes that kernels expect a tensor to begin at a multiple of


class TooLarge(RuntimeError):
    """A graph would take more memory than there is, or than a replay is worth."""


class ReductionGraph:
    """`reducer`, replayed where it can be."""

    def __init__(self, reducer: Reducer) -> None:
        self.reducer = reducer
        self._lock = threading.Lock()
        self._last: object = None  # the layout of the last video
        self._times = 0  # that it came in a row
        self._too_large: object = None  # the last layout that was
        self._broken = False  # a capture failed: there is no second
        self._captured: CapturedGraph | None = None

    def clear(self) -> None:
        """Give back the memory of what is captured."""
        with self._lock:
            self._last = self._captured = None

    def reduce_each(
        self, videos: Sequence[VideoTokens], prompts: Sequence[Prompt | None]
    ) -> Callable[[], list[Reduction]]:
        """The reduction of each video, by calling what is returned: one alone is replayed if it can be.

        What only the device knows of a replay is waited for then, and until then the host may have other things to do.
        """
        reducer = self.reducer
        if (
            len(videos) == 1
            and isinstance(reducer, PlannedReducer)
            and suits(videos[0])
            and reducer.replayable(videos[0])
        ):
            plan = self._replayed(reducer, videos[0], prompts[0] if "similarity" in reducer.requires else None)
            if plan is not None:
                return lambda: [reducer.finalize(videos[0], plan)]
        reductions = reducer.reduce_each(videos, prompts)
        return lambda: reductions

    def _replayed(self, reducer: PlannedReducer, video: VideoTokens, prompt: Prompt | None) -> Plan | None:
        """What the device answers `reducer` about `video`; None where its layout is new, or cannot be captured."""
        x, asked = video.features, None if prompt is None else prompt.embeddings
        # On one stream, the device is done with one video before it begins with the next.
        of = None if asked is None else _layout(asked)
        key = _layout(x), tuple(video.frames), video.grid, video.original_count, of, _stream(x)
        with self._lock:
            self._times = self._times + 1 if self._last == key else 1
            self._last = key
            if self._captured is None or self._captured.key != key:
                if self._times < TIMES or self._broken or key == self._too_large or not _undisturbed():
                    return None
                try:
                    self._captured = CapturedGraph(key, reducer, video, prompt, self._captured)
                    self._too_large = None
                except (TooLarge, torch.OutOfMemoryError):
                    self._too_large = key
                    return None
                except RuntimeError as error:
                    self._broken = True
                    warnings.warn(f"{reducer!r} is launched step by step, not replayed: {error}", stacklevel=2)
                    return None
            with timed("replay"):
                return self._captured.replay(video, prompt)


def suits(video: VideoTokens) -> bool:
    """Say whether a reduction of `video` can be captured and is worth it, whatever the method.

    It is where kernels reduce it, on a GPU, outside of any other graph, and not for long.
    """
    x = video.features
    return (
        x.is_cuda
        and x.nbytes <= LARGEST
        and video.provenance is None
        and video.regular
        and ops.together(x, len(video.frames))
        and not torch.is_autocast_enabled("cuda")  # which may be another at the next call
        and not torch.compiler.is_compiling()
        and not torch.cuda.is_current_stream_capturing()
    )


def _undisturbed() -> bool:
    """Whether a capture can be. Before torch 2.12 no other thread may draw random numbers on the device meanwhile."""
    major, minor = map(int, torch.__version__.split(".")[:2])
    return (major, minor) >= (2, 12) or threading.active_count() == 1


def _layout(x: Tensor) -> tuple[object, ...]:
    return x.shape, x.dtype, x.device


def _stream(x: Tensor) -> object:
    return torch.cuda.current_stream(x.device)


class CapturedGraph:
    """What `reducer` asks of the device for one layout, as a graph that reads and writes memory of its own."""

    def __init__(
        self,
        key: object,
        reducer: PlannedReducer,
        video: VideoTokens,
        prompt: Prompt | None,
        before: "CapturedGraph | None",
    ) -> None:
        """`before` leaves its memory to this one, and is not replayed again once there is this one."""
        self.key = key
        with torch.inference_mode(False), torch.no_grad(), timing_disabled():  # or nobody else might write to it
            self._features = video.features.clone()
            self._prompt = None if prompt is None else Prompt(prompt.embeddings.clone())
            like = replace(video, features=self._features)

            def ask() -> tuple[Plan, Tensor]:
                plan = reducer.plan(replace(like), self._prompt)  # a copy, for which nothing is computed yet
                return plan, _packed(list(_tensors(plan).values()))

            pool = None if before is None else before.graph.pool()
            graph, (plan, self._answer) = capture(ask, video.features.device, pool)
        self.graph: Any = graph
        self._cuts = [(segmenter, segments.longest) for segmenter, segments in plan.original_statistics.segments]
        # Where each part of the answer is, counted in numbers of its type.
        self._places: list[tuple[str, torch.dtype, int, int]] = []
        begin = 0
        for name, x in _tensors(plan).items():
            first = begin // x.itemsize
            self._places.append((name, x.dtype, first, first + len(x)))
            begin += x.nbytes + -x.nbytes % ALIGNED

    def replay(self, video: VideoTokens, prompt: Prompt | None) -> Plan:
        """What the device answers about `video`."""
        self._features.copy_(video.features)
        if self._prompt is not None and prompt is not None:
            self._prompt.embeddings.copy_(prompt.embeddings)
        self.graph.replay()
        answer = self._answer.clone()
        numbers = {dtype: answer.view(dtype) for dtype in {place[1] for place in self._places}}
        named = {name: numbers[dtype][first:last] for name, dtype, first, last in self._places}
        segments = tuple((by, Segments(named[f"{CUT} {i}"], longest)) for i, (by, longest) in enumerate(self._cuts))
        return Plan(named, OriginalStatistics(named.get(PERSISTENCE), segments))


def _tensors(plan: Plan) -> dict[str, Tensor]:
    """All tensors of a plan, by name."""
    original = plan.original_statistics
    named = {**plan.tensors, **{f"{CUT} {i}": cut.offsets for i, (_, cut) in enumerate(original.segments)}}
    return named if original.persistence is None else {**named, PERSISTENCE: original.persistence}


_capturing = threading.Lock()  # a process may capture one graph at a time


def capture(ask: Callable[[], T], device: torch.device, pool: Any) -> tuple[Any, T]:
    """A CUDA graph of what `ask` does on `device`, and what it returned: where a replay leaves its answer.

    pool: of a graph that gives its memory up, None for memory of its own.
    Raises `TooLarge`, and `RuntimeError` if CUDA refuses.
    """
    with _capturing, torch.cuda.device(device):
        before = _ever_allocated(device)
        ask()  # what is done once in a process, such as to compile, cannot be captured
        need = _ever_allocated(device) - before
        torch.cuda.synchronize()
        if need <= MOST and torch.cuda.mem_get_info(device)[0] < need:
            torch.cuda.empty_cache()  # what torch keeps for later is of no use to a graph
        if need > min(MOST, torch.cuda.mem_get_info(device)[0]):
            raise TooLarge(f"{need >> 20} MiB besides the features")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream_for("capture", device)):
            graph.capture_begin(pool, capture_error_mode="thread_local")  # other threads may do as they like
            try:
                found = ask()
            finally:
                graph.capture_end()
    return graph, found


def _ever_allocated(device: torch.device) -> int:
    """Bytes of all tensors there have been: what is allocated between two looks is at least what is needed at once.

    Other threads' are among them, so that a busy process captures less.
    """
    return int(torch.cuda.memory_stats(device).get("allocated_bytes.all.allocated", 0))


def _packed(tensors: Sequence[Tensor]) -> Tensor:
    """Bytes of tensors (n,), one after another, each beginning where kernels expect it to."""
    gap = torch.zeros(ALIGNED, dtype=torch.uint8, device=tensors[0].device)
    return torch.cat([part for x in tensors for part in (x.view(torch.uint8), gap[: -x.nbytes % ALIGNED])])
