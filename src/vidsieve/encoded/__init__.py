"""Encode videos once and use them later.

`encode` makes an `EncodedVideo` of a clip of any length, which answers questions; `encode_frames` of frames that are in
memory, by any method; `Stream` remembers one without an end; `batch` encodes many clips by workers of Ray; `stored`
reads what it wrote before it wrote encoded videos.
"""

from vidsieve.encoded import batch, stored
from vidsieve.encoded.at_once import encode_frames
from vidsieve.encoded.encode import Progress, encode
from vidsieve.encoded.stream import Stream
from vidsieve.encoded.video import EncodedVideo, EncodedVideos

__all__ = ["EncodedVideo", "EncodedVideos", "Progress", "Stream", "batch", "encode", "encode_frames", "stored"]
