"""Draw benchmark results.

    python -m benchmarks.plot                                  every benchmarks/results/ops_*.json and prefill_*.json
    python -m benchmarks.plot ops.json --out docs/images       one

ops: milliseconds of each case and variant, on a log axis. A dot is a median, its whisker the 20 and 80 % quantiles, the
grey tick the floor (or, on CPU, one batched Gram). vidsieve/evaluation/bench.py says what a case is.
prefill: milliseconds of each variant; the broken line is what its share of the FLOPs would be of the full one's time.
"""

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from benchmarks.figures import draw_each, save
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

STYLE = {  # colour, marker, what the legend says
    "guide-loop": ("#d55e00", "o", "a loop, pick after pick"),
    "lean-loop": ("#d55e00", "^", "the same, as lean as torch allows"),
    "cdpruner-loop": ("#e69f00", "v", "CDPruner's loop"),
    "eager": ("#7cc0ea", "s", "vidsieve, plain torch"),
    "triton": ("#2f86c6", "d", "vidsieve, Triton kernels"),
    "triton-graph": ("#0b3d66", "D", "vidsieve, kernels in a CUDA graph"),
    "floor": ("#777777", "|", "reading the features once, at the speed of a copy"),
    "bmm": ("#777777", "|", "one batched Gram matrix"),
}
OURS = "eager", "triton", "triton-graph"
WORDS = {  # of the cases of vidsieve.evaluation.bench; {n} frames of the load
    "default-10": "the default method, 10 % kept",
    "perframe-10": "each frame a segment, 10 % kept",
    "perframe-25": "each frame a segment, 25 %",
    "perframe-50": "each frame a segment, 50 %",
    "scenes8-10": "scenes as segments, 10 %",
    "seg784-25": "four frames a segment, 25 %",
    "global-5": "the video one segment, 5 %",
    "global-10": "the video one segment, 10 %",
    "fast-10": "each frame a segment, 10 %, by MMR",
    "frames8-10": "{eighth} frames only, 10 %",
    "frames32-10": "{half} frames only, 10 %",
    "batch8-10": "eight videos at once, 10 %",
}


def words(case: str, frames: int) -> str:
    """Say in words what a case of `bench ops` reduces; one of a user's own says it by its name."""
    if case in WORDS:
        return WORDS[case].format(eighth=frames // 8, half=frames // 2)
    return case.replace("-", " ")


def draw(path: Path, folder: Path) -> Path:
    """The figure of one JSON: folder / (stem of path).png."""
    found: dict[str, Any] = json.loads(path.read_text())
    card, rows = found["card"], [row for row in found["rows"] if row["median_ms"]]
    cases = list(dict.fromkeys(row["case"] for row in rows))
    figure, axes = plt.subplots(figsize=(11, 2.2 + 0.52 * len(cases)), layout="constrained")
    for row in rows:
        _dot(axes, cases.index(row["case"]), row)
    for y, case in enumerate(cases):
        _note(axes, y, {row["variant"]: row["median_ms"] for row in rows if row["case"] == case})
    axes.set_xscale("log")
    axes.margins(x=0.08)
    low, high = axes.get_xlim()
    narrow = high < 100 * low  # then powers of ten alone would be too few ticks
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,)))
    axes.xaxis.set_major_formatter("{x:g} ms")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks(range(len(cases)), [words(case, card["frames"]) for case in cases], fontsize=11)
    axes.set_ylim(len(cases) - 0.5, -0.7)
    axes.grid(color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, which="both")
    axes.spines[["top", "right", "left"]].set_visible(False)
    threads = "" if "copy_gb_s" in card else f", {card['threads']} threads"
    axes.set_title(
        f"One reduction of {card['frames']} frames of {card['tokens']} tokens, {card['dim']} features each\n"
        f"{card['dtype']}, {card['device']}{threads}; in brackets: how many times our fastest",
        fontsize=12,
        loc="left",
    )
    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle="", markersize=8, markeredgewidth=2, label=text)
        for name, (colour, marker, text) in STYLE.items()
        if any(row["variant"] == name for row in rows)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=10.5)
    return save(figure, path, folder)


