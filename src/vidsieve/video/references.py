"""Find the pictures of H.264 and H.265 that no other is made from, by the headers of their packets.

A packet holds NAL units: each has its length before it (MP4, Matroska) or begins with 0 0 1 (MPEG-TS). The first two
bytes of a unit say what it is.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

_START = re.compile(rb"\0\0\x01(?=(..))", re.DOTALL)

# The temporal layer of a picture, and whether others of its layer may be made from it.
Rank = tuple[int, bool]
UNKNOWN: Rank = (7, True)  # above all layers


def rank_reader(stream: Any) -> Callable[[Any], Rank]:
    """Make the function that reads the rank of a packet's picture.

    A picture that others of its layer are not made from may still be needed by those of higher layers: it is spare if
    its layer is the highest in the stream. Of other codecs, and of what cannot be read, the rank is `UNKNOWN`.
    """
    context = stream.codec_context
    extra = bytes(context.extradata or b"")
    lengths = extra[:1] == b"\1"  # the header of MP4 and Matroska; else it is absent, or a unit
    if context.name == "h264":
        return _reader(_h264, (extra[4] & 3) + 1 if lengths and len(extra) > 4 else 0)
    if context.name == "hevc":
        return _reader(_hevc, (extra[21] & 3) + 1 if lengths and len(extra) > 21 else 0)
    return lambda packet: UNKNOWN


def _reader(rank: Callable[[int, int], Rank | None], prefix: int) -> Callable[[Any], Rank]:
    def read(packet: Any) -> Rank:
        try:
            ranks = {rank(first, second) for first, second in _units(memoryview(packet), prefix)} - {None}
        except ValueError:
            return UNKNOWN
        return (ranks.pop() if len(ranks) == 1 else None) or UNKNOWN

    return read


def _units(data: memoryview, prefix: int) -> Iterator[tuple[int, int]]:
    """Yield the first two bytes of each NAL unit. prefix: bytes of a length, 0 without.

    Raises `ValueError` for lengths that do not add up.
    """
    if not prefix:
        for match in _START.finditer(data):
            yield match[1][0], match[1][1]
        return
    at, end = 0, len(data)
    while at < end:
        size = int.from_bytes(data[at : at + prefix], "big")
        at += prefix
        if not 0 < size <= end - at:
            raise ValueError(f"a unit of {size} bytes where {end - at} are left")
        yield data[at], data[at + 1] if size > 1 else 0
        at += size


def _h264(first: int, _: int) -> Rank | None:
    """Read the rank of a slice; None for other units. What is no reference is none for any layer."""
    return (0, bool(first & 0x60)) if 1 <= first & 31 <= 5 else None


def _hevc(first: int, second: int) -> Rank | None:
    kind, view, layer = first >> 1 & 63, (first & 1) << 5 | second >> 3, (second & 7) - 1
    if kind > 31 or view:  # no slice, or one of a second view, which is not decoded
        return None
    return layer, kind > 14 or kind % 2 == 1
