"""The figures of benchmarks/results: words instead of names, every text readable and none on another."""

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from vidsieve.evaluation.bench import CASES

pytest.importorskip("matplotlib")

from benchmarks import plot, plot_eval, plot_first_token, plot_natural
from matplotlib.figure import Figure
from matplotlib.text import Text

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SMALLEST = 10  # points; at 160 dots an inch, 11 pixels at half the size
FIGURES = {
    "ops_h100": plot,
    "prefill_h100": plot,
    "eval_test": plot_eval,
    "eval_test_h100": plot_eval,
    "seeds_h200": plot_eval,
    "natural_test": plot_natural,
    "first_token_h200": plot_first_token,
}


@pytest.fixture
def drawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Figure:
    """The figure of a committed JSON, not written to a file."""
    kept: list[Figure] = []
    script = FIGURES[request.param]
    monkeypatch.setattr(script, "save", lambda figure, path, folder: kept.append(figure))
    path = RESULTS / f"{request.param}.json"
    (script.draw_prefill if path.stem.startswith("prefill") else script.draw)(path, Path())
    kept[0].draw_without_rendering()
    return kept[0]


def texts(figure: Figure) -> list[Text]:
    """Every text that is drawn; matplotlib also has labels of ticks beyond the ends of an axis."""
    beyond = []
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        beyond += [tick.label1 for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high]
    found = figure.findobj(lambda one: isinstance(one, Text) and one.get_visible() and one.get_text().strip())
    return [text for text in found if text not in beyond]


@pytest.mark.parametrize("drawn", FIGURES, indirect=True)
def test_every_text_is_large_enough_inside_the_figure_and_on_no_other(drawn: Figure) -> None:
    width, height = drawn.canvas.get_width_height()
    boxes: list[tuple[str, Any]] = []
    for text in texts(drawn):
        box = text.get_window_extent()
        assert text.get_fontsize() >= SMALLEST, text.get_text()
        assert box.x0 >= 0 <= box.y0, text.get_text()
        assert box.x1 <= width, text.get_text()
        assert box.y1 <= height, text.get_text()
        boxes.append((text.get_text(), box))
    assert len(boxes) > 8
    for (one, first), (other, second) in combinations(boxes, 2):
        across = min(first.x1, second.x1) - max(first.x0, second.x0)
        along = min(first.y1, second.y1) - max(first.y0, second.y0)
        assert across < 2 or along < 4, (one, other)


@pytest.mark.parametrize("drawn", ["eval_test"], indirect=True)
def test_an_evaluation_is_sorted_and_names_its_dots_and_chance(drawn: Figure) -> None:
    for axes in drawn.axes:
        said = {text.get_text().split(" (")[0]: text for text in axes.texts}
        assert {"chance", "every token", "vidsieve", "uniform", "lower_resolution"} <= said.keys()
        chance = next(line for line in axes.lines if 0.21 < line.get_xdata()[0] == line.get_xdata()[-1] < 0.23)
        assert said["chance"].xy[0] == chance.get_xdata()[0]
        dots = sorted((line.get_ydata()[0], line.get_xdata()[0]) for line in axes.lines if line.get_marker() == "o")
        assert len(dots) == 12
        assert [place for place, _ in dots] == [*range(12)]
        values = [value for _, value in dots]
        assert values == sorted(values, reverse=True)


def test_every_case_of_bench_has_words() -> None:
    for case in CASES:
        assert plot.words(case, 64) != case
        assert "-" not in plot.words(case, 64)
    assert len({plot.words(case, 64) for case in CASES}) == len(CASES)
    assert plot.words("frames8-10", 64) == "8 frames only, 10 %"
    assert plot.words("4-frame-segments-keep-0.2", 64) == "4 frame segments keep 0.2"


@pytest.mark.parametrize("drawn", ["ops_h100"], indirect=True)
def test_the_figure_of_ops_has_words_at_its_axis(drawn: Figure) -> None:
    labels = [label.get_text() for label in drawn.axes[0].get_yticklabels()]
    assert labels[0] == "each frame a segment, 10 % kept"
    assert not set(labels) & CASES.keys()


def test_pictures_of_the_docs_are_small() -> None:
    pictures = [path for path in (ROOT / "docs" / "images").rglob("*") if path.is_file()]
    assert len(pictures) > 10
    assert [path.name for path in pictures if path.stat().st_size > 300_000] == []
