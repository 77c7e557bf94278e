"""Draw an evaluation: what share of the answers is right, and of the evidence kept, best methods first.

    python -m benchmarks.plot_eval                                   every benchmarks/results/eval_*.json
    python -m benchmarks.plot_eval out/eval.json --out docs/images   one

A panel for each share of the tokens. A filled dot is the accuracy, its whisker 95 % of bootstrap draws of the videos, a
hollow one the evidence. Lines: chance, and the unreduced model. A method whose layers see another share has it in
brackets.
"""

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from benchmarks.figures import BLUE, GREY, INK, MIDDLE, OURS, colour_of, draw_each, name_dots, plain, save
from matplotlib.axes import Axes
from matplotlib.lines import Line2D


def draw(path: Path, folder: Path) -> Path:
    """The figure of one JSON: folder / (stem of path).png."""
    found: dict[str, Any] = json.loads(path.read_text())
    card, rows = found["card"], [row for row in found["rows"] if not row["refused"]]
    whole, rows = rows[0], rows[1:]
    keeps = sorted({row["keep"] for row in rows})
    panels = [sorted((row for row in rows if row["keep"] == keep), key=_accuracy, reverse=True) for keep in keeps]
    most = max(map(len, panels))
    figure, every = plt.subplots(
        1, len(keeps), figsize=(5.6 * len(keeps), 1.9 + 0.34 * most), layout="constrained", squeeze=False
    )
    for axes, keep, sorted_rows in zip(every[0], keeps, panels, strict=True):
        plain(axes, most, f"{100 * keep:g} % of the video tokens")
        axes.set_xlim(0, 1.02)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
        for y, row in enumerate(sorted_rows):
            _dots(axes, y, row, card["tokens"])
        _line(axes, card["chance"]["all"], "chance", (0, (1, 1.5)))
        _line(axes, _accuracy(whole), "every token", (0, (5, 3)))
    marks = [
        Line2D([], [], color=INK, marker="o", label="right answers, mean over kinds of questions"),
        Line2D([], [], color=INK, marker="D", linestyle="", markerfacecolor="white", label="evidence kept"),
        Line2D([], [], color=GREY, marker="o", label="floors"),
        Line2D([], [], color=BLUE, marker="o", label=OURS),
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=4, frameon=False, fontsize=10)
    figure.suptitle(
        f"Synthetic needle suite, {card['split']}: {card['videos']} videos, {card['questions']:,} questions, "
        f"{card['tokens']} tokens a video; vidsieve of {card['commit']}",
        fontsize=12,
    )
    figure.get_layout_engine().set(wspace=0.06)
    return save(figure, path, folder)


def _accuracy(row: dict[str, Any]) -> float:
    return float(row["accuracy"]["all"]["mean"])


def _line(axes: Axes, x: float, text: str, style: tuple[int, tuple[float, ...]]) -> None:
    """Draw an upright line, its name at the top."""
    axes.axvline(x, color=INK, linewidth=1.2, linestyle=style, zorder=0)
    place = (-5, 0) if x > MIDDLE else (5, 0)
    side = "right" if x > MIDDLE else "left"
    axes.annotate(text, (x, -0.95), place, textcoords="offset points", ha=side, fontsize=10, color=INK)


def _dots(axes: Axes, y: int, row: dict[str, Any], tokens: int) -> None:
    """Draw one method: its two dots, the whisker, and its name beside them."""
    name = row["method"]
    colour, size = colour_of(name), 9 if name == OURS else 7
    accuracy, evidence = row["accuracy"]["all"], row["recall"]["all"]["mean"]
    axes.plot([accuracy["low"], accuracy["high"]], [y, y], color=colour, linewidth=2.2, solid_capstyle="butt")
    axes.plot(accuracy["mean"], y, "o", color=colour, markersize=size)
    ends = [accuracy["low"], accuracy["high"]]
    if evidence is not None:
        axes.plot(evidence, y, "D", color=colour, markersize=size - 2, markerfacecolor="white", markeredgewidth=1.4)
        ends.append(evidence)
    share = row["tokens"]["a_layer"] / tokens
    note = f" ({100 * share:.0f} %)" if abs(share / row["keep"] - 1) > 0.05 else ""
    name_dots(axes, name + note, y, (min(ends), max(ends)), name)


if __name__ == "__main__":
    draw_each(draw, __doc__ or "", "eval_*.json")
