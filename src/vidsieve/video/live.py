"""Read a video that has no end yet: a file that grows, an HTTP or HLS address, an RTSP camera.

for frames, seconds in live("rtsp://camera/1", fps=2):    # uint8 (1, H, W, 3), as soon as it is there
    ...
"""

import errno
import os
import sys
import time
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from math import ceil, inf
from typing import Any

import torch
from torch import Tensor

from vidsieve.checks import check_number, require
from vidsieve.errors import VideoError, redacted
from vidsieve.video.demux import PATIENCE, demuxed, locate, open_container, video_stream, without_secrets
from vidsieve.video.scaling import Scaling
from vidsieve.video.wanted import LONGEST_SIDE, Size

RTSP = ("rtsp", "rtsps")
PAUSE = 0.05  # seconds between looks at a file that has not grown
LONGEST = 3600.0  # seconds that one may wait


def live(
    address: str | os.PathLike[str],
    fps: float,
    *,
    size: Size = LONGEST_SIDE,
    patience: float = PATIENCE,
    options: Mapping[str, str] | None = None,
) -> Iterator[tuple[Tensor, tuple[float, ...]]]:
    """Read frames as they come: RGB uint8 (1, H, W, 3), upright, all of one size, with their seconds from the first.

    address: of a file that is being written, from its beginning on, in a format without an index at its end (MPEG-TS,
      Matroska, fragmented MP4); or http(s)://, of a stream or a playlist of HLS; or rtsp(s)://.
    fps: of each 1/fps seconds of the stream, the first frame; all frames if there are fewer.
    size: as `read_video` takes it.  patience: seconds without a byte after which a file is complete, and an address is
      given up.  options: of FFmpeg, for the address: {"rtsp_transport": "udp"}, {"headers": "..."}.
    What is damaged in transit is left out, with a warning, and what follows up to the next key frame. Time stamps that
    are missing or go back, as where a camera begins anew, are continued.
    Ends with the stream. Raises `VideoError`, in one line, for what cannot be opened or has no picture, and when a
    connection is lost, after the frames before that; `ValueError` for invalid arguments. Warns at the end of an address
    that had not told it beforehand (RTSP, a live playlist, an answer without a length), which may be a loss too.
    """
    name = os.fsdecode(address)
    check_number("fps is frames a second, above 0", fps, 0, sys.float_info.max, exclusive_low=True)
    check_number("patience is in seconds, above 0", patience, 0, LONGEST, exclusive_low=True)
    require("av", "video")
    require("numpy", "video")
    place = name if name.partition("://")[0].lower() in RTSP else locate(name)
    return _read(name, place, min(fps, 1e7), size, patience, dict(options or {}))


def _read(
    name: str, place: str, fps: float, size: Size, patience: float, options: dict[str, str]
) -> Iterator[tuple[Tensor, tuple[float, ...]]]:
    np = require("numpy", "video")
    reached = _Clock()
    with _told(name, patience, reached), _opened(place, patience, options) as container:
        # Asked at the beginning: what was sent in pieces has a size in the end.
        sure = container.duration is not None if container.format.name == "hls" else (container.size or 0) > 0
        stream = video_stream(container, name)
        stream.thread_type = "SLICE"  # threads that each decode a frame hold back as many
        scale, following = Scaling(stream, size, name), 0.0
        # That of a file does not run: it ends by itself when nothing comes.
        limit = inf if place.startswith("file:") else patience
        # Newer FFmpeg calls the end of an answer that was sent in pieces a fault, whether it was its end or a loss.
        unsure = () if sure or not place.startswith("http") else (errno.EIO,)
        for frame in _pictures(_packets(container, stream, limit, unsure), stream, name):
            second = reached.at(frame, float(stream.time_base), float(stream.average_rate or 25))
            if second < following:
                continue
            following = (int(second * fps + 1e-6) + 1) / fps - 1e-6
            picture, _ = scale(frame)
            yield torch.from_numpy(np.array(picture[None], order="C")), (second,)
        if reached.second is None:
            raise VideoError(f"{name}: has not a single frame in it")
        if not (sure or place.startswith("file:")):
            warnings.warn(
                redacted(f"{name}: ended after {reached.second:.1f} s")
                + ", or its server stopped, which looks the same from here",
                stacklevel=2,
            )


