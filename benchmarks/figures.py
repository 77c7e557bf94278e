"""What the scripts that draw figures share: their options, and how a figure is written."""

import argparse
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

HERE = Path(__file__).parent
OURS = "vidsieve"
OWN = {OURS, "distinct", "moments"}  # of this library
BLUE, INK, GREY = "#0a5fa8", "#2b2b2b", "#767676"  # ours, others, floors: three lightnesses
FLOORS = {"uniform", "random", "fewer_frames", "lower_resolution"}
MIDDLE = 0.6  # of an axis: names of dots beyond it stand to the left of them


def draw_each(draw: Callable[[Path, Path], Path], summary: str, *patterns: str) -> None:
    """Draw the JSON files of the command line, else those in benchmarks/results whose names match `patterns`."""
    parser = argparse.ArgumentParser(description=summary.splitlines()[0])
    parser.add_argument("json", nargs="*", type=Path, help=f"(every benchmarks/results/{' and '.join(patterns)})")
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "images", help="folder (docs/images)")
    options = parser.parse_args()
    every = sorted(path for pattern in patterns for path in (HERE / "results").glob(pattern))
    for path in options.json or every:
        print(draw(path, options.out))


def colour_of(method: str) -> str:
    """Get the colour of a method: ours, a floor, or another's."""
    return BLUE if method in OWN else GREY if method in FLOORS else INK


def name_dots(axes: Axes, name: str, y: int, ends: tuple[float, float], method: str) -> None:
    """Write the name of a row beside its dots, which reach over `ends`, where there is more room."""
    low, high = axes.get_xlim()
    left = sum(ends) / 2 - low > MIDDLE * (high - low)
    axes.annotate(
        name,
        (ends[0] if left else ends[1], y),
        (-9 if left else 9, 0),
        textcoords="offset points",
        ha="right" if left else "left",
        va="center",
        fontsize=10.5,
        color=colour_of(method),
        fontweight="bold" if method == OURS else "normal",
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
    )


def plain(axes: Axes, rows: int, title: str) -> None:
    """Give a panel of dots its title, room for `rows` from the top down, and no more lines than are read."""
    axes.set_title(title, fontsize=12, loc="left", pad=10)
    axes.set_ylim(rows - 0.4, -1.1)
    axes.set_yticks([])
    axes.grid(axis="x", color="#e9e9e9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, which="both", labelsize=10)
    axes.spines[["top", "right", "left"]].set_visible(False)


def save(figure: Figure, path: Path, folder: Path) -> Path:
    """Write the figure of the JSON `path`: folder / (stem of path).png."""
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / f"{path.stem}.png"
    figure.savefig(out, dpi=160)
    plt.close(figure)
    return out
