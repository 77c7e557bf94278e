"""Milliseconds and memory of a whole reduction, beside the loops people run today and beside the floor.

    vidsieve bench ops --out benchmarks/results/ops_h200.json

A case is `reduce` (measure, segments, budget, relevance, selection) plus the gather of the kept rows, on video-like
features. Before anything is timed its picks are judged in float64 (method.md, eq. 13); what fails has no time.
Variants take turns within a round, and input sets take turns too, so that neither drift nor a cache favours one.

    guide-loop     the guide's per-segment greedy, a host synchronisation a pick          baselines.py
    lean-loop      the same, its greedy as lean as plain torch allows
    cdpruner-loop  CDPruner's loop over one kernel of all tokens                          baselines.py
    eager          batched torch              triton  kernels, launched one by one
    triton-graph   the same, captured once in a CUDA graph and replayed
    floor          reading the features once, at the copy bandwidth measured in the same run (CUDA)
    bmm            one batched bf16 Gram matrix of every frame (CPU)
"""

import ctypes
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidsieve import ops
from vidsieve.evaluation import baselines
from vidsieve.evaluation.card import commit, processor, quantiles, version_of
from vidsieve.evaluation.regret import regret, relevance64, unit64
from vidsieve.methods.budget import MarginalGain, Proportional
from vidsieve.methods.measure import measure
from vidsieve.methods.prune import Prune
from vidsieve.methods.relevance import Flat, PromptSimilarity
from vidsieve.methods.segment import PerFrame, SceneCuts, Uniform, Whole
from vidsieve.methods.selection import MMR, ConditionalDPP
from vidsieve.types.tokens import Prompt, VideoTokens

REGRET = 1e-4  # largest shortfall of a pick that still counts as right, of a squared token length
SETS = 3, 24  # of features to rotate through, at least and at most,
SETS_BYTES = 200 << 20  # and between them so many that no cache holds them all
SLOW_MS = 100.0  # a variant slower than this is timed in the first rounds only
SLOW_ROUNDS = 5

FRAME = Prune(0.1, PerFrame(), Proportional(), PromptSimilarity(), ConditionalDPP())
WHOLE = replace(FRAME, segmenter=Whole())
Case = tuple[Prune, float, int]  # method, share of the frames, videos
CASES: dict[str, Case] = {
    "default-10": (Prune(0.1), 1, 1),
    "perframe-10": (FRAME, 1, 1),
    "perframe-25": (replace(FRAME, keep=0.25), 1, 1),
    "perframe-50": (replace(FRAME, keep=0.5), 1, 1),
    "scenes8-10": (replace(FRAME, segmenter=SceneCuts(), budget=MarginalGain()), 1, 1),
    "seg784-25": (replace(FRAME, keep=0.25, segmenter=Uniform(4)), 1, 1),
    "global-5": (replace(WHOLE, keep=0.05), 1, 1),
    "global-10": (WHOLE, 1, 1),
    "fast-10": (replace(FRAME, selector=MMR()), 1, 1),
    "frames8-10": (FRAME, 1 / 8, 1),
    "frames32-10": (FRAME, 1 / 2, 1),
    "batch8-10": (FRAME, 1, 8),
}


