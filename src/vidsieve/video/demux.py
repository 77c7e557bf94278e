"""Index a video file: which stream, which frames, and when each is shown.

Frames are numbered in the order in which they come out of the decoder. `by_packets` reads that from packets, without
decoding them, if they leave no doubt; `by_decoding` counts the frames that the decoder returns.
"""

import os
import stat
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, pairwise
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import url2pathname

from vidsieve.checks import require
from vidsieve.errors import VideoError, redacted
from vidsieve.stages import Check, unchecked
from vidsieve.video.references import UNKNOWN, Rank, rank_reader

BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide")  # that an MP4 or MOV file begins with
PATIENCE = 30.0  # seconds that a server may take to answer


@dataclass(frozen=True)
class Index:
    """The frames of a video stream.

    pts: sorted time stamps, one a frame, where `keys` is not empty; else those of packets, if the first of them is when
    the video begins.  seconds: of each frame, from there, or else from the first.
    duration: to the end of the last.  truncated: the file ends before its video does.
    keys: (frame number, time stamp to seek to) of each key frame; empty where stamps do not say which frame is which.
    packets: how many there are; most give one frame.  intact: whether every packet can be decoded.
    rising: whether each packet has a time stamp of its own, and later ones are decoded later. Frames that come out of
    the decoder in another order come so because of damage.
    late: which of the frames that come out are not numbered, for others that are shown later came before them.
    spare: numbers of frames that no other is made from, as far as that is known and was asked for.
    stamp: of the file, as `stamp_of` has it.
    """

    seconds: Sequence[float]
    duration: float
    truncated: bool
    pts: Sequence[int] = ()
    keys: Sequence[tuple[int, int]] = ()
    packets: int = 0
    intact: bool = True
    rising: bool = False
    late: frozenset[int] = frozenset()
    spare: frozenset[int] = field(default=frozenset(), compare=False)
    stamp: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.seconds)

    def key_before(self, number: int) -> int:
        """Position in `keys` of the last key frame at or before frame `number`, -1 if there is none."""
        return bisect_right(self.keys, number, key=lambda key: key[0]) - 1


def is_path(name: str) -> bool:
    """Whether a name is the path of a file, not an address or standard input."""
    scheme, slashes, _ = name.partition("://")
    address = bool(slashes) and (scheme.lower() in ("http", "https", "file") or not os.path.exists(name))
    return not address and name != "-"


def locate(name: str) -> str:
    """Get what the decoder opens for a name. Raises `VideoError` in words for errors that FFmpeg reports as numbers."""
    if not name:
        raise VideoError("expected the path of a video file, got an empty name")
    if name == "-":
        raise VideoError("-: standard input cannot be gone through twice; write it to a file, and give its path")
    scheme = "" if is_path(name) else name.partition("://")[0].lower()
    if scheme in ("http", "https"):
        return name
    path = name
    if scheme == "file":
        parts = urlsplit(name)
        if parts.netloc not in ("", "localhost"):
            raise VideoError(f"{name}: names the host {parts.netloc!r}; a file of this machine is file:///path")
        path = url2pathname(parts.path)
    elif scheme:
        raise VideoError(f"{name}: {scheme}:// cannot be read, only files and http(s)://; download it first")
    _check_file(name, path)
    return f"file:{path}"  # or a colon in the name would end the name of a protocol


def _check_file(name: str, path: str) -> None:
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise VideoError(f"{name}: no such file") from error
    except (OSError, ValueError) as error:  # a name that is too long; a NUL in it
        raise VideoError(f"{name}: cannot be opened ({getattr(error, 'strerror', error)})") from error
    if stat.S_ISDIR(found.st_mode):
        raise VideoError(f"{name}: is a directory, expected a video file")
    if not stat.S_ISREG(found.st_mode):
        raise VideoError(f"{name}: is a pipe or device, which cannot be gone through twice; write it to a file")
    if not os.access(path, os.R_OK):
        raise VideoError(f"{name}: no permission to read it")
    if not found.st_size:
        raise VideoError(f"{name}: is empty (0 bytes)")


