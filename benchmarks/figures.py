"""What the scripts that draw figures share: their options, and how a figure is written."""

import argparse
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

HERE = Path(__file__).parent
OURS = "vidsieve"
COLOURS = ("#b24a3b", "#d9944a", "#7a9a3a", "#3a8f7a", "#6a5aa0", "#b0589a", "#8a6d4b")  # of other methods


def draw_each(draw: Callable[[Path, Path], Path], summary: str, *patterns: str) -> None:
    """Draw the JSON files of the command line, else those in benchmarks/results whose names match `patterns`."""
    parser = argparse.ArgumentParser(description=summary.splitlines()[0])
    parser.add_argument("json", nargs="*", type=Path, help=f"(every benchmarks/results/{' and '.join(patterns)})")
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "images", help="folder (docs/images)")
    options = parser.parse_args()
    every = sorted(path for pattern in patterns for path in (HERE / "results").glob(pattern))
    for path in options.json or every:
        print(draw(path, options.out))


def save(figure: Figure, path: Path, folder: Path) -> Path:
    """Write the figure of the JSON `path`: folder / (stem of path).png."""
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / f"{path.stem}.png"
    figure.savefig(out, dpi=160)
    plt.close(figure)
    return out
