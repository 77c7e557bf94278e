"""Video files: read into frames (`decode`, `demux`), some at a time (`chunks`), as they come (`live`);
what was kept is drawn (`overlay`)."""

from vidsieve.video.chunks import plan_video, read_chunks
from vidsieve.video.decode import read_video
from vidsieve.video.live import live
from vidsieve.video.overlay import Overlay

__all__ = ["Overlay", "live", "plan_video", "read_chunks", "read_video"]