def stamp_of(place: str) -> tuple[int, int] | None:
    """Get the size of a file and when it was last written, in nanoseconds; None for an address."""
    if not place.startswith("file:"):
        return None
    found = os.stat(place.removeprefix("file:"))
    return found.st_size, found.st_mtime_ns


def check_unchanged(found: Index, place: str, name: str) -> None:
    """Raise `VideoError` for a file that was written since its index was made, be it with frames at the same times."""
    try:
        changed = stamp_of(place) != found.stamp
    except OSError:
        changed = True
    if changed:
        raise VideoError(f"{name}: has changed since it was planned; plan it again")


def lacks_its_index(place: str) -> bool:
    """Whether `place` is an MP4 or MOV file that ends before the box that lists its frames does."""
    if not place.startswith("file:"):
        return False
    with open(place.removeprefix("file:"), "rb") as file:
        total, at, first = os.fstat(file.fileno()).st_size, 0, True
        while at < total:
            file.seek(at)
            size, kind, large = struct.unpack(">I4sQ", file.read(16).ljust(16, b"\0"))
            if first and kind not in BOXES:
                return False
            end = at + (large if size == 1 else size or total - at)  # 0: to the end of the file
            if kind == b"moov" or end < at + 8:
                return end > total or kind != b"moov"
            at, first = end, False
    return True


def opened(place: str) -> Any:
    """Open the container at `place`, which is from `locate`."""
    return open_container(place, timeout=None if place.startswith("file:") else PATIENCE)


def open_container(source: Any, **options: Any) -> Any:
    """Open a container whose tags may have any encoding. `options` are those of `av.open`."""
    av = require("av", "video")
    if int(av.__version__.split(".")[0]) < 19:  # later ones read tags when they are asked for
        options["metadata_errors"] = "replace"
    return av.open(source, **options)


def without_secrets(error: Exception) -> Exception:
    """Leave user, password and query of an address out of an error of FFmpeg's: a traceback shows it as the cause."""
    error.args = tuple(redacted(part) if isinstance(part, str) else part for part in error.args[:3])  # then, its log
    return error


def video_stream(container: Any, name: str) -> Any:
    """Find the first video stream that is not a cover picture. Raises `VideoError` without one."""
    from av.stream import Disposition

    covers = 0
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            if stream.codec_context is None:
                raise VideoError(f"{name}: is of a video codec that FFmpeg here has no decoder for; re-encode it")
            return stream
        covers += 1
    kinds = sorted({stream.type for stream in container.streams} - {"video"}) + ["a cover picture"] * bool(covers)
    raise VideoError(f"{name}: has no video stream ({'only ' + ', '.join(kinds) if kinds else 'no stream at all'})")


def demuxed(container: Any, *streams: Any) -> Iterator[Any]:
    """Read the packets of `streams`, of all if none is given.

    After the last, PyAV looks up streams that only came up while it read, as of a damaged transport stream.
    """
    with suppress(IndexError):
        yield from container.demux(*streams)


def packets(container: Any, stream: Any, check: Check = unchecked) -> Iterator[Any]:
    """Read the packets of a stream up to the end of the file, without one that the end cuts in two."""
    from av.error import InvalidDataError

    cut = None
    with suppress(InvalidDataError):
        for packet in demuxed(container, stream):
            check()
            if not packet.size:
                continue
            if cut is not None:  # not at the end: damaged in passing, which the decoder may make up for
                yield cut
            cut = packet if packet.is_corrupt else None
            if cut is None:
                yield packet


def pictures(container: Any, stream: Any, intact: bool, check: Check = unchecked) -> Iterator[Any]:
    """Decode frames in display order.

    intact: raise PyAV's `InvalidDataError` for a packet that cannot be decoded; else skip it, as players
    do. Threads that each decode a frame lose others beside it, at the end of a file without an error.
    """
    from av.error import InvalidDataError

    if not stream.codec_context.is_open:
        stream.thread_type = "AUTO" if intact else "SLICE"
    for packet in chain(
        packets(container, stream, check), (None,)
    ):  # None has the decoder hand out what it still holds
        with suppress(*(() if intact else (InvalidDataError,))):
            yield from stream.decode(packet)


