"""Draw a reduction over its frames: kept patches are bright, dropped ones dim.

    picture = Overlay(frames, kept, tokens=(192,) * 16, grid=(12, 16))
    picture.sheet().save("overlay.png")     # every token frame, with its time, its share of the budget, its segment
    picture.save_video("overlay.mp4")       # the clip beside its kept patches; at most 240 frames
    picture.save_gif("overlay.gif")

The grid covers the complete frame; if a processor crops frames first, it is off by the crop.
"""

import math
import os
import warnings
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidsieve.checks import require
from vidsieve.types.frames import Frames
from vidsieve.video.lettering import font, lacking, pillow, write
from vidsieve.video.timeline import FAINT, INK, PAPER, TRACK, Timeline, clock, colour_of

GAINED = (130, 214, 170)
PANEL, GAP, MARGIN = 232, 16, 28  # pixels: across a panel of the sheet, between panels, around all
TALLEST = 560  # pixels, of a panel
TEXT, CHART = 20, 96  # pixels, at the smallest width of a sheet: height of its letters, of the chart of tokens kept
MOST_PANELS = 64
MOST_FRAMES = 240  # of a film; each is drawn anew, at tens of milliseconds


@dataclass(frozen=True, eq=False)
class Overlay:
    """Draws a reduction of one video.

    frames: T frames.  kept: int64 (K,) indices among the video's N tokens.  tokens: how many each token frame has, T'
    of them, summing to N; models that join neighbouring frames have fewer token frames than frames.
    grid: (rows, columns) of a token frame; None if there is none, then a frame is as bright as its kept share.
    segments: (S + 1,) token offsets of the segments.
    computed: int64 (C,) indices of the tokens whose pixels the vision tower computed, None for all. The others, with
    the features of an earlier frame, get a diagonal line; it needs a grid.
    gain: what was gained, in words.  texts: (name, text) of what was asked and answered. Both stand above the pictures.
    """

    frames: Frames
    kept: Tensor
    tokens: Sequence[int]
    grid: tuple[int, int] | None = None
    segments: Sequence[int] = ()
    computed: Tensor | None = None
    gain: str = ""
    texts: Sequence[tuple[str, str]] = ()

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
        Image = pillow().Image
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
        _outline(image, mask, colour_of(self._segment[patch]))
        if self._computed_mask is not None:
            _strike(image, ~self._computed_mask[self._bounds[patch] : self._bounds[patch + 1]].view(self.grid))
        return image

    def sheet(self, caption: str = "") -> Any:
        """Draw the contact sheet, a PIL image: a panel for every token frame (at most 64, evenly), a chart below."""
        pil = pillow()
        total = len(self.tokens)
        shown = [round(i * (total - 1) / max(min(total, MOST_PANELS) - 1, 1)) for i in range(min(total, MOST_PANELS))]
        # Of the widths that suit a page, the one whose last row is fullest.
        most = min(range(4, 9), key=lambda n: (-len(shown) % n + abs(n - math.sqrt(1.6 * len(shown))), -n))
        inner = most * (PANEL + GAP) - GAP
        text = round(TEXT * inner / (4 * (PANEL + GAP) - GAP))
        high, wide = self.frames.pixels.shape[1:3]
        columns = max(1, min(len(shown), most, round(3 * most * high / wide)))
        panel = (inner + GAP) // columns - GAP
        size = _within(high, wide, panel, TALLEST)
        step = size[1] + 2 * TEXT + GAP
        header = self._header(inner, text, 3, caption, len(shown))
        top = MARGIN + header.height + GAP
        chart = top + -(-len(shown) // columns) * step + 2 * text
        bottom = chart + CHART * text // TEXT
        image = pil.Image.new("RGB", (inner + 2 * MARGIN, bottom + 2 * text + MARGIN), PAPER)
        image.paste(header, (MARGIN, MARGIN))
        for place, patch in enumerate(shown):
            x, y = MARGIN + place % columns * (panel + GAP), top + place // columns * step
            image.paste(self.draw(patch * self._joined, size), (x + (panel - size[0]) // 2, y))
            self._label(pil.ImageDraw.Draw(image), patch, (x, y + size[1] + 5), panel)
        self._timeline.draw(pil.ImageDraw.Draw(image), (MARGIN, chart, MARGIN + inner, bottom), text)
        return image

    def _label(self, pen: Any, patch: int, place: tuple[int, int], width: int) -> None:
        """Write the time of a token frame and how many tokens of it are kept, below a bar of that share."""
        x, y = place
        pen.rectangle((x, y, x + width - 1, y + 5), TRACK)
        if self.counts[patch]:
            filled = max(1, width * self.counts[patch] / self.tokens[patch])
            pen.rectangle((x, y, x + filled - 1, y + 5), colour_of(self._segment[patch]))
        pen.text((x, y + 10), clock(self.frames.seconds[patch * self._joined]), INK, font(TEXT))
        count = f"{self.counts[patch]} of {self.tokens[patch]}"
        pen.text((x + width, y + 10), count, FAINT, font(TEXT), anchor="ra")

    def _header(self, width: int, size: int, most: int, caption: str = "", shown: int = 0) -> Any:
        """Draw what stands above the pictures, each text in at most `most` lines: a PIL image, as high as it needs.

        shown: how many of the token frames have a panel; 0 for a film.
        """
        pil = pillow()
        image = pil.Image.new("RGB", (width, (8 + len(self.texts)) * (most + 1) * 2 * size), PAPER)
        pen = pil.ImageDraw.Draw(image)
        y = write(pen, (0, 0), self._headline(), INK, round(1.5 * size), width)
        y += write(pen, (0, y), self.gain, GAINED, round(1.2 * size), width, 2)
        y += size // 3
        beside = max((round(font(size).getlength(f"{name}   ")) for name, _ in self.texts), default=0)
        beside = min(beside, width // 2)
        for name, text in self.texts:
            write(pen, (0, y), name, FAINT, size, beside)
            text = " ".join(text.split()) or "(empty)"
            y += write(pen, (beside, y), text, INK, size, width - beside, most) + size // 6
        notes = [caption, self._legend()]
        if shown and shown < len(self.tokens):
            notes.append(f"{shown} of {len(self.tokens)} frames are shown")
        if lacking(self._written(caption)):
            notes.append("letters that no font on this machine has are counted, or written as \\u4e2d")
        y += size // 3
        for text in filter(None, notes):
            y += write(pen, (0, y), text, FAINT, round(0.9 * size), width, most)
        return image.crop((0, 0, width, y))

    def _written(self, caption: str) -> list[str]:
        """List the texts that are not this module's own."""
        return [caption, *(text for pair in self.texts for text in pair)]

    def _headline(self) -> str:
        before, after = sum(self.tokens), len(self.kept)
        segments = len(set(self._segment))
        text = f"{before:,} video tokens -> {after:,} kept ({100 * after / before:.1f} %)"
        return text + (f" in {segments} segments" if segments > 1 else "")

    def _legend(self) -> str:
        if self._computed_mask is None:
            return ""
        return f"/ repeats an earlier frame: {int(self._computed_mask.sum()):,} of {sum(self.tokens):,} computed"

    @cached_property
    def _timeline(self) -> Timeline:
        colours = tuple(colour_of(segment) for segment in self._segment)
        return Timeline(self.counts, colours, self.frames.seconds, self._joined)

    @property
    def _filmed(self) -> list[int]:
        """The frames of a film: all of the sample, or as many as are allowed, evenly."""
        total = len(self.frames)
        count = min(total, MOST_FRAMES)
        return [i * (total - 1) // max(count - 1, 1) for i in range(count)]

    def film(self, width: int = 448) -> Iterator[Any]:
        """Draw a PIL image for each frame of the sample, at most 240: the frame, its kept patches, the chart below.

        width: pixels across one of the two pictures.
        """
        pil = pillow()
        inner = 2 * width + GAP
        text = max(15, width // 26)
        high, wide = self.frames.pixels.shape[1:3]
        size = _within(high, wide, width, width)
        header = self._header(inner, text, 2)
        top = GAP + header.height + GAP
        chart = top + size[1] + 2 * text + 4
        bottom = chart + CHART * text // TEXT
        full = pil.Image.new("RGB", _even(inner + 2 * GAP, bottom + 2 * text + GAP), PAPER)
        full.paste(header, (GAP, GAP))
        aside = (width - size[0]) // 2
        for frame in self._filmed:
            image = full.copy()
            picture = pil.Image.fromarray(self.frames.pixels[frame].cpu().numpy())
            image.paste(picture.resize(size, pil.Image.Resampling.LANCZOS), (GAP + aside, top))
            image.paste(self.draw(frame, size), (2 * GAP + width + aside, top))
            self._timeline.draw(pil.ImageDraw.Draw(image), (GAP, chart, GAP + inner, bottom), text, frame)
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
        octree = pillow().Image.Quantize.FASTOCTREE
        images = [image.quantize(256, octree) for image in self.film(width=300)]
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
        if letters := lacking(self._written(caption)):
            warnings.warn(
                f"no font on this machine has {letters[:8]}{'...' * (len(letters) > 8)}: the pictures count such "
                "letters, or write them as \\u4e2d; install a font that has them, as fonts-noto-cjk for Chinese",
                stacklevel=2,
            )
        paths = {kind: Path(folder) / f"overlay.{kind}" for kind in ("png", *films)}
        self.sheet(caption).save(paths["png"])
        for kind in films:
            savers[kind](paths[kind])
        return paths


def _outline(image: Any, mask: Tensor, colour: tuple[int, int, int]) -> None:
    """Draw a line in `colour` along every border of kept patches, if patches are large enough."""
    rows, columns = mask.shape
    side = min(image.width // columns, image.height // rows)
    if side < 4:
        return
    width = min(-(-image.width // 150), max(1, side // 6))
    pen = pillow().ImageDraw.Draw(image)
    framed = torch.nn.functional.pad(mask, (1, 1, 1, 1))
    for row, column in (framed[1:, 1:] != framed[:-1, 1:]).nonzero().tolist():
        y = min(round(row * image.height / rows), image.height - 1)
        pen.line((column * image.width / columns, y, (column + 1) * image.width / columns, y), colour, width)
    for row, column in (framed[1:, 1:] != framed[1:, :-1]).nonzero().tolist():
        x = min(round(column * image.width / columns), image.width - 1)
        pen.line((x, row * image.height / rows, x, (row + 1) * image.height / rows), colour, width)


def _strike(image: Any, mask: Tensor) -> None:
    """Draw a diagonal line through every patch of `mask`."""
    pen = pillow().ImageDraw.Draw(image)
    high, wide = image.height / mask.shape[0], image.width / mask.shape[1]
    for row, column in mask.nonzero().tolist():
        pen.line((column * wide, (row + 1) * high - 1, (column + 1) * wide - 1, row * high), INK)


def _within(high: int, wide: int, most_wide: int, most_high: int) -> tuple[int, int]:
    """Scale a frame into a box: (width, height) of what is drawn, at least a pixel each."""
    scale = min(most_wide / wide, most_high / high)
    return max(1, round(wide * scale)), max(1, round(high * scale))


def _even(width: int, height: int) -> tuple[int, int]:
    """Round sides up to even numbers, which H.264 needs."""
    return width + width % 2, height + height % 2
