"""Write text into pictures: in a font of this machine that has its letters, in lines that fit."""

import unicodedata
from collections.abc import Iterable
from functools import cache
from itertools import groupby
from types import ModuleType
from typing import Any

from vidsieve.checks import require

# Fonts with Chinese, Japanese and Korean, as the systems that have one call it; Pillow knows where to look.
FONTS = (
    *("NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "NotoSansSC-Regular.otf", "NotoSansSC-Regular.ttf"),
    *("SourceHanSansSC-Regular.otf", "SourceHanSansCN-Regular.otf", "SourceHanSans.ttc", "NotoSerifCJK-Regular.ttc"),
    *("wqy-microhei.ttc", "wqy-zenhei.ttc", "DroidSansFallbackFull.ttf", "DroidSansFallback.ttf", "uming.ttc"),
    *("PingFang.ttc", "Hiragino Sans GB.ttc", "STHeiti Light.ttc", "Arial Unicode.ttf", "AppleSDGothicNeo.ttc"),
    *("msyh.ttc", "simhei.ttf", "simsun.ttc", "malgun.ttf", "YuGothM.ttc", "ipag.ttf", "NanumGothic.ttf"),
    "DejaVuSans.ttf",
    # Variable fonts, which Pillow draws thin.
    *("NotoSansCJK-VF.ttc", "NotoSansSC[wght].ttf", "NotoSansJP[wght].ttf", "NotoSansKR[wght].ttf"),
)
CLOSING = frozenset(
    "\u3001\u3002\uff0c\uff0e\uff1a\uff1b\uff1f\uff01\uff09\u300d\u300f\u300b\u3011\u201d\u2019,.:;?!)]}"
)
LONGEST_ESCAPED = 4  # letters in a row that no font has; of more, their number is written
MOST_LETTERS = 2000  # of a text that are looked at; no picture has room for more


def pillow() -> ModuleType:
    """Import Pillow with the modules that draw. Raises `MissingDependency` without it."""
    pil = require("PIL", "viz")
    for module in ("Image", "ImageDraw", "ImageFont"):
        require(f"PIL.{module}", "viz")
    return pil


@cache
def font(size: int) -> Any:
    """Load the font that comes with Pillow, `size` pixels high."""
    return pillow().ImageFont.load_default(size)


def write(
    pen: Any, place: tuple[int, int], text: str, colour: tuple[int, int, int], size: int, width: int, most: int = 1
) -> int:
    """Write `text` below `place` in at most `most` lines of `width` pixels: returns how many pixels high it is.

    What does not fit ends in an ellipsis; what no font here can write is escaped.
    """
    shown, chosen = in_a_font(text, size)
    step = round(1.35 * size)
    lines = wrap(shown, chosen, width, most)
    for number, line in enumerate(lines):
        pen.text((place[0], place[1] + number * step + size), line, colour, chosen, anchor="ls")
    return len(lines) * step


def in_a_font(text: str, size: int) -> tuple[str, Any]:
    """Choose the font that has most letters of `text`: returns the text with the others escaped, as \\u4e2d, and it.

    Of more than four such letters in a row, their number is written.
    """
    text = text[:MOST_LETTERS]
    best = _best(text, size)
    shown: list[str] = []
    for lacks, run in groupby(text, lambda letter: letter.isprintable() and not _has(best, letter)):
        letters = "".join(run)
        if lacks and len(letters) > LONGEST_ESCAPED:
            shown.append(f"[{len(letters)} letters]")
        else:
            shown += (one if _has(best, one) else one.encode("unicode_escape").decode("ascii") for one in letters)
    return "".join(shown), best


def lacking(texts: Iterable[str]) -> str:
    """Find the letters of `texts` that no font here can write, each once, in their order."""
    found: dict[str, None] = {}
    for text in texts:
        best = _best(text[:MOST_LETTERS], 20)
        letters = (letter for letter in text[:MOST_LETTERS] if letter.isprintable() and not _has(best, letter))
        found |= dict.fromkeys(letters)
    return "".join(found)


def wrap(text: str, chosen: Any, width: int, most: int) -> list[str]:
    """Cut `text` into at most `most` lines of `width` pixels, at spaces and between wide letters where it can be."""
    lines: list[str] = []
    rest = text.strip(" ")
    while rest and len(lines) < most:
        fits = _fitting(rest, chosen, width)
        if fits < len(rest) and len(lines) == most - 1:
            lines.append(rest[: _fitting(rest, chosen, width, "...")].rstrip(" ") + "...")
            break
        end = next((i for i in range(fits, 0, -1) if _may_break(rest, i)), fits)
        lines.append(rest[:end].rstrip(" "))
        rest = rest[end:].lstrip(" ")
    return lines


def _fitting(text: str, chosen: Any, width: int, end: str = "") -> int:
    """Count the letters of `text` that fit into `width` pixels with `end` behind them: one at least."""
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if chosen.getlength(text[:middle] + end) <= width else (low, middle - 1)
    return low


def _may_break(text: str, at: int) -> bool:
    """Whether a line may end before letter `at`: there is a space, or a wide letter on either side."""
    if at == len(text) or text[at] == " " or text[at - 1] == " ":
        return True
    return text[at] not in CLOSING and any(
        unicodedata.east_asian_width(letter) in "WF" for letter in text[at - 1 : at + 1]
    )


def _best(text: str, size: int) -> Any:
    fonts = [font(size), *(known for name in FONTS if (known := _installed(name, size)))]
    return min(fonts, key=lambda known: sum(not _has(known, letter) for letter in text))


@cache
def _installed(name: str, size: int) -> Any:
    """Load a font by the name of its file, None if it is not installed."""
    try:
        return pillow().ImageFont.truetype(name, size)
    except OSError:
        return None


@cache
def _absent(chosen: Any) -> bytes:
    """Draw what a font shows for all letters that it lacks."""
    return bytes(chosen.getmask("\U0010fffe"))


@cache
def _has(chosen: Any, letter: str) -> bool:
    if not letter.isprintable():
        return False
    return letter == " " or bytes(chosen.getmask(letter)) != _absent(chosen)