@dataclass(frozen=True)
class Load:
    """What is reduced: frames of tokens of dim features, on a device, in a dtype; relevance by a prompt or flat."""

    frames: int = 64
    tokens: int = 196
    dim: int = 3584
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.bfloat16
    flat: bool = False

    def features(self, frames: int, seed: int) -> Tensor:
        """(T * P, D): eight scenes of one still each, with noise, around an offset that all tokens share."""
        g = torch.Generator(self.device).manual_seed(seed)
        kind: Any = {"generator": g, "device": self.device}
        offset, per_scene = torch.randn(self.dim, **kind), -(-frames // 8)
        out = torch.empty(frames, self.tokens, self.dim, device=self.device, dtype=self.dtype)
        for t in range(frames):
            if t % per_scene == 0:
                scene = torch.randn(self.tokens, self.dim, **kind)
            out[t] = offset + scene + 0.5 * torch.randn(self.tokens, self.dim, **kind)
        return out.view(-1, self.dim)

    def video(self, x: Tensor) -> VideoTokens:
        return VideoTokens(x, (self.tokens,) * (len(x) // self.tokens))


def uniform_case(keep: float, frames: int) -> dict[str, Case]:
    """One case of one's own: segments of so many frames."""
    return {f"{frames}-frame-segments-keep-{keep:g}": (replace(FRAME, keep=keep, segmenter=Uniform(frames)), 1, 1)}


def bench(
    load: Load,
    cases: dict[str, Case],
    rounds: int,
    tell: Callable[[str], None] = lambda _: None,
    command: str = "vidsieve.evaluation.bench.bench",
    save: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """The card and the rows of `cases`, each variant that can run on the device judged, then timed.

    `save` gets what there is after every case, so that a run that is broken off leaves the cases it did.
    """
    found = {"command": command, **card(load), "cases": list(cases), "rounds": rounds}
    rows: list[dict[str, Any]] = []
    for case, (method, share, videos) in cases.items():
        if load.flat:
            method = replace(method, relevance=Flat())
        tell(case)
        rows += _case(case, method, load, max(1, round(load.frames * share)), videos, rounds, found)
        save({"card": found, "rows": rows})
    return {"card": found, "rows": rows}


def card(load: Load) -> dict[str, Any]:
    """Where and on what the figures were taken."""
    cuda = load.device.type == "cuda"
    found = {
        "frames": load.frames,
        "tokens": load.tokens,
        "dim": load.dim,
        "device": torch.cuda.get_device_name(load.device) if cuda else processor(),
        "threads": torch.get_num_threads(),
        "dtype": str(load.dtype).removeprefix("torch."),
        "relevance": "flat" if load.flat else "prompt",
        "feature_bytes": load.frames * load.tokens * load.dim * load.dtype.itemsize,
        "torch": torch.__version__,
        "triton": version_of("triton"),
        "vidsieve": version("vidsieve"),
        "commit": commit(),
        "regret_allowed": REGRET,
    }
    return found | ({"copy_gb_s": round(_copy_bandwidth(load.device) / 1e9)} if cuda else {})


def _case(
    case: str, method: Prune, load: Load, frames: int, videos: int, rounds: int, card: dict[str, Any]
) -> list[dict[str, Any]]:
    size = videos * frames * load.tokens * load.dim * load.dtype.itemsize
    count = min(max(SETS[0], -(-SETS_BYTES // size)), SETS[1])
    sets = [torch.cat([load.features(frames, seed * videos + v) for v in range(videos)]) for seed in range(count)]
    g = torch.Generator(load.device).manual_seed(99)
    question = torch.randn(8, load.dim, generator=g, device=load.device).to(load.dtype)
    prompt = Prompt(question)

    def reduce(x: Tensor) -> list[Tensor]:
        parts = x.chunk(videos)
        reductions = method.reduce_each([load.video(part) for part in parts], [prompt] * videos)
        return [reduction.apply(part) for reduction, part in zip(reductions, parts, strict=True)]

    variants: dict[str, Callable[[int], object]] = {}
    regrets: dict[str, float] = {}
    first = sets[0].chunk(videos)
    truth = unit64(sets[0]), torch.cat([_weights(method, load.video(x), prompt) for x in first])
    trade = method.selector.trade if isinstance(method.selector, MMR) else None
    bounds, budgets = [0], list[int]()
    for x in first:
        its_bounds, its_budgets = _layout(method, load.video(x), prompt)
        bounds += [bounds[-1] + bound for bound in its_bounds[1:]]
        budgets += its_budgets

    for name in ("eager", "triton"):
        if not ops.available()[name] and (name == "eager" or load.device.type == "cuda"):
            with _using(name):
                batch = videos > 1 and ops.together(sets[0], frames)
                parts = [VideoTokens.stack([load.video(x) for x in first])] if batch else map(load.video, first)
                asked = Prompt.stack([prompt] * videos) if batch else prompt
                order = torch.cat([method.pick(part, asked).order for part in parts])
                whole = int((order >= 0).sum()) == sum(budgets)  # too few picks could have no regret
                regrets[name] = regret(*truth, bounds, order, trade) if whole else math.inf
            variants[name] = lambda i, name=name: _run(name, reduce, sets[i])  # type: ignore[misc]
    peaks: dict[str, int | None] = {}
    if "triton" in variants:
        regrets["triton-graph"] = regrets["triton"]
        variants["triton-graph"], peaks["triton-graph"] = _graphed(reduce, sets)
    if videos == 1 and trade is None and isinstance(method.relevance, PromptSimilarity | Flat):
        for name, loop in _loops(method, None if load.flat else question, bounds, budgets).items():
            regrets[name] = regret(*truth, bounds, _order_of(loop(sets[0]), bounds, len(sets[0])))
            variants[name] = lambda i, loop=loop: sets[i][loop(sets[i])]  # type: ignore[misc]
    if load.device.type == "cpu" and videos == 1:
        frame = [x.view(frames, load.tokens, -1).bfloat16() for x in sets]
        variants["bmm"] = lambda i: frame[i] @ frame[i].mT

    del truth
    right = {name: run for name, run in variants.items() if not regrets.get(name, 0.0) > REGRET}
    peaks |= {name: _peak(run, load.device) for name, run in right.items() if name not in peaks}
    times = _times(right, rounds, len(sets), load.device)
    rows = [_row(case, name, times.get(name), peaks.get(name), regrets.get(name)) for name in variants]
    if "copy_gb_s" in card:
        rows.append(_row(case, "floor", [round(sets[0].nbytes / card["copy_gb_s"] / 1e6, 4)], 0, None))
    return rows


def _loops(
    method: Prune, question: Tensor | None, bounds: list[int], budgets: list[int]
) -> dict[str, Callable[[Tensor], Tensor]]:
    """The loops that people run today in place of `method`, each from features (N, D) to the tokens it keeps (K,)."""
    if isinstance(method.segmenter, Whole):
        return {"cdpruner-loop": lambda x: baselines.cdpruner_loop(x, question, sum(budgets))}
    return {
        "guide-loop": lambda x: baselines.guide_loop(x, question, bounds, budgets),
        "lean-loop": lambda x: baselines.lean_loop(x, question, bounds, budgets),
    }


def _row(case: str, variant: str, times: list[float] | None, peak: int | None, regret: float | None) -> dict[str, Any]:
    """A row of the table. times: milliseconds of each call, None where it was not timed.  peak: bytes."""
    low, median, high = quantiles(times) if times else (None, None, None)
    return {"case": case, "variant": variant, "median_ms": median, "q20_ms": low, "q80_ms": high,
            "peak_bytes": peak, "regret": regret}  # fmt: skip


def _weights(method: Prune, tokens: VideoTokens, prompt: Prompt) -> Tensor:
    """The relevance by which picks are judged: float64 (N,).

    To the prompt it is computed anew in float64; any other is a part of the method, and taken as it gives it.
    """
    if isinstance(method.relevance, PromptSimilarity | Flat):
        return relevance64(tokens.features, None if isinstance(method.relevance, Flat) else prompt.embeddings)
    return method.relevance(tokens, measure(tokens, method.requires, prompt), prompt).double()


def _layout(method: Prune, tokens: VideoTokens, prompt: Prompt) -> tuple[list[int], list[int]]:
    """Bounds and budgets of the non-empty segments, on the host."""
    picks = method.pick(tokens, prompt)
    offsets = picks.segments.offsets.tolist()
    live = [(a, b, k) for a, b, k in zip(offsets, offsets[1:], picks.budget.tolist(), strict=False) if b > a]
    return [0, *(b for _, b, _ in live)], [k for _, _, k in live]


def _order_of(picks: Tensor, bounds: list[int], n: int) -> Tensor:
    """Picks (K,), segment after segment, as steps within each: (n,)."""
    order = torch.full((n,), -1, dtype=torch.int64, device=picks.device)
    segment = torch.bucketize(picks, torch.tensor(bounds[1:], device=picks.device), right=True)
    first = torch.searchsorted(segment, segment)
    order[picks] = torch.arange(len(picks), device=picks.device) - first
    return order


@contextmanager
def _using(implementation: str) -> Iterator[None]:
    before = os.environ.get("VIDSIEVE_OPS")
    os.environ["VIDSIEVE_OPS"] = implementation
    try:
        yield
    finally:
        if before is None:
            del os.environ["VIDSIEVE_OPS"]
        else:
            os.environ["VIDSIEVE_OPS"] = before


def _run(implementation: str, reduce: Callable[[Tensor], list[Tensor]], x: Tensor) -> list[Tensor]:
    with _using(implementation):
        return reduce(x)


def _graphed(reduce: Callable[[Tensor], list[Tensor]], sets: list[Tensor]) -> tuple[Callable[[int], object], int]:
    """One graph an input set, and the bytes one took at capture (a replay allocates nothing).

    Raises RuntimeError if a replay on new data is not what a launch gives.
    """
    with _using("triton"):
        static = sets[0].clone()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        graph, out = _capture(reduce, static)
        peak = torch.cuda.max_memory_allocated() - before
        static.copy_(sets[1])
        graph.replay()
        if not all(map(torch.equal, out, reduce(sets[1]))):
            raise RuntimeError("replaying the captured graph on new data did not give what a launch gives")
        del static, graph, out
        graphs = [_capture(reduce, x)[0] for x in sets]
    return lambda i: graphs[i].replay(), peak


def _capture(reduce: Callable[[Tensor], list[Tensor]], x: Tensor) -> tuple[Any, list[Tensor]]:
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        reduce(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = reduce(x)
    return graph, out


def _times(
    variants: dict[str, Callable[[int], object]], rounds: int, sets: int, device: torch.device
) -> dict[str, list[float]]:
    """Milliseconds of every call, variants taking turns."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(-2, rounds):  # the first two are warm-up
        for name, run in variants.items():
            slow = times[name] and min(times[name]) > SLOW_MS
            if slow and len(times[name]) >= SLOW_ROUNDS:
                continue
            elapsed = _time(run, turn % sets, device)
            if turn >= 0:
                times[name].append(elapsed)
    return times


def _time(run: Callable[[int], object], which: int, device: torch.device) -> float:
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        begin.record()
        run(which)
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end))
    start = time.perf_counter()
    run(which)
    return 1e3 * (time.perf_counter() - start)


def _peak(run: Callable[[int], object], device: torch.device) -> int | None:
    """Most bytes that one call holds beyond what was held before it; None where the system does not tell.

    On CPU: the high-water mark of the resident set, reset before the call (Linux), after the allocator gave back what
    it kept. Memory that it kept all the same would be missed, so this is a lower bound there.
    """
    if device.type == "cuda":
        run(0)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run(0)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated(device) - before
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        run(0)
        return _status("VmHWM") - before
    except (OSError, AttributeError):
        return None


def _status(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def _copy_bandwidth(device: torch.device) -> float:
    """Bytes read and written a second by a large device-to-device copy."""
    x = torch.empty(1 << 30, dtype=torch.uint8, device=device)
    y = torch.empty_like(x)
    best = min(_time(lambda _: y.copy_(x), 0, device) for _ in range(10))
    return 2 * x.numel() / best * 1e3


def table(found: dict[str, Any]) -> Any:
    """The rows as a rich table."""
    from rich.table import Table

    out = Table("case", "variant", "median ms", "20 %", "80 %", "peak / features", "regret", box=None)
    size = found["card"]["feature_bytes"]
    for row in found["rows"]:
        ms = [("wrong picks" if v is None and i == 0 else "" if v is None else f"{v:,.3f}")
              for i, v in enumerate((row["median_ms"], row["q20_ms"], row["q80_ms"]))]  # fmt: skip
        peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / size:.2f}"
        worst = "" if row["regret"] is None or math.isnan(row["regret"]) else f"{row['regret']:.0e}"
        out.add_row(row["case"], row["variant"], *ms, peak, worst)
    return out
