"""Draw how many tokens are kept along a clip: a bar for each token frame, times below, a playhead."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vidsieve.video.lettering import font

Colour = tuple[int, int, int]

PAPER, INK, FAINT, TRACK = (16, 19, 26), (232, 236, 243), (150, 158, 172), (58, 65, 80)
# Of segments, in turn: of Okabe and Ito, told apart in every kind of colour vision; neighbours differ in lightness too.
COLOURS = ((240, 228, 66), (86, 180, 233), (213, 94, 0), (230, 159, 0), (0, 158, 115), (204, 121, 167))


@dataclass(frozen=True)
class Timeline:
    """Bars of T' token frames.

    counts: tokens kept in each.  colours: of each.  seconds: of each of T frames.  joined: frames in a token frame.
    """

    counts: Sequence[int]
    colours: Sequence[Colour]
    seconds: Sequence[float]
    joined: int

    def draw(self, pen: Any, box: tuple[int, int, int, int], size: int, cursor: int | None = None) -> None:
        """Draw the bars in `box`, left, top, right, bottom, with letters of `size` pixels above and below it.

        cursor: the frame that is shown, where a playhead stands; other token frames are darker then.
        """
        left, top, right, bottom = box
        most = max(self.counts) or 1
        slot = (right - left) / len(self.counts)
        pen.text((left, top - 6), f"tokens kept per frame, at most {most}", FAINT, font(size), anchor="ls")
        for patch, (count, colour) in enumerate(zip(self.counts, self.colours, strict=True)):
            x = left + patch * slot
            if cursor is not None and patch != cursor // self.joined:
                colour = _mix(colour, PAPER, 0.55)
            high = max(1, round((bottom - top) * count / most))
            pen.rectangle((x, bottom - high, max(x, x + slot - min(3, slot / 4)), bottom), colour)
        pen.line((left, bottom + 2, right, bottom + 2), TRACK)
        if cursor is not None:
            x = round(left + (cursor + 0.5) / self.joined * slot)
            pen.rectangle((x - 1, top - 4, x + 1, bottom + 6), INK)
            pen.polygon(((x - 7, top - 6), (x + 7, top - 6), (x, top + 5)), INK)
        self._write_times(pen, box, font(size), cursor)

    def _write_times(self, pen: Any, box: tuple[int, int, int, int], letters: Any, cursor: int | None) -> None:
        """Write when the frames at the ends, the quarters and the half are shown, and in bright letters `cursor`.

        Of two that would touch, the brighter or earlier one is written.
        """
        left, _, right, bottom = box

        def at(frame: int) -> int:
            return round(left + frame / self.joined * (right - left) / len(self.counts))

        quarters = 4 if len(self.counts) >= 4 else 1
        frames = [quarter * len(self.counts) // quarters * self.joined for quarter in range(quarters)]
        labels = [(at(frame), frame, FAINT) for frame in frames if frame != cursor]
        if len(self.seconds) - 1 not in (0, cursor):
            labels.append((right, len(self.seconds) - 1, FAINT))
        if cursor is not None:
            width = math.ceil(letters.getlength(clock(self.seconds[cursor])))
            labels.insert(0, (at(cursor) - width // 2, cursor, INK))
        taken: list[tuple[int, int]] = []
        for x, frame, colour in labels:
            time = clock(self.seconds[frame])
            width = math.ceil(letters.getlength(time))
            begin = min(max(x, left), right - width)
            if all(begin > end + 8 or begin + width + 8 < start for start, end in taken):
                pen.text((begin, bottom + 8), time, colour, letters)
                taken.append((begin, begin + width))


def colour_of(segment: int) -> Colour:
    """Get the colour of a segment; neighbouring segments differ."""
    return COLOURS[segment % len(COLOURS)]


def clock(seconds: float) -> str:
    """Write a time as minutes, seconds and tenths."""
    tenths = round(10 * seconds)
    return f"{tenths // 600}:{tenths // 10 % 60:02d}.{tenths % 10}"


def _mix(colour: Colour, other: Colour, share: float) -> Colour:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(colour, other, strict=True))
    return red, green, blue
