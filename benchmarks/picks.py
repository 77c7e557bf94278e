"""Milliseconds of a CPU that vLLM waits for the selection of a video: benchmarks/results/picks_cpu.json.

    OMP_NUM_THREADS=1 python -m benchmarks.picks

A call is what the plug-in does with the features of one video, in one thread, with the method that serves by default:
tokens, how many stay, the selection, the check for NaN, and the gather of what stays; the positions that go with it are
no part of it. Videos have the shapes of the 8 and 60 s of `benchmarks/serving.py`, one scene or eight, the width of the
model that is served there or of Qwen2.5-VL-7B. Shapes and videos take turns. `wall_ms` contains what else the machine
did meanwhile; `cpu_ms` is the time of the thread alone.

Before a shape is timed, what is kept of each of its videos is compared with what the float64 loops of `reference` keep.
`differing` is how many tokens are others, in the worst video, and `regret` the largest shortfall of a pick on its own
path, in float64 (method.md, eq. 13): near ties may fall otherwise, and later picks with them. A shape with a regret
above 1e-4, other budgets, or another number of tokens has no time.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidsieve.engines.vllm.settings import Method, order, ordered_count, retained
from vidsieve.evaluation.bench import REGRET
from vidsieve.evaluation.card import commit, processor, quantiles
from vidsieve.evaluation.regret import regret, unit64
from vidsieve.methods.measure import measure
from vidsieve.methods.prune import Prune
from vidsieve.types.tokens import VideoTokens

RESULTS = Path(__file__).parent / "results"
SIZES = {"8 s": ((8, 7, 7), 0.5, 3.0), "60 s": ((60, 7, 7), 0.9, 15.0)}  # frames, rows, columns; rate; ms wanted
FEATURES = (128, torch.float32), (3584, torch.bfloat16), (3584, torch.float32)  # of that benchmark's model, and of a 7B
SETS = 4  # videos that are taken in turns, so that no cache holds what comes next
WARM_UP = 5  # calls


@dataclass(frozen=True)
class Shape:
    """Videos of so many seconds and scenes, in a dtype."""

    seconds: str
    scenes: int
    dim: int
    dtype: torch.dtype

    def videos(self) -> list[Tensor]:
        """Features (N, dim) of `SETS` videos: scenes of one still each, with noise, around an offset of all."""
        frames, rows, columns = SIZES[self.seconds][0]
        g = torch.Generator().manual_seed(0)
        scene_of = torch.arange(frames) * self.scenes // frames
        made = []
        for _ in range(SETS):
            offset = torch.randn(self.dim, generator=g)
            stills = torch.randn(self.scenes, rows * columns, self.dim, generator=g)[scene_of]
            noise = 0.5 * torch.randn(frames, rows * columns, self.dim, generator=g)
            made.append((offset + stills + noise).to(self.dtype).flatten(0, 1))
        return made


def select(method: Method, x: Tensor, shape: Shape, ordered: Tensor) -> tuple[Tensor, Tensor]:
    """What the plug-in does with the features x (N, D) of a video: the kept tokens (K,), and theirs (K, D)."""
    size, rate, _ = SIZES[shape.seconds]
    tokens = VideoTokens.from_grid(x, *size)
    [reduction] = method.reduce_each([tokens], [ordered_count(ordered, len(tokens), rate)], [None])
    reduction.check()
    return torch.cat([reduction.kept]).cpu(), reduction.apply(x)


def check(method: Method, x: Tensor, shape: Shape, ordered: Tensor) -> dict[str, Any]:
    """Compare what is kept of x (N, D) with what `reference` keeps, and judge the picks in float64."""
    size, rate, _ = SIZES[shape.seconds]
    kept, gathered = select(method, x, shape, ordered)
    tokens, count = VideoTokens.from_grid(x, *size), retained(len(x), rate)
    reducer = method.build(count / len(x))
    if not isinstance(reducer, Prune):
        raise TypeError(f"expected the default method to be a Prune, got {reducer!r}")
    picks = reducer.pick(tokens)
    with implementation("reference"):
        true = reducer.pick(tokens)
        stats = measure(tokens, reducer.requires, None, true.segments)
        weights = reducer.relevance(tokens, stats, None).double()
    return {
        "tokens": len(x),
        "kept": len(kept),
        "segments": int((picks.segments.offsets.diff() > 0).sum()),
        "differing": len(set(kept.tolist()) - set(true.kept.tolist())),
        "regret": regret(unit64(x), weights, picks.segments.offsets.tolist(), picks.order),
        "right": len(kept) == count and torch.equal(gathered, x[kept]) and torch.equal(picks.budget, true.budget),
    }


@contextmanager
def implementation(name: str) -> Iterator[None]:
    """Have operations run as this one."""
    before = os.environ.get("VIDSIEVE_OPS", "auto")
    os.environ["VIDSIEVE_OPS"] = name
    try:
        yield
    finally:
        os.environ["VIDSIEVE_OPS"] = before


def measured(shapes: list[Shape], calls: int) -> list[dict[str, Any]]:
    """A row for each of the shapes, which take turns."""
    method, ordered = Method.named("vidsieve"), order(None, [])
    videos = [shape.videos() for shape in shapes]
    found = [[check(method, x, shape, ordered) for x in some] for shape, some in zip(shapes, videos, strict=True)]
    times: list[list[tuple[float, float]]] = [[] for _ in shapes]
    for call in range(WARM_UP + calls):
        for shape, some, taken in zip(shapes, videos, times, strict=True):
            wall, cpu = time.perf_counter(), time.thread_time()
            select(method, some[call % SETS], shape, ordered)
            taken.append((1e3 * (time.perf_counter() - wall), 1e3 * (time.thread_time() - cpu)))
        print(f"call {call + 1} of {WARM_UP + calls}", file=sys.stderr, flush=True)
    rows = []
    for shape, judged, taken in zip(shapes, found, times, strict=True):
        row = {"video": shape.seconds, "scenes": shape.scenes, "dim": shape.dim, "dtype": str(shape.dtype)[6:]}
        row |= {name: judged[0][name] for name in ("tokens", "kept", "segments")}
        row |= {name: max(one[name] for one in judged) for name in ("differing", "regret")}
        right = all(one["right"] for one in judged) and row["regret"] <= REGRET
        for name, column in (("wall_ms", 0), ("cpu_ms", 1)):
            spent = quantiles([both[column] for both in taken[WARM_UP:]])
            row[name] = dict(zip(("p20", "median", "p80"), spent, strict=True)) if right else None
        rows.append(row | {"wanted_ms": SIZES[shape.seconds][2]})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--calls", type=int, default=50, help="of each shape, after the first few (50)")
    parser.add_argument("--out", type=Path, default=RESULTS / "picks_cpu.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()
    shapes = [Shape(seconds, scenes, *kind) for seconds, scenes, kind in product(SIZES, (1, 8), FEATURES)]
    with torch.no_grad():
        rows = measured(shapes, options.calls)
    card = {
        "command": f"OMP_NUM_THREADS=1 python -m benchmarks.picks --calls {options.calls}",
        "device": processor(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load": [[round(one, 1) for one in loads] for loads in (load, os.getloadavg())],  # before and after
        "torch": torch.__version__,
        "numpy": version("numpy"),
        "vidsieve": version("vidsieve"),
        "commit": commit(),
    }
    options.out.write_text(json.dumps({"card": card, "rows": rows}, indent=1) + "\n")
    for row in rows:
        name = f"{row['video']:5} {row['scenes']} scenes, {row['dim']:5} {row['dtype']:9}"
        shown = "wrong" if row["cpu_ms"] is None else f"{row['cpu_ms']['median']:8.2f} ms"
        print(f"{name} {shown}, {row['wanted_ms']:g} wanted")


if __name__ == "__main__":
    main()
