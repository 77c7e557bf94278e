"""Make pictures of frames: upright, of square pixels, as large as they are read."""

import struct
import threading
from typing import Any

from vidsieve.checks import require
from vidsieve.errors import VideoError
from vidsieve.video.wanted import Size

STRETCH = 16  # the widest or highest that a pixel can be for its other side
# By 90 degrees each: as `orientation` has them.
TURNS = ((False, False, False), (True, False, True), (False, True, True), (True, True, False))


def _shown(frame: Any, aspect: float, name: str) -> tuple[int, int]:
    """Compute height and width of a frame once upright and in square pixels; its are `aspect` times as wide as high."""
    if not 1 / STRETCH <= aspect <= STRETCH:
        raise VideoError(f"{name}: says its pixels are {aspect:.3g} times as wide as high, which is a damaged header")
    height, width = frame.height, max(1, round(frame.width * aspect))
    return (width, height) if orientation(frame, name)[0] else (height, width)


def scaled(stream: Any, frame: Any, size: Size, name: str) -> tuple[int, int]:
    """Compute the height and width at which a file is read, by its first frame."""
    height, width = _shown(frame, float(stream.sample_aspect_ratio or 1), name)
    if isinstance(size, tuple):
        return size
    scale = 1.0 if size is None else min(1.0, size / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def orientation(frame: Any, name: str) -> tuple[bool, bool, bool]:
    """Find whether to transpose a stored picture, then to mirror it left to right, then upside down.

    By the display matrix [a b; c d] of its row vectors, as players read it: what they are scaled by is ignored.
    """
    if abs((frame.rotation + 45) % 90 - 45) > 1:
        raise VideoError(
            f"{name}: is turned by {frame.rotation} degrees, expected a multiple of 90; re-encode it upright"
        )
    try:
        # Not frame.side_data: it and the frame hold each other, and the picture until garbage is collected.
        matrix = require("av.sidedata.sidedata", "video").SideDataContainer(frame).get("DISPLAYMATRIX")
    except ValueError:  # PyAV 18 cannot list what is newer than it knows (EXIF); it still knows the rotation
        return TURNS[round(frame.rotation / 90) % 4]
    if matrix is None:
        return False, False, False
    a, b, _, c, d = struct.unpack("=5i", bytes(matrix)[:20])
    transposed = abs(b) > abs(a)
    return transposed, (c if transposed else a) < 0, (b if transposed else d) < 0


class Scaling:
    """Makes pictures uint8 (H, W, 3) of frames, upright, as large as the first; and says whether they are damaged."""

    def __init__(self, stream: Any, size: Size, name: str) -> None:
        self._stream, self._size, self._name = stream, size, name
        self._shape: tuple[int, int] | None = None
        self._threads = threading.local()

    def __call__(self, frame: Any) -> tuple[Any, bool]:
        self._shape = self._shape or scaled(self._stream, frame, self._size, self._name)
        height, width = self._shape
        transposed, mirrored, upturned = orientation(frame, self._name)
        stored = (height, width) if transposed else (width, height)
        rgb = self._reformatter.reformat(frame, *stored, format="rgb24", interpolation="AREA", threads=1).to_ndarray()
        picture = rgb.swapaxes(0, 1) if transposed else rgb
        return picture[:: -1 if upturned else 1, :: -1 if mirrored else 1], frame.is_corrupt

    @property
    def _reformatter(self) -> Any:
        """That of this thread. A frame's own is made anew for each, with a thread for every core."""
        found = self._threads.__dict__.get("reformatter")
        if found is None:
            found = self._threads.reformatter = require("av.video.reformatter", "video").VideoReformatter()
        return found
