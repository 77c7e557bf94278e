"""Video files: read into frames (`decode`, `demux`), beside other work (`begin`), some at a time (`chunks`), as they
come (`live`); what was kept is drawn (`overlay`)."""

from vidsieve.video.begin import begin_video
from vidsieve.video.chunks import plan_video, read_chunks
from vidsieve.video.decode import read_video
from vidsieve.video.live import live
from vidsieve.video.overlay import Overlay

__all__ = ["Overlay", "begin_video", "live", "plan_video", "read_chunks", "read_video"]