def by_packets(place: str, name: str, check: Check = unchecked, spare: bool = True) -> Index:
    """Make the index from packets; without `keys` if they do not determine the frames that the decoder returns.

    spare: find out which frames no other is made from, a third of the time that the index takes.
    """
    stamp = stamp_of(place)
    with opened(place) as container:
        stream = video_stream(container, name)
        listed, truncated = _listed(container, stream, check, spare)
        # AVI has no presentation time stamps, and those made up for it are wrong where frames are reordered.
        reordered = container.format.name == "avi" and stream.codec_context.has_b_frames
        tick = float(stream.time_base)
        timed = _timed(container)
    shown = [packet.pts for packet in listed if packet.pts is not None]
    decoded = [packet.dts for packet in listed if packet.dts is not None]
    unique = len(set(shown)) == len(shown) == len(listed)
    rising = not reordered and unique and all(a <= b for a, b in pairwise(decoded))
    sure = (
        rising
        and not any(packet.corrupt for packet in listed)
        # Pictures before the first key frame, in either order, lack what they are made from.
        and (not shown or (listed[0].key and shown[0] == min(shown)))
    )
    if not (sure and shown):
        known = sorted(shown) if rising and timed else ()
        return Index((), 0.0, truncated, known, packets=len(listed), rising=rising, stamp=stamp)
    pts = sorted(shown)
    seconds = [(at - pts[0]) * tick for at in pts]
    last = listed[shown.index(pts[-1])].duration * tick
    duration = seconds[-1] + (last or seconds[-1] / max(len(pts) - 1, 1))
    # Demuxers seek by decoding time stamp, which may lie before the presentation one.
    seek = {
        at: at if packet.dts is None else min(at, packet.dts)
        for at, packet in zip(shown, listed, strict=True)
        if packet.key
    }
    return Index(
        seconds,
        duration,
        truncated,
        pts,
        [(bisect_left(pts, key), seek[key]) for key in sorted(seek)],
        packets=len(listed),
        rising=rising,
        spare=frozenset(bisect_left(pts, at) for at in _spare(listed)),
        stamp=stamp,
    )


def _spare(listed: Sequence["_Packet"]) -> list[int]:
    """List the time stamps of pictures that no other is made from."""
    highest = max(packet.rank[0] for packet in listed)
    return [packet.pts for packet in listed if packet.rank == (highest, False) and packet.pts is not None]


class _Packet(NamedTuple):
    """A packet without its bytes."""

    pts: int | None
    dts: int | None
    duration: int
    key: bool
    corrupt: bool
    rank: Rank


def _listed(container: Any, stream: Any, check: Check, ranked: bool) -> tuple[list[_Packet], bool]:
    """List the packets of `stream` that are shown, without one cut in two at the end; and whether the file is cut.

    ranked: read the ranks of their pictures, else they are `UNKNOWN`.
    """
    from av.error import InvalidDataError

    listed: list[_Packet] = []
    rank = rank_reader(stream) if ranked else lambda packet: UNKNOWN
    ends: dict[int, int] = {}  # of the packets of each stream, in its ticks
    video, broken = stream.index, False
    try:
        for packet in demuxed(container):
            check()
            if not packet.size:
                continue
            of, pts, duration = packet.stream_index, packet.pts, packet.duration or 0
            if pts is not None:
                ends[of] = max(ends.get(of, 0), pts + duration)
            if of == video and not packet.is_discard:
                seen = (pts, packet.dts, duration, packet.is_keyframe, packet.is_corrupt)
                listed.append(_Packet(*seen, rank(packet)))
    except InvalidDataError:
        broken = True
    reached = max((float(end * (container.streams[of].time_base or 0)) for of, end in ends.items()), default=0.0)
    if listed and listed[-1].corrupt:
        broken = True
        listed.pop()
    size = container.size or -1  # None in PyAV 19 where older ones have -1
    beyond = size > 0 and any(entry.pos + entry.size > size for entry in stream.index_entries)
    return listed, broken or beyond or _promised(container) - reached > max(1.0, 0.02 * reached)


