"""lettering.py: a font that has the letters, and lines that fit."""

from pathlib import Path

import pytest

from vidsieve.video import lettering
from vidsieve.video.lettering import in_a_font, lacking, wrap

pytest.importorskip("PIL")

CHINESE = "\u89c6\u9891\u91cc\u6709\u4ec0\u4e48\uff1f\u4e00\u53ea\u732b\u3002"


@pytest.fixture
def chinese(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A font file with the letters of `CHINESE`, Latin ones too, each a square of its own size; no other font."""
    builder = pytest.importorskip("fontTools.fontBuilder")
    pens = pytest.importorskip("fontTools.pens.ttGlyphPen")
    letters = sorted({*CHINESE, *map(chr, range(33, 127))})
    names = [".notdef", *(f"u{ord(letter):04x}" for letter in letters)]
    glyphs = {}
    for number, name in enumerate(names):
        pen = pens.TTGlyphPen(None)
        side = 100 + 4 * number
        for step, point in enumerate(((0, 0), (0, side), (side, side), (side, 0))):
            (pen.lineTo if step else pen.moveTo)(point)
        pen.closePath()
        glyphs[name] = pen.glyph()
    font = builder.FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder(names)
    font.setupCharacterMap({ord(letter): name for letter, name in zip(letters, names[1:], strict=True)})
    font.setupGlyf(glyphs)
    font.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupOS2()
    font.setupPost()
    font.save(tmp_path / "chinese.ttf")
    monkeypatch.setattr(lettering, "FONTS", ("absent.ttf", str(tmp_path / "chinese.ttf")))
    return str(tmp_path / "chinese.ttf")


def test_a_font_that_has_the_letters_is_taken(chinese: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shown, chosen = in_a_font(CHINESE, 20)
    assert (shown, chosen.path) == (CHINESE, chinese)
    assert lacking([CHINESE, "plain"]) == ""
    assert in_a_font("plain", 20)[1] is lettering.font(20)
    monkeypatch.setattr(lettering, "FONTS", ())
    assert lacking([CHINESE, "plain", CHINESE]) == CHINESE


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("clip.mp4", "clip.mp4"),
        ("\u89c6\u9891 a.mp4", "\\u89c6\\u9891 a.mp4"),
        ("a\n\U0001f3ac\udcff\t", "a\\n\\U0001f3ac\\udcff\\t"),
        (CHINESE, "[11 letters]"),
        (f"{CHINESE} (a) {CHINESE[:4]}", "[11 letters] (a) \\u89c6\\u9891\\u91cc\\u6709"),
        ("\n" * 6, "\\n" * 6),
    ],
)
def test_what_no_font_can_write_is_escaped_or_counted(text: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lettering, "FONTS", ())
    assert in_a_font(text, 20)[0] == shown


@pytest.mark.parametrize("text", ["one two  three four five six", "x" * 300, "a " + "y" * 200 + " b", "z"])
@pytest.mark.parametrize("width", [1, 60, 200])
def test_lines_fit_and_lose_nothing_but_spaces(text: str, width: int) -> None:
    font = lettering.font(20)
    lines = wrap(text, font, width, 1000)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(font.getlength(line) <= width or len(line) == 1 for line in lines)
    assert not any(line.startswith(" ") or line.endswith(" ") for line in lines)


def test_words_stay_whole_where_they_can() -> None:
    font = lettering.font(20)
    assert wrap("one two three", font, round(font.getlength("one two")), 9) == ["one two", "three"]
    assert wrap("one two three", font, round(font.getlength("one twoX")), 9) == ["one two", "three"]


def test_what_does_not_fit_ends_in_an_ellipsis() -> None:
    font = lettering.font(20)
    lines = wrap("word " * 100, font, 200, 2)
    assert len(lines) == 2
    assert lines[1].endswith("...")
    assert "..." not in lines[0]
    assert all(font.getlength(line) <= 200 for line in lines)
    assert wrap("word", font, 200, 1) == ["word"]
    assert wrap(" ", font, 200, 1) == []


def test_chinese_breaks_between_letters_and_no_line_begins_with_its_punctuation(chinese: str) -> None:
    _, chosen = in_a_font(CHINESE, 20)
    for letters in range(2, 9):
        lines = wrap(CHINESE, chosen, 20 * letters, 99)
        assert "".join(lines) == CHINESE
        assert all(line[0] not in lettering.CLOSING for line in lines)
        assert max(map(len, lines)) <= letters
