"""Draw an evaluation: what share of the answers is right, and of the evidence kept, best methods first.

    python -m benchmarks.plot_eval                                   benchmarks/results/eval_*.json, seeds_*.json
    python -m benchmarks.plot_eval out/eval.json --out docs/images   one

A panel for each share of the tokens; of `eval_seeds`, for 10 and 5 % of either suite. A filled dot is the accuracy, its
whisker 95 % of bootstrap draws of the videos (of the draws of videos that are farthest apart), a hollow one the
evidence. Lines: chance, and the unreduced model. A method whose layers see another share has it in brackets.
"""

import json
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from benchmarks.figures import BLUE, GREY, INK, MIDDLE, OURS, colour_of, draw_each, name_dots, plain, save
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from vidsieve.evaluation.needles import CHANCES


@dataclass(frozen=True)
class Row:
    """A method at one share. accuracy, evidence: shares; evidence is None where it makes no sense."""

    method: str
    accuracy: float
    interval: tuple[float, float]
    evidence: float | None


@dataclass(frozen=True)
class Panel:
    """Rows at one share of the tokens. shares: of the tokens that their layers see; empty where nobody looked."""

    title: str
    rows: list[Row]
    whole: float
    chance: float
    shares: dict[str, float] = field(default_factory=dict)


def draw(path: Path, folder: Path) -> Path:
    """The figure of one JSON: folder / (stem of path).png."""
    found: dict[str, Any] = json.loads(path.read_text())
    panels, title = evaluation(found) if "rows" in found else seeds(found)
    most = max(len(panel.rows) for panel in panels)
    across = min(2, len(panels))
    down = -(-len(panels) // across)
    size = (5.6 * across, 1.9 + 0.34 * most * down)
    figure, every = plt.subplots(down, across, figsize=size, layout="constrained", squeeze=False)
    for axes, panel in zip(every.flat, panels, strict=True):
        plain(axes, most, panel.title)
        axes.set_xlim(0, 1.02)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
        for y, row in enumerate(sorted(panel.rows, key=lambda row: row.accuracy, reverse=True)):
            _dots(axes, y, row, panel)
        _line(axes, panel.chance, "chance", (0, (1, 1.5)))
        _line(axes, panel.whole, "every token", (0, (5, 3)))
    marks = [
        Line2D([], [], color=INK, marker="o", label="right answers, mean over kinds of questions"),
        Line2D([], [], color=INK, marker="D", linestyle="", markerfacecolor="white", label="evidence kept"),
        Line2D([], [], color=GREY, marker="o", label="floors"),
        Line2D([], [], color=BLUE, marker="o", label="vidsieve, and the other methods of this library"),
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=4, frameon=False, fontsize=10)
    figure.suptitle(title, fontsize=12)
    figure.get_layout_engine().set(wspace=0.06, hspace=0.06)
    return save(figure, path, folder)


def evaluation(found: dict[str, Any]) -> tuple[list[Panel], str]:
    """Get the panels and the title of what `vidsieve eval` writes."""
    card, rows = found["card"], [row for row in found["rows"] if not row["refused"]]
    whole, rows = rows[0]["accuracy"]["all"]["mean"], rows[1:]
    panels = []
    for keep in sorted({row["keep"] for row in rows}):
        some = [row for row in rows if row["keep"] == keep]
        shares = {row["method"]: row["tokens"]["a_layer"] / card["tokens"] for row in some}
        shares = {name: share for name, share in shares.items() if abs(share / keep - 1) > 0.05}
        every = [
            Row(
                row["method"],
                row["accuracy"]["all"]["mean"],
                (row["accuracy"]["all"]["low"], row["accuracy"]["all"]["high"]),
                row["recall"]["all"]["mean"],
            )
            for row in some
        ]
        panels.append(Panel(f"{100 * keep:g} % of the video tokens", every, whole, card["chance"]["all"], shares))
    title = (
        f"Synthetic needle suite, {card['split']}: {card['videos']} videos, {card['questions']:,} questions, "
        f"{card['tokens']} tokens a video; vidsieve of {card['commit']}"
    )
    return panels, title


def seeds(found: dict[str, Any]) -> tuple[list[Panel], str]:
    """Get the panels and the title of what `benchmarks.eval_seeds` writes."""
    card, panels = found["card"], []
    for suite, keep in product(("needles", "long"), (0.1, 0.05)):
        rows = [row for row in found[suite] if not row["refused"]]
        every = [
            Row(
                row["method"],
                row["accuracy"]["mean"],
                (min(low for low, _ in row["interval"]), max(high for _, high in row["interval"])),
                row.get("recall", {}).get("mean"),
            )
            for row in rows
            if row["keep"] == keep and row["method"] != "previous"
        ]
        chance = CHANCES[suite]
        title = f"{suite}, {100 * keep:g} % of the video tokens"
        panels.append(Panel(title, every, rows[0]["accuracy"]["mean"], sum(chance.values()) / len(chance)))
    videos = card["videos"] * card["seeds"]
    return panels, f"Synthetic suites, {card['split']}: {videos} videos of each; vidsieve of {card['commit']}"


def _line(axes: Axes, x: float, text: str, style: tuple[int, tuple[float, ...]]) -> None:
    """Draw an upright line, its name at the top."""
    axes.axvline(x, color=INK, linewidth=1.2, linestyle=style, zorder=0)
    place = (-5, 0) if x > MIDDLE else (5, 0)
    side = "right" if x > MIDDLE else "left"
    axes.annotate(text, (x, -0.95), place, textcoords="offset points", ha=side, fontsize=10, color=INK)


def _dots(axes: Axes, y: int, row: Row, panel: Panel) -> None:
    """Draw one method: its two dots, the whisker, and its name beside them."""
    name, (low, high), evidence = row.method, row.interval, row.evidence
    colour, size = colour_of(name), 9 if name == OURS else 7
    axes.plot([low, high], [y, y], color=colour, linewidth=2.2, solid_capstyle="butt")
    axes.plot(row.accuracy, y, "o", color=colour, markersize=size)
    ends = [low, high]
    if evidence is not None:
        axes.plot(evidence, y, "D", color=colour, markersize=size - 2, markerfacecolor="white", markeredgewidth=1.4)
        ends.append(evidence)
    note = f" ({100 * panel.shares[name]:.0f} %)" if name in panel.shares else ""
    name_dots(axes, name + note, y, (min(ends), max(ends)), name)


if __name__ == "__main__":
    draw_each(draw, __doc__ or "", "eval_*.json", "seeds_*.json")
