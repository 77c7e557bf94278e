"""Draw a run of the natural suite: coverage, the smallest share of a shot and the objects found, best methods first.

    python -m benchmarks.plot_natural                                    every benchmarks/results/natural_*.json
    python -m benchmarks.plot_natural out/natural.json --out docs/images one

A panel for each measure, a row for each method. A filled dot is of the largest share of tokens, hollow ones of smaller.
"""

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from benchmarks.figures import BLUE, GREY, INK, OURS, colour_of, draw_each, name_dots, plain, save
from matplotlib.lines import Line2D

PANELS = {  # what the value is, and whether less of it is better
    "distance to the nearest kept token": (lambda row: row["cov"], True),
    "smallest share of a shot, against its length": (lambda row: row["share"], False),
    "objects that stand still, share found": (lambda row: row["static"][0] / max(1, row["static"][1]), False),
    "objects that move, share found": (lambda row: row["moving"][0] / max(1, row["moving"][1]), False),
}
FILLS = "full", "none", "left", "top"  # of the dots, from the largest share of tokens down


def draw(path: Path, folder: Path) -> Path:
    """The figure of one JSON: folder / (stem of path).png."""
    found: dict[str, Any] = json.loads(path.read_text())
    rows = [row for row in found["rows"] if row["refused"] is None]
    keeps = sorted({row["keep"] for row in rows}, reverse=True)
    names = list(dict.fromkeys(row["method"] for row in rows))
    figure, panels = plt.subplots(2, 2, figsize=(11, 2.2 + 0.62 * len(names)), layout="constrained")
    for axes, (title, (value, less)) in zip(panels.flat, PANELS.items(), strict=True):
        points = {name: {row["keep"]: value(row) for row in rows if row["method"] == name} for name in names}
        most = max(max(of.values()) for of in points.values())
        plain(axes, len(names), f"{title} (less is better)" if less else title)
        axes.set_xlim(0, 1.05 * most)
        order = sorted(names, key=lambda name: points[name].get(keeps[0], 0), reverse=not less)
        for y, name in enumerate(order):
            values = points[name]
            ends = min(values.values()), max(values.values())
            axes.plot(ends, [y, y], color=colour_of(name), linewidth=1.2)
            for keep, fill in zip(keeps, FILLS, strict=False):
                if keep in values:
                    style: dict[str, Any] = {"fillstyle": fill, "markersize": 9 if name == OURS else 7}
                    axes.plot(values[keep], y, "o", color=colour_of(name), markerfacecoloralt="white", **style)
            name_dots(axes, name, y, ends, name)
    marks = [
        Line2D([], [], color=INK, marker="o", linestyle="", fillstyle=fill, label=f"{100 * keep:g} % of the tokens")
        for keep, fill in zip(keeps, FILLS, strict=False)
    ]
    marks += [
        Line2D([], [], color=GREY, marker="o", label="floors"),
        Line2D([], [], color=BLUE, marker="o", label=OURS),
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=len(marks), frameon=False, fontsize=10)
    card = found["card"]
    about = f"Natural suite, {card['split']}: {len(card['videos'])} videos; vidsieve of {card['commit']}"
    figure.suptitle(f"{about}\n{card['network']}", fontsize=12)
    figure.get_layout_engine().set(wspace=0.06, hspace=0.06)
    return save(figure, path, folder)


if __name__ == "__main__":
    draw_each(draw, __doc__ or "", "natural_*.json")
