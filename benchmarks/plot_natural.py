"""Draw a run of the natural suite: coverage, the smallest share of a shot and the objects found, against keep.

python benchmarks/plot_natural.py                                    every benchmarks/results/natural_*.json
python benchmarks/plot_natural.py out/natural.json --out docs/images one
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import NullFormatter

HERE = Path(__file__).parent
FLOOR = {"uniform": "-", "random": "--", "fewer_frames": ":"}  # line style, in grey
OURS = "vidsieve"
COLOURS = ("#b24a3b", "#d9944a", "#7a9a3a", "#3a8f7a", "#6a5aa0", "#b0589a", "#8a6d4b")
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
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / f"{path.stem}.png"
    figure.savefig(out, dpi=160)
    plt.close(figure)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("json", nargs="*", type=Path, help="(every benchmarks/results/natural_*.json)")
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "images", help="folder (docs/images)")
    options = parser.parse_args()
    for path in options.json or sorted((HERE / "results").glob("natural_*.json")):
        print(draw(path, options.out))


if __name__ == "__main__":
    main()
