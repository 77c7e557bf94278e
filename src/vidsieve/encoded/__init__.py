"""Encode videos once and use them later: asked again and again (`video`), or jobs of many (`batch`, `stored`)."""

from vidsieve.encoded import batch, stored
from vidsieve.encoded.at_once import encode_frames
from vidsieve.encoded.video import EncodedVideo, EncodedVideos

__all__ = ["EncodedVideo", "EncodedVideos", "batch", "encode_frames", "stored"]