def _dot(axes: Axes, y: int, row: dict[str, Any]) -> None:
    """Draw a median and its whisker; what nothing can be faster than, as a tick."""
    colour, marker, _ = STYLE[row["variant"]]
    if marker == "|":
        axes.plot(row["median_ms"], y, marker, color=colour, markersize=17, markeredgewidth=2.2)
        return
    axes.plot([row["q20_ms"], row["q80_ms"]], [y, y], color=colour, linewidth=2, solid_capstyle="butt")
    axes.plot(row["median_ms"], y, marker, color=colour, markersize=9, markeredgewidth=0.8, markeredgecolor="white")


def _note(axes: Axes, y: int, times: dict[str, float]) -> None:
    """Write the milliseconds of our fastest, and of the fastest loop with how many times that is."""
    loop = min((time for name, time in times.items() if name.endswith("-loop")), default=None)
    best = min((times[name] for name in OURS if name in times), default=None)
    beside: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "fontsize": 10}
    if best is not None:
        axes.annotate(_ms(best), (best, y), (0, 8), **beside)
    if loop is not None and best is not None:
        ratio = f"{loop / best:,.1f}" if loop < 10 * best else f"{loop / best:,.0f}"
        axes.annotate(f"{_ms(loop)} ({ratio}x)", (loop, y), (0, 8), **beside)


PREFILL = {  # colour, what the axis says
    "full": ("#5c5c5c", "every token"),
    "before-10": ("#0b3d66", "10 % of the video tokens, before the model"),
    "novelty-10": ("#2f86c6", "the same, by novelty"),
    "framefusion-cost-30": ("#e69f00", "framefusion, 30 % of the FLOPs"),
    "hieravid-30": ("#d55e00", "hieravid, 30 % of the FLOPs"),
}


def draw_prefill(path: Path, folder: Path) -> Path:
    """The figure of one prefill JSON: folder / (stem of path).png."""
    found: dict[str, Any] = json.loads(path.read_text())
    rows = [row for row in found["rows"] if row["median_ms"]]
    figure, axes = plt.subplots(figsize=(11, 1.5 + 0.62 * len(rows)), layout="constrained")
    full = next(row["median_ms"] for row in rows if row["variant"] == "full")
    for y, row in enumerate(rows):
        axes.barh(y, row["median_ms"], 0.5, color=PREFILL[row["variant"]][0])
        axes.plot([row["q20_ms"], row["q80_ms"]], [y, y], color="#222222", linewidth=2, solid_capstyle="butt")
        share = full * row["flops_share"]
        axes.plot([share, share], [y - 0.36, y + 0.36], color="#222222", linewidth=1.6, linestyle=(0, (2, 1.2)))
        notes = [_ms(row["median_ms"])]
        if row["peak_bytes"] is not None:
            notes.append(f"peak {row['peak_bytes'] / 2**30:.1f} GiB")
        notes.append(f"cache {row['kv_bytes'] / 2**20:,.0f} MiB")
        if row["variant"] != "full":
            notes.insert(1, f"of it {_ms(row['overhead_ms'])} hooks")
        right = max(row["median_ms"], row["q80_ms"], share)
        axes.annotate(", ".join(notes), (right, y), (8, 0), textcoords="offset points", va="center", fontsize=10.5)
    axes.set_yticks(range(len(rows)), [PREFILL[row["variant"]][1] for row in rows], fontsize=11)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, 1.7 * max(row["q80_ms"] for row in rows))
    axes.set_xlabel("milliseconds; broken line: the share of the FLOPs", fontsize=10.5)
    axes.tick_params(length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    card = found["card"]
    layers, hidden = (card["command"].split(f"--{name} ")[1].split()[0] for name in ("layers", "hidden"))
    axes.set_title(
        f"Prefill of {card['prompt']:,} tokens, {layers} layers of {hidden}, {card['dtype']} on {card['device']}",
        fontsize=12,
        loc="left",
    )
    return save(figure, path, folder)


def _ms(ms: float) -> str:
    return f"{ms:,.0f} ms" if ms >= 100 else f"{ms:.2g} ms"


def _draw(path: Path, folder: Path) -> Path:
    return (draw_prefill if path.stem.startswith("prefill") else draw)(path, folder)


if __name__ == "__main__":
    draw_each(_draw, __doc__ or "", "ops_*.json", "prefill_*.json")
