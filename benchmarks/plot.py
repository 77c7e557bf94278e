"""Draw benchmark results.

    python -m benchmarks.plot                                  every benchmarks/results/ops_*.json and prefill_*.json
    python -m benchmarks.plot ops.json --out docs/images       one

ops: milliseconds of each case and variant, on a log axis. A dot is a median, its whisker the 20 and 80 % quantiles, the
grey tick the floor (or, on CPU, one batched Gram).
prefill: milliseconds of each variant; the grey mark is what its share of the FLOPs would be of the full one's time.
"""

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from benchmarks.figures import draw_each, save
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

STYLE = {  # colour, marker, what the legend says
    "guide-loop": ("#b24a3b", "o", "guide's loop"),
    "lean-loop": ("#8a5a44", "o", "the same, leaner"),
    "cdpruner-loop": ("#d9944a", "o", "CDPruner's loop"),
    "eager": ("#7b8fa8", "s", "vidsieve, torch"),
    "triton": ("#4a7fb5", "D", "vidsieve, Triton"),
    "triton-graph": ("#1d4e89", "D", "vidsieve, Triton in a CUDA graph"),
    "floor": ("#777777", "|", "floor: read the features once"),
    "bmm": ("#777777", "|", "one batched Gram"),
}


def draw(path: Path, folder: Path) -> Path:
    """The figure of one JSON: folder / (stem of path).png."""
    found: dict[str, Any] = json.loads(path.read_text())
    rows = [row for row in found["rows"] if row["median_ms"]]
    cases = list(dict.fromkeys(row["case"] for row in rows))
    figure, axes = plt.subplots(figsize=(9, 1.6 + 0.46 * len(cases)), layout="constrained")
    for row in rows:
        y = cases.index(row["case"])
        colour, marker, _ = STYLE[row["variant"]]
        size = 17 if marker == "|" else 7
        axes.plot(row["median_ms"], y, marker, color=colour, markersize=size, markeredgewidth=2.2 if size > 7 else 0)
        if marker != "|":
            axes.plot([row["q20_ms"], row["q80_ms"]], [y, y], color=colour, linewidth=2, solid_capstyle="butt")
    for y, case in enumerate(cases):
        times = {row["variant"]: row["median_ms"] for row in rows if row["case"] == case}
        loop = min((time for name, time in times.items() if name.endswith("-loop")), default=None)
        best = min((times[name] for name in ("eager", "triton", "triton-graph") if name in times), default=None)
        if best is not None:
            axes.annotate(_ms(best), (best, y), (0, 7), textcoords="offset points", ha="center", fontsize=8)
        if loop is not None and best is not None:
            ratio = loop / best
            note = f"{_ms(loop)}  ({ratio:,.1f}x)" if ratio < 10 else f"{_ms(loop)}  ({ratio:,.0f}x)"
            axes.annotate(note, (loop, y), (0, 7), textcoords="offset points", ha="center", fontsize=8)
    axes.set_xscale("log")
    axes.margins(x=0.08)
    low, high = axes.get_xlim()
    narrow = high < 100 * low  # then powers of ten alone would be too few ticks
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks(range(len(cases)), cases)
    axes.set_ylim(len(cases) - 0.5, -0.7)
    axes.set_xlabel("milliseconds, log scale")
    axes.grid(axis="x", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    card = found["card"]
    frames, tokens, dim = (card[name] for name in ("frames", "tokens", "dim"))
    threads = "" if "copy_gb_s" in card else f", {card['threads']} threads"
    axes.set_title(
        f"Reducing {frames} x {tokens} tokens of {dim} features, {card['dtype']} on {card['device']}{threads}",
        fontsize=11,
        loc="left",
    )
    shown = [name for name in STYLE if any(row["variant"] == name for row in rows)]
    handles = [
        Line2D(
            [], [], color=STYLE[name][0], marker=STYLE[name][1], linestyle="", markeredgewidth=2, label=STYLE[name][2]
        )
        for name in shown
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return save(figure, path, folder)


PREFILL = {  # colour, what the axis says
    "full": ("#b24a3b", "every token"),
    "before-10": ("#7b8fa8", "before the LLM, 10 %"),
    "novelty-10": ("#a3b18a", "the same, by novelty"),
    "framefusion-cost-30": ("#4a7fb5", "framefusion, 30 % of the FLOPs"),
    "hieravid-30": ("#1d4e89", "hieravid, 30 %"),
}


def draw_prefill(path: Path, folder: Path) -> Path:
    """The figure of one prefill JSON: folder / (stem of path).png."""
    found: dict[str, Any] = json.loads(path.read_text())
    rows = [row for row in found["rows"] if row["median_ms"]]
    figure, axes = plt.subplots(figsize=(9, 1.4 + 0.62 * len(rows)), layout="constrained")
    full = next(row["median_ms"] for row in rows if row["variant"] == "full")
    for y, row in enumerate(rows):
        axes.barh(y, row["median_ms"], 0.5, color=PREFILL[row["variant"]][0])
        axes.plot([row["q20_ms"], row["q80_ms"]], [y, y], color="#222222", linewidth=2, solid_capstyle="butt")
        axes.plot(full * row["flops_share"], y, "|", color="#999999", markersize=24, markeredgewidth=2)
        notes = [_ms(row["median_ms"])]
        if row["peak_bytes"] is not None:
            notes.append(f"peak {row['peak_bytes'] / 2**30:.1f} GiB")
        notes.append(f"cache {row['kv_bytes'] / 2**20:,.0f} MiB")
        if row["variant"] != "full":
            notes.insert(1, f"of it hooks {_ms(row['overhead_ms'])}")
        right = max(row["median_ms"], row["q80_ms"], full * row["flops_share"])
        axes.annotate(", ".join(notes), (right, y), (8, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [PREFILL[row["variant"]][1] for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, 1.45 * max(row["q80_ms"] for row in rows))
    axes.set_xlabel("milliseconds; grey: the share of the FLOPs")
    axes.tick_params(length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    card = found["card"]
    layers, hidden = (card["command"].split(f"--{name} ")[1].split()[0] for name in ("layers", "hidden"))
    axes.set_title(
        f"Prefill of {card['prompt']:,} tokens, {layers} layers of {hidden}, {card['dtype']} on {card['device']}",
        fontsize=11,
        loc="left",
    )
    return save(figure, path, folder)


def _ms(ms: float) -> str:
    return f"{ms:,.0f} ms" if ms >= 100 else f"{ms:.2g} ms"


def _draw(path: Path, folder: Path) -> Path:
    return (draw_prefill if path.stem.startswith("prefill") else draw)(path, folder)


if __name__ == "__main__":
    draw_each(_draw, __doc__ or "", "ops_*.json", "prefill_*.json")
