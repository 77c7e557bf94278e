"""Video files: read into frames (`decode`, `demux`), and drawn with what was kept of them (`overlay`)."""

from vidsieve.video.decode import read_video
from vidsieve.video.overlay import Overlay

__all__ = ["Overlay", "read_video"]
