"""Draw a run of the natural suite: coverage, the smallest share of a shot and the objects found, against keep.

python -m benchmarks.plot_natural                                    every benchmarks/results/natural_*.json
python -m benchmarks.plot_natural out/natural.json --out docs/images one
"""

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from benchmarks.figures import COLOURS, OURS, draw_each, save
from matplotlib.ticker import NullFormatter

FLOOR = {"uniform": "-", "random": "--", "fewer_frames": ":"}  # line style, in grey
PANELS = {
    "distance of a dropped token to the nearest kept one (less is better)": lambda row: row["cov"],
    "smallest share of a shot, against its length": lambda row: row["share"],
    "objects that stand still, share found": lambda row: row["static"][0] / max(1, row["static"][1]),
    "objects that move, share found": lambda row: row["moving"][0] / max(1, row["moving"][1]),
}


def draw(path: Path, folder: Path) -> Path:
    """The figure of one JSON: folder / (stem of path).png."""
    found: dict[str, Any] = json.loads(path.read_text())
    rows = [row for row in found["rows"] if row["refused"] is None]
    names = list(dict.fromkeys(row["method"] for row in rows))
    others = [name for name in names if name not in FLOOR and name != OURS]
    figure, panels = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    for axes, (title, value) in zip(panels.flat, PANELS.items(), strict=True):
        for name in sorted(names, key=lambda name: name == OURS):  # ours on top
            mine = sorted((row["keep"], value(row)) for row in rows if row["method"] == name)
            style: dict[str, Any] = {"color": "#8a8a8a", "linestyle": FLOOR[name]} if name in FLOOR else {
                "color": "#1d4e89" if name == OURS else COLOURS[others.index(name) % len(COLOURS)],
                "linewidth": 2.6 if name == OURS else 1.6,
            }  # fmt: skip
            axes.plot(*zip(*mine, strict=True), marker="o", markersize=4, label=name, **style)
        keeps = sorted({row["keep"] for row in rows})
        axes.set_xscale("log")
        axes.set_xticks(keeps, [f"{100 * keep:g} %" for keep in keeps])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("video tokens kept")
        axes.set_ylim(bottom=0)
        axes.set_title(title, fontsize=10, loc="left")
        axes.grid(color="#e9e9e9", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9)
    card = found["card"]
    figure.suptitle(
        f"Natural suite, split {card['split']}: {len(card['videos'])} videos, {card['network']}", fontsize=11
    )
    return save(figure, path, folder)


if __name__ == "__main__":
    draw_each(draw, __doc__ or "", "natural_*.json")