class _Clock:
    """Tells the seconds of frames from the first, which never go back. second: of the last one, None before any."""

    def __init__(self) -> None:
        self.second: float | None = None
        self._last = self._begin = 0.0

    def at(self, frame: Any, tick: float, rate: float) -> float:
        """Get the time of the next frame."""
        stays = frame.duration * tick if frame.duration else 1 / rate
        if self.second is None:
            self._begin = self._last = frame.pts * tick if frame.pts is not None else 0.0
            self.second = 0.0
            return 0.0
        stamp = frame.pts * tick if frame.pts is not None else self._last + stays
        if stamp < self._last:  # goes on from the last one
            self._begin = stamp - self.second - stays
        self._last, self.second = stamp, stamp - self._begin
        return self.second


class _Growing:
    """Reads a file that is being written. Ends when it has not grown for `patience` seconds."""

    def __init__(self, path: str, patience: float) -> None:
        self._patience, self._ended = patience, False
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115  closed by close()

    def read(self, size: int) -> bytes:
        begin = time.monotonic()
        while not (data := self._file.read(size)):
            self._ended = self._ended or time.monotonic() - begin >= self._patience
            if self._ended:  # which is asked for several times
                return b""
            time.sleep(min(PAUSE, self._patience))
        return data

    def close(self) -> None:
        self._file.close()


@contextmanager
def _opened(place: str, patience: float, options: dict[str, str]) -> Iterator[Any]:
    """Open the container. A file has no `seek`, so that nothing looks for its end."""
    if not place.startswith("file:"):
        if place.lower().startswith(RTSP):
            options = {"rtsp_transport": "tcp"} | options
            if options.get("rtsp_flags") == "listen":  # for which FFmpeg has no limit that it takes itself
                options = {"listen_timeout": str(ceil(patience))} | options
        with open_container(place, timeout=patience, options=options) as container:
            yield container
        return
    growing = _Growing(place.removeprefix("file:"), patience)
    try:
        with open_container(growing, options=options) as container:
            yield container
    finally:
        growing.close()


def _packets(container: Any, stream: Any, patience: float, ends: Collection[int]) -> Iterator[Any]:
    """Demux. None comes last where it does not end by itself: the decoder may hold frames that arrived before.

    ends: numbers of errors that may be the end.
    Raises PyAV's `ExitError` also where FFmpeg takes a wait that was given up for the end, as for HLS.
    """
    from av.error import ExitError, FFmpegError

    packets, waited = demuxed(container, stream), 0.0
    while True:
        begin = time.monotonic()
        try:
            packet = next(packets, None)
        except FFmpegError as error:
            yield None
            if error.errno in ends:
                return
            raise
        if packet is None:
            break
        waited = time.monotonic() - begin
        yield packet
    if waited >= patience:
        raise ExitError(0, "the wait was given up")


def _pictures(packets: Iterator[Any], stream: Any, name: str) -> Iterator[Any]:
    """Decode what is whole: not a packet that is damaged, nor what may be made from it, up to the next key frame."""
    from av.error import InvalidDataError

    whole = True
    for packet in packets:
        if packet is not None:
            if packet.is_corrupt:
                whole = _lost(name)
            if not (whole or (packet.is_keyframe and not packet.is_corrupt) or not packet.size):
                continue
            whole = True
        try:
            frames = stream.decode(packet)
        except InvalidDataError:
            whole = _lost(name)
            continue
        for frame in frames:
            if frame.is_corrupt:
                whole = _lost(name)
            else:
                yield frame


def _lost(name: str) -> bool:
    warnings.warn(redacted(f"{name}: frames that were damaged on the way are left out"), stacklevel=3)
    return False


@contextmanager
def _told(name: str, patience: float, reached: _Clock) -> Iterator[None]:
    """Raise what ends the stream too soon as a `VideoError` of one line."""
    from av.error import ExitError, FFmpegError

    try:
        yield
    except FFmpegError as error:
        without_secrets(error)
        why = f"nothing came for {patience:g} s" if isinstance(error, ExitError) else error.strerror
        if reached.second is None:
            raise VideoError(f"{name}: cannot be read as a live video ({why})") from error
        raise VideoError(f"{name}: was lost after {reached.second:.1f} s ({why}); open it again to go on") from error
