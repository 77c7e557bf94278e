"""Did it engage? A `Trace` records what became of every video that an attached model was shown.

Made for servers too: it holds the last calls only, and running totals of all.
"""

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from vidsieve.telemetry.timing import StageTimer
from vidsieve.types.pixels import PixelSelection
from vidsieve.types.reduction import Reduction
from vidsieve.types.spans import Span, seconds_of, spans


class OutputRows(Protocol):
    """What is known of the rows of an output."""

    @property
    def columns(self) -> Tensor:
        """The prompt's column of each: int64 (B, M), -1 on padding."""
        ...


@dataclass(frozen=True, eq=False)
class StageRecord:
    """What one stage made of one video: `before` tokens entered the layer's reduction, and `after` the layer.

    reduction: of the tokens that were left by then.
    """

    layer: int
    before: int
    after: int
    reduction: Reduction

    def to_dict(self) -> dict[str, Any]:
        return {"layer": self.layer, "tokens_before": self.before, "tokens_after": self.after}


@dataclass(frozen=True, eq=False)
class VideoRecord:
    """What became of one video.

    row: the prompt in its batch.  at: int64 (N,), the place of each of its tokens in that prompt, -1 for those that an
    encoded video came without (cpu).
    frames: tokens in each of its T frames.  grid: of a frame, where its tokens form one.
    stages: what became of it, layer by layer.
    """

    row: int
    at: Tensor
    frames: tuple[int, ...]
    grid: tuple[int, int] | None
    timer: StageTimer
    stages: tuple[StageRecord, ...] = ()

    @cached_property
    def reduction(self) -> Reduction:
        """From all its tokens to those that the last layer saw."""
        if not self.stages:
            return Reduction.identity(self.before, self.at.device)
        return reduce(Reduction.then, (stage.reduction for stage in self.stages))

    @property
    def before(self) -> int:
        return len(self.at)

    @property
    def after(self) -> int:
        return self.stages[-1].after if self.stages else self.before

    @cached_property
    def kept(self) -> list[int]:
        """Indices of the tokens that stayed, sorted. Waits for the device."""
        return [int(i) for i in self.reduction.kept.tolist()]

    def seconds(self, sampled: Sequence[float]) -> list[float]:
        """When each of `kept` is shown. sampled: the time stamps of the frames, as `Frames.seconds` has them."""
        return [float(second) for second in seconds_of(self.reduction.kept, self.frames, sampled).tolist()]

    def spans(self, sampled: Sequence[float]) -> tuple[Span, ...]:
        """Where most of `kept` are, the fullest part first. sampled: as above."""
        return spans(self.reduction.kept, self.frames, sampled)

    @cached_property
    def segments(self) -> list[tuple[int, int]] | None:
        """First and past-the-end token of each segment that holds any; None for a method without segments."""
        if self.reduction.offsets is None:
            return None
        bounds = self.reduction.offsets.tolist()
        return [(a, b) for a, b in pairwise(bounds) if b > a]

    @cached_property
    def budgets(self) -> list[int] | None:
        """Tokens that each of `segments` was granted; None for a method without budgets."""
        if self.reduction.offsets is None or self.reduction.budget is None:
            return None
        filled = (self.reduction.offsets.diff() > 0).tolist()
        return [int(n) for n, some in zip(self.reduction.budget.tolist(), filled, strict=True) if some]

    @cached_property
    def stages_ms(self) -> dict[str, float]:
        """Milliseconds of each stage. Waits for the device."""
        return self.timer.milliseconds()

    def __str__(self) -> str:
        return _sentence(self.before, self.after, self.segments, sum(self.stages_ms.values())) + self.by_layer

    @property
    def by_layer(self) -> str:
        """How many tokens each stage inside the model left; empty where there was none."""
        if all(stage.layer == 0 for stage in self.stages):
            return ""
        return " (" + ", ".join(f"{stage.after} from layer {stage.layer}" for stage in self.stages) + ")"

    def to_dict(self) -> dict[str, Any]:
        return {
            "row": self.row,
            "tokens_before": self.before,
            "tokens_after": self.after,
            "frames": list(self.frames),
            "grid": list(self.grid) if self.grid else None,
            "segments": [list(bounds) for bounds in self.segments] if self.segments is not None else None,
            "budgets": self.budgets,
            "kept": self.kept,
            "stages": [stage.to_dict() for stage in self.stages],
            "stages_ms": self.stages_ms,
        }


@dataclass(frozen=True, eq=False)
class CallRecord:
    """One forward pass that saw video tokens.

    sequence: tokens of the longest prompt before and after.  kv_length: tokens a row of the cache holds in the first
    layer once the decoder has run, None without a cache.  kv_bytes: what the cache then holds in each layer.
    flops: of the decoder's layers, all rows together, without any reduction and as it was.  rows: of the output.
    """

    videos: tuple[VideoRecord, ...]
    sequence: tuple[int, int]
    kv_length: int | None
    timer: StageTimer
    kv_bytes: tuple[int, ...] = ()
    flops: tuple[float, float] | None = None
    rows: OutputRows | None = None

    @property
    def columns(self) -> Tensor:
        """The prompt's column that each row of the output is of: int64 (B, M), -1 on padding."""
        return torch.zeros((0, 0), dtype=torch.int64) if self.rows is None else self.rows.columns

    @property
    def cost(self) -> float | None:
        """Share of the unreduced prefill's FLOPs that was spent; None where the decoder's layers are unknown."""
        return None if self.flops is None else self.flops[1] / self.flops[0]

    @cached_property
    def stages_ms(self) -> dict[str, float]:
        """Milliseconds of each stage, over all videos of the call, and of "gather". Waits for the device."""
        totals: dict[str, float] = {}
        for stages in (*(video.stages_ms for video in self.videos), self.timer.milliseconds()):
            for name, value in stages.items():
                totals[name] = totals.get(name, 0.0) + value
        return totals

    def to_dict(self) -> dict[str, Any]:
        return {
            "sequence": list(self.sequence),
            "kv_length": self.kv_length,
            "kv_bytes": list(self.kv_bytes),
            "flops": list(self.flops) if self.flops else None,
            "cost": self.cost,
            "stages_ms": self.stages_ms,
            "videos": [video.to_dict() for video in self.videos],
        }


