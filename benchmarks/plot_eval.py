"""Draw an evaluation: accuracy, and the share of the evidence kept, against the tokens that a layer sees on average.

    python -m benchmarks.plot_eval                                   every benchmarks/results/eval_*.json
    python -m benchmarks.plot_eval out/eval.json --out docs/images   one

One line a method, bands are 95 % of bootstrap draws of the videos. Dashed: the unreduced model, and chance.
"""

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from benchmarks.figures import COLOURS, OURS, draw_each, save
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

FLOOR = {"uniform": "-", "random": "--", "fewer_frames": ":", "lower_resolution": "-."}  # line style, in grey
MARKERS = "osD^v"  # another one for each turn through the colours


def draw(path: Path, folder: Path) -> Path:
    """The figure of one JSON: folder / (stem of path).png."""
    found: dict[str, Any] = json.loads(path.read_text())
    card, rows = found["card"], [row for row in found["rows"] if not row["refused"]]
    whole, rows = rows[0], rows[1:]
    names = list(dict.fromkeys(row["method"] for row in rows))
    others = [name for name in names if name not in FLOOR and name != OURS]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.8), layout="constrained")
    for name in sorted(names, key=lambda name: name == OURS):  # ours on top
        style: dict[str, Any] = {"color": "#8a8a8a", "linestyle": FLOOR[name], "linewidth": 1.3} if name in FLOOR else {
            "color": "#1d4e89" if name == OURS else COLOURS[others.index(name) % len(COLOURS)],
            "linewidth": 2.6 if name == OURS else 1.6,
            "marker": MARKERS[0 if name == OURS else others.index(name) // len(COLOURS)],
        }  # fmt: skip
        mine = [row for row in rows if row["method"] == name]
        points = sorted(((row["tokens"]["a_layer"] / card["tokens"], row) for row in mine), key=lambda point: point[0])
        for axes, measure in ((left, "accuracy"), (right, "recall")):
            _line(axes, points, measure, name, style)
    left.axhline(whole["accuracy"]["all"]["mean"], color="#333333", linewidth=1, linestyle="--")
    left.axhline(card["chance"]["all"], color="#bbbbbb", linewidth=1, linestyle="--")
    keeps = sorted({row["keep"] for row in rows})
    for axes, title in ((left, "accuracy, mean over kinds of questions"), (right, "share of the evidence kept")):
        axes.set_xscale("log")
        axes.set_xticks(keeps, [f"{100 * keep:g} %" for keep in keeps])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(length=0, which="both")
        axes.set_xlabel("video tokens a layer sees, mean over layers")
        axes.set_title(title, fontsize=11, loc="left")
        axes.grid(color="#e9e9e9", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9)
    figure.suptitle(
        f"Synthetic needle suite, split {card['split']}: {card['videos']} videos, {card['questions']} questions, "
        f"{card['tokens']} tokens a video",
        fontsize=11,
    )
    return save(figure, path, folder)


def _line(axes: Axes, points: list[tuple[float, Any]], measure: str, name: str, style: dict[str, Any]) -> None:
    """One method: its means, and their band."""
    values = [(share, row[measure]["all"]) for share, row in points if row[measure]["all"]["mean"] is not None]
    if not values:
        return
    shares = [share for share, _ in values]
    low, mean, high = ([value[edge] for _, value in values] for edge in ("low", "mean", "high"))
    axes.plot(shares, mean, **{"marker": "o", "markersize": 4, "label": name, **style})
    axes.fill_between(shares, low, high, color=style["color"], alpha=0.13, linewidth=0)


if __name__ == "__main__":
    draw_each(draw, __doc__ or "", "eval_*.json")
