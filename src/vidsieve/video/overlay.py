"""Draw a reduction over its frames: kept patches are bright, dropped ones dim.

    picture = Overlay(frames, kept, tokens=(192,) * 16, grid=(12, 16))
    picture.sheet().save("overlay.png")     # every token frame, with its time, its share of the budget, its segment
    picture.save_video("overlay.mp4")       # the clip beside its kept patches; at most 240 frames
    picture.save_gif("overlay.gif")

The grid covers the complete frame; if a processor crops frames first, it is off by the crop.
"""

import colorsys
import math
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from vidsieve.checks import require
from vidsieve.types.frames import Frames

PAPER, INK, FAINT = (16, 19, 26), (232, 236, 243), (128, 136, 150)
PANEL, GAP, MARGIN = 232, 16, 28  # pixels: across a panel of the sheet, between panels, around all
MOST_PANELS = 64
MOST_FRAMES = 240  # of a film; each is drawn anew, at tens of milliseconds
# Fonts with Chinese, Japanese and Korean, as the systems that have one call it; Pillow knows where to look.
FONTS = (
    *("NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "SourceHanSansSC-Regular.otf"),
    *("wqy-microhei.ttc", "wqy-zenhei.ttc", "DroidSansFallbackFull.ttf", "DroidSansFallback.ttf"),
    *("PingFang.ttc", "Hiragino Sans GB.ttc", "STHeiti Light.ttc", "Arial Unicode.ttf"),
    *("msyh.ttc", "simsun.ttc", "DejaVuSans.ttf"),
)
CHART = 76  # pixels, height of the chart of tokens kept


@dataclass(frozen=True, eq=False)
class Overlay:
    """Draws a reduction of one video.

    frames: T frames.  kept: int64 (K,) indices among the video's N tokens.  tokens: how many each token frame has, T'
    of them, summing to N; models that join neighbouring frames have fewer token frames than frames.
    grid: (rows, columns) of a token frame; None if there is none, then a frame is as bright as its kept share.
    segments: (S + 1,) token offsets of the segments.
    computed: int64 (C,) indices of the tokens whose pixels the vision tower computed, None for all. The others, with
    the features of an earlier frame, get a diagonal line; it needs a grid.
    """

    frames: Frames
    kept: Tensor
    tokens: Sequence[int]
    grid: tuple[int, int] | None = None
    segments: Sequence[int] = ()
    computed: Tensor | None = None

    def __post_init__(self) -> None:
        if not 0 < len(self.tokens) <= len(self.frames):
            raise ValueError(f"expected 1 to {len(self.frames)} token frames, got {len(self.tokens)}")
        if self.grid is not None and any(count != self.grid[0] * self.grid[1] for count in self.tokens):
            raise ValueError(f"expected {self.grid[0]} x {self.grid[1]} tokens in each frame, got {tuple(self.tokens)}")
        for name, rows in (("kept", self.kept), ("computed", self.computed)):
            if rows is not None and len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < sum(self.tokens):
                raise ValueError(f"expected {name} within [0, {sum(self.tokens)}), got {rows}")

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Tokens kept in each token frame: T' numbers."""
        return tuple(int(self._kept_mask[begin:end].sum()) for begin, end in pairwise(self._bounds))

    @cached_property
    def _bounds(self) -> tuple[int, ...]:
        """Where each token frame begins among the tokens, and the end: T' + 1 numbers."""
        return (0, *accumulate(self.tokens))

    @cached_property
    def _kept_mask(self) -> Tensor:
        return self._mask_of(self.kept)

    @cached_property
    def _computed_mask(self) -> Tensor | None:
        return None if self.computed is None or self.grid is None else self._mask_of(self.computed)

    def _mask_of(self, rows: Tensor) -> Tensor:
        mask = torch.zeros(sum(self.tokens), dtype=torch.bool)
        mask[rows.cpu()] = True
        return mask

    @cached_property
    def _segment(self) -> tuple[int, ...]:
        """The segment in which each token frame begins; empty segments do not count."""
        offsets = sorted(set(self.segments)) or [0]
        return tuple(bisect_right(offsets, begin) - 1 for begin in self._bounds[:-1])

    @property
    def _joined(self) -> int:
        """How many frames went into one token frame; a model repeats the last one to fill up."""
        return -(-len(self.frames) // len(self.tokens))

    def mask(self, patch: int) -> Tensor:
        """Get the kept tokens of token frame `patch`: bool (rows, columns), or (1, 1) without a grid."""
        mask = self._kept_mask[self._bounds[patch] : self._bounds[patch + 1]]
        return mask.view(self.grid) if self.grid else mask.any()[None, None]

    def draw(self, frame: int, size: tuple[int, int] | None = None) -> Any:
        """Draw frame `frame` of the sample as a PIL image of (width, height), dropped patches dim."""
        Image = _pil().Image
        image = Image.fromarray(self.frames.pixels[frame].cpu().numpy())
        if size is not None:
            image = image.resize(size, Image.Resampling.LANCZOS)
        patch = frame // self._joined
        dim = Image.blend(image.convert("L").convert("RGB"), Image.new("RGB", image.size, PAPER), 0.62)
        if self.grid is None:
            return Image.blend(dim, image, self.counts[patch] / self.tokens[patch])
        mask = self.mask(patch)
        bright = Image.fromarray(mask.numpy()).convert("L").resize(image.size, Image.Resampling.NEAREST)
        image = Image.composite(image, dim, bright)
        self._outline(image, mask, _colour(self._segment[patch]))
        if self._computed_mask is not None:
            self._strike(image, ~self._computed_mask[self._bounds[patch] : self._bounds[patch + 1]].view(self.grid))
        return image

    @staticmethod
    def _outline(image: Any, mask: Tensor, colour: tuple[int, int, int]) -> None:
        """Draw a line in `colour` along every border between a kept patch and a dropped one."""
        pen = _pil().ImageDraw.Draw(image)
        rows, columns = mask.shape
        framed = torch.nn.functional.pad(mask, (1, 1, 1, 1))
        width = max(1, image.width // 300)
        for row, column in (framed[1:, 1:] != framed[:-1, 1:]).nonzero().tolist():
            y = min(round(row * image.height / rows), image.height - 1)
            pen.line((column * image.width / columns, y, (column + 1) * image.width / columns, y), colour, width)
        for row, column in (framed[1:, 1:] != framed[1:, :-1]).nonzero().tolist():
            x = min(round(column * image.width / columns), image.width - 1)
            pen.line((x, row * image.height / rows, x, (row + 1) * image.height / rows), colour, width)

    @staticmethod
    def _strike(image: Any, mask: Tensor) -> None:
        """Draw a diagonal line through every patch of `mask`."""
        pen = _pil().ImageDraw.Draw(image)
        high, wide = image.height / mask.shape[0], image.width / mask.shape[1]
        for row, column in mask.nonzero().tolist():
            pen.line((column * wide, (row + 1) * high - 1, (column + 1) * wide - 1, row * high), INK)

    def sheet(self, caption: str = "") -> Any:
        """Draw the contact sheet, a PIL image: a panel for every token frame (at most 64, evenly), a chart below."""
        pil = _pil()
        total = len(self.tokens)
        shown = [round(i * (total - 1) / max(min(total, MOST_PANELS) - 1, 1)) for i in range(min(total, MOST_PANELS))]
        # Of the widths that suit a page, the one whose last row is fullest.
        columns = min(range(4, 9), key=lambda n: (-len(shown) % n + abs(n - math.sqrt(1.6 * len(shown))), -n))
        rows = -(-len(shown) // columns)
        height = round(PANEL * self.frames.pixels.shape[1] / self.frames.pixels.shape[2])
        width = 2 * MARGIN + columns * (PANEL + GAP) - GAP
        step = height + 44
        top = MARGIN + 64
        image = pil.Image.new("RGB", (width, top + rows * step + CHART + 38 + MARGIN), PAPER)
        pen = pil.ImageDraw.Draw(image)
        pen.text((MARGIN, MARGIN - 6), self._headline(), INK, _font(26))
        pen.text((MARGIN, MARGIN + 28), *_written(caption, FAINT, 15))
        for place, patch in enumerate(shown):
            x, y = MARGIN + place % columns * (PANEL + GAP), top + place // columns * step
            frame = patch * self._joined
            image.paste(self.draw(frame, (PANEL, height)), (x, y))
            colour = _colour(self._segment[patch])
            pen.rectangle((x, y + height + 4, x + PANEL - 1, y + height + 7), (38, 43, 54))
            share = self.counts[patch] / self.tokens[patch]
            if self.counts[patch]:
                pen.rectangle((x, y + height + 4, x + max(1, PANEL * share) - 1, y + height + 7), colour)
            pen.text((x, y + height + 12), _clock(self.frames.seconds[frame]), INK, _font(14))
            count = f"{self.counts[patch]} of {self.tokens[patch]}"
            pen.text((x + PANEL, y + height + 12), count, FAINT, _font(14), anchor="ra")
        self._chart(pen, (MARGIN, top + rows * step + 22, width - MARGIN, top + rows * step + 22 + CHART))
        return image

    def _headline(self) -> str:
        before, after = sum(self.tokens), len(self.kept)
        segments = len(set(self._segment))
        text = f"{before:,} video tokens -> {after:,} kept ({100 * after / before:.1f} %)"
        return text + (f" in {segments} segments" if len(self.segments) > 2 else "")

    def _chart(self, pen: Any, box: tuple[int, int, int, int], cursor: int | None = None) -> None:
        """Draw bars of the tokens kept in each token frame, in the colour of its segment; `cursor`: the current one."""
        left, top, right, bottom = box
        most = max(self.counts) or 1
        slot = (right - left) / len(self.counts)
        pen.text((left, top - 6), f"tokens kept per frame, at most {most}", FAINT, _font(13), anchor="ls")
        if self._computed_mask is not None:
            legend = f"/ repeats an earlier frame: {int(self._computed_mask.sum()):,} of {sum(self.tokens):,} computed"
            pen.text((right, top - 6), legend, FAINT, _font(13), anchor="rs")
        for patch, count in enumerate(self.counts):
            x = left + patch * slot
            colour = _colour(self._segment[patch])
            if cursor is not None and patch != cursor:
                colour = _mix(colour, PAPER, 0.55)
            high = max(1, round((bottom - top) * count / most))
            pen.rectangle((x, bottom - high, max(x, x + slot - min(3, slot / 4)), bottom), colour)
        pen.line((left, bottom + 2, right, bottom + 2), (58, 65, 80))
        pen.text((left, bottom + 6), _clock(self.frames.seconds[0]), FAINT, _font(13))
        pen.text((right, bottom + 6), _clock(self.frames.seconds[-1]), FAINT, _font(13), anchor="ra")

    @property
    def _filmed(self) -> list[int]:
        """The frames of a film: all of the sample, or as many as are allowed, evenly."""
        total = len(self.frames)
        count = min(total, MOST_FRAMES)
        return [i * (total - 1) // max(count - 1, 1) for i in range(count)]

    def film(self, width: int = 448) -> Iterator[Any]:
        """Draw a PIL image for each frame of the sample, at most 240: the frame, its kept patches, the chart below."""
        pil = _pil()
        height = round(width * self.frames.pixels.shape[1] / self.frames.pixels.shape[2])
        full = pil.Image.new("RGB", _even(2 * width + 3 * GAP, height + CHART + 112), PAPER)
        pen = pil.ImageDraw.Draw(full)
        pen.text((GAP, GAP - 2), self._headline(), INK, _font(19))
        for frame in self._filmed:
            image = full.copy()
            pen = pil.ImageDraw.Draw(image)
            patch = frame // self._joined
            pen.text((image.width - GAP, GAP), _clock(self.frames.seconds[frame]), INK, _font(17), anchor="ra")
            picture = pil.Image.fromarray(self.frames.pixels[frame].cpu().numpy())
            image.paste(picture.resize((width, height), pil.Image.Resampling.LANCZOS), (GAP, 44))
            image.paste(self.draw(frame, (width, height)), (2 * GAP + width, 44))
            self._chart(pen, (GAP, height + 74, image.width - GAP, height + 74 + CHART), patch)
            yield image

    def save_video(self, path: str | os.PathLike[str]) -> None:
        """Write the film as H.264 in MP4, at the speed of the clip."""
        av = require("av", "video")
        with av.open(os.fspath(path), "w") as container:
            stream = container.add_stream("libx264", rate=self._rate, options={"crf": "20"})
            stream.pix_fmt = "yuv420p"
            for number, image in enumerate(self.film()):
                if number == 0:
                    stream.width, stream.height = image.size
                container.mux(stream.encode(av.VideoFrame.from_image(image)))
            container.mux(stream.encode())

    def save_gif(self, path: str | os.PathLike[str]) -> None:
        """Write the film as a GIF, smaller."""
        images = [image.quantize(128) for image in self.film(width=300)]
        images[0].save(path, save_all=True, append_images=images[1:], duration=round(1000 / self._rate), loop=0)

    @property
    def _rate(self) -> Fraction:
        """Frames a second at which the film takes as long as the clip did, within what an eye can follow."""
        rate = len(self._filmed) / self.frames.duration if self.frames.duration else 4.0
        return Fraction(min(max(rate, 1.0), 30.0)).limit_denominator(1000)

    def save(self, folder: str | os.PathLike[str], caption: str = "", films: Sequence[str] = ()) -> dict[str, Path]:
        """Write overlay.png to `folder`, and of `films` "mp4" and "gif": returns the paths by kind.

        Raises `ValueError` for other films.
        """
        savers = {"mp4": self.save_video, "gif": self.save_gif}
        if isinstance(films, str) or not set(films) <= savers.keys():
            raise ValueError(f'expected films to be a list of "mp4" and "gif", got {films!r}')
        paths = {kind: Path(folder) / f"overlay.{kind}" for kind in ("png", *films)}
        self.sheet(caption).save(paths["png"])
        for kind in films:
            savers[kind](paths[kind])
        return paths


def _pil() -> ModuleType:
    pil = require("PIL", "viz")
    for module in ("Image", "ImageDraw", "ImageFont"):
        require(f"PIL.{module}", "viz")
    return pil


@cache
def _font(size: int) -> Any:
    return _pil().ImageFont.load_default(size)


def _written(text: str, colour: tuple[int, int, int], size: int) -> tuple[str, tuple[int, int, int], Any]:
    """Find a font that can write `text`. Characters that no installed font has are escaped, as \\u4e2d."""
    fonts = [_font(size), *(font for name in FONTS if (font := _installed(name, size)))]
    best = min(fonts, key=lambda font: sum(not _has(font, letter) for letter in text))
    shown = (letter if _has(best, letter) else letter.encode("unicode_escape").decode("ascii") for letter in text)
    return "".join(shown), colour, best


@cache
def _installed(name: str, size: int) -> Any:
    """Load a font by the name of its file, None if it is not installed."""
    try:
        return _pil().ImageFont.truetype(name, size)
    except OSError:
        return None


def _has(font: Any, letter: str) -> bool:
    """Whether a font has a letter; it draws all letters that it lacks alike."""
    if not letter.isprintable():
        return False
    return letter == " " or bytes(font.getmask(letter)) != bytes(font.getmask("\U0010fffe"))


def _colour(segment: int) -> tuple[int, int, int]:
    """Get the colour of a segment; neighbouring segments get hues far apart."""
    red, green, blue = colorsys.hls_to_rgb((0.12 + segment * 0.618034) % 1, 0.62, 0.85)
    return round(255 * red), round(255 * green), round(255 * blue)


def _mix(colour: tuple[int, int, int], other: tuple[int, int, int], share: float) -> tuple[int, int, int]:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(colour, other, strict=True))
    return red, green, blue


def _clock(seconds: float) -> str:
    tenths = round(10 * seconds)
    return f"{tenths // 600}:{tenths // 10 % 60:02d}.{tenths % 10}"


def _even(width: int, height: int) -> tuple[int, int]:
    """Round sides up to even numbers, which H.264 needs."""
    return width + width % 2, height + height % 2