class Trace:
    """What an attached reducer has done so far. `print` it.

    calls: the last `remembered` forward passes that saw video tokens, oldest first.  totals: of all passes ever, the
    number of "calls", "videos", "tokens_before", "tokens_after".  tower: how the vision tower last ran, and why.
    tower_slow: whether it could have run by fewer kernels.  pixels: which groups of pixels it computed, for each video
    of its last call with any; empty without a selector before it.  reduces: whether there is a reducer, or a tower
    alone.
    """

    def __init__(self, remembered: int = 64) -> None:
        self.tower, self.tower_slow, self.reduces = "stock", False, True
        self.pixels: tuple[PixelSelection, ...] = ()
        self._calls: deque[CallRecord] = deque(maxlen=remembered)
        self._totals = {"calls": 0, "videos": 0, "tokens_before": 0, "tokens_after": 0}
        self._lock = threading.Lock()

    def add(self, call: CallRecord) -> None:
        """Record a forward pass; any thread may."""
        with self._lock:
            self._calls.append(call)
            self._totals["calls"] += 1
            self._totals["videos"] += len(call.videos)
            self._totals["tokens_before"] += sum(video.before for video in call.videos)
            self._totals["tokens_after"] += sum(video.after for video in call.videos)

    @property
    def calls(self) -> list[CallRecord]:
        with self._lock:
            return list(self._calls)

    @property
    def totals(self) -> dict[str, int]:
        with self._lock:
            return dict(self._totals)

    @property
    def videos(self) -> list[VideoRecord]:
        """The videos of the calls it remembers."""
        return [video for call in self.calls for video in call.videos]

    @property
    def kv_length(self) -> int | None:
        """Tokens a row of the cache held after the last prefill; None before one, or without a cache."""
        calls = self.calls
        return calls[-1].kv_length if calls else None

    @property
    def kv_bytes(self) -> tuple[int, ...]:
        """Bytes that each layer of the cache held after the last prefill; empty before one, or without a cache."""
        calls = self.calls
        return calls[-1].kv_bytes if calls else ()

    @property
    def flops(self) -> tuple[float, float] | None:
        """FLOPs of the last prefill in the decoder's layers: without any reduction, and spent."""
        calls = self.calls
        return calls[-1].flops if calls else None

    @property
    def cost(self) -> float | None:
        """Share of the unreduced prefill's FLOPs that the last one spent."""
        calls = self.calls
        return calls[-1].cost if calls else None

    @property
    def stages_ms(self) -> dict[str, float]:
        """Milliseconds of each stage, over the calls it remembers. Waits for the device."""
        totals: dict[str, float] = {}
        for call in self.calls:
            for name, value in call.stages_ms.items():
                totals[name] = totals.get(name, 0.0) + value
        return totals

    def __str__(self) -> str:
        if not self.reduces:
            return f"tower: {self.tower}"
        return self._videos_text() + f"\n  tower: {self.tower}" * (self.tower_slow or bool(self.pixels))

    def _videos_text(self) -> str:
        totals, videos = self.totals, self.videos
        if not totals["videos"]:
            return "no video tokens seen"
        if totals["videos"] == 1:
            segments, spent = videos[0].segments, sum(self.stages_ms.values())
            text = _sentence(totals["tokens_before"], totals["tokens_after"], segments, spent)
            return text + videos[0].by_layer + _share(self.calls)
        lines = [_sentence(totals["tokens_before"], totals["tokens_after"]) + f", {totals['videos']} videos"]
        if totals["calls"] > 1:
            lines[0] += f" in {totals['calls']} calls"
        lines[0] += _share(self.calls)
        if forgotten := totals["videos"] - len(videos):
            lines.append(f"  ({forgotten} earlier videos no longer remembered)")
        lines += [f"  prompt {video.row}: {video}" for video in videos]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<Trace: {str(self).splitlines()[0]}>"

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON knows it. Waits for the device."""
        return {
            **self.totals,
            "tower": self.tower,
            "pixels": [{"groups": len(chosen.source), "computed": len(chosen)} for chosen in self.pixels],
            "remembered_calls": [call.to_dict() for call in self.calls],
        }


def _sentence(
    before: int, after: int, segments: list[tuple[int, int]] | None = None, milliseconds: float | None = None
) -> str:
    text = f"{before} video tokens -> {after} kept ({100 * after / before:.1f} %)"
    if segments is not None:
        text += f" in {len(segments)} segment{'s' * (len(segments) != 1)}"
    return text if milliseconds is None else f"{text}, {milliseconds:.1f} ms"


def _share(calls: list[CallRecord]) -> str:
    known = [call.flops for call in calls if call.flops is not None]
    if not known:
        return ""
    full, spent = map(sum, zip(*known, strict=True))
    return f", {100 * spent / full:.1f} % of the prefill FLOPs"