def _promised(container: Any) -> float:
    """Get the end of the last stream by the header, in seconds; 0 for formats whose header does not say."""
    return float(container.duration / 1e6) if container.duration is not None and _timed(container) else 0.0


def _timed(container: Any) -> bool:
    """Whether the format has a time at which it begins, be it before the first frame that can be decoded."""
    name: str = container.format.name
    return name.startswith(("matroska", "mov"))


def by_decoding(place: str, name: str, found: Index, check: Check = unchecked) -> Index:
    """Make the index of the frames that the decoder returns. found: the index of the packets."""
    from av.error import InvalidDataError

    try:
        counted = _counted(place, name, found, True, check)
    except InvalidDataError:
        return _counted(place, name, found, False, check)
    return counted if len(counted) >= found.packets else _counted(place, name, found, False, check)


def _counted(place: str, name: str, found: Index, intact: bool, check: Check) -> Index:
    """Count the frames that the decoder returns, and find when each is shown.

    If time stamps go back (joined recordings) or are missing, a frame follows the previous one after its duration.
    """
    shown: list[tuple[int | None, int]] = []  # stamp and duration of each frame
    with opened(place) as container:
        stream = video_stream(container, name)
        tick, rate = float(stream.time_base), float(stream.average_rate or stream.guessed_rate or 25)
        stamped = container.format.name != "avi"
        for frame in pictures(container, stream, intact, check):
            shown.append((frame.pts, frame.duration or 0) if stamped else (None, 0))
    if found.rising and any(stamp is not None for stamp, _ in shown):
        return _by_stamps(shown, found, tick, rate, intact)
    seconds: list[float] = []
    last: float | None = None
    stays = 1 / rate
    for pts, duration in shown:
        stamp = None if pts is None else pts * tick
        step = stays if stamp is None or last is None or stamp < last else stamp - last
        seconds.append(seconds[-1] + step if seconds else 0.0)
        last, stays = stamp, duration * tick or 1 / rate
    return Index(seconds, seconds[-1] + stays if seconds else 0.0, found.truncated, intact=intact, stamp=found.stamp)


def _by_stamps(shown: Sequence[tuple[int | None, int]], found: Index, tick: float, rate: float, intact: bool) -> Index:
    """Make the index of frames that are shown at their stamps, without those that come too late for theirs."""
    kept = _in_order([stamp for stamp, _ in shown])
    stamps = [stamp for stamp, _ in (shown[i] for i in kept) if stamp is not None]
    begin = found.pts[0] if found.pts else stamps[0]
    seconds = [(stamp - begin) * tick for stamp in stamps]
    end = seconds[-1] + (shown[kept[-1]][1] * tick or 1 / rate)
    late = frozenset(range(len(shown))).difference(kept)
    return Index(seconds, max(end, found.duration), found.truncated, intact=intact, late=late, stamp=found.stamp)


def _in_order(stamps: Sequence[int | None]) -> list[int]:
    """Find the most places, in order, of which each has a larger stamp than the one before it."""
    ends: list[int] = []  # stamps that runs of 1, 2, ... of them end with, the smallest each,
    last: list[int] = []  # and where
    before: dict[int, int] = {}
    for place, stamp in enumerate(stamps):
        if stamp is None:
            continue
        at = bisect_left(ends, stamp)
        before[place] = last[at - 1] if at else -1
        ends[at : at + 1], last[at : at + 1] = [stamp], [place]
    kept, place = [], last[-1]
    while place >= 0:
        kept.append(place)
        place = before[place]
    return kept[::-1]
