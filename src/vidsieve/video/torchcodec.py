"""Decode frames by torchcodec, on the CPU or on a GPU, in place of PyAV.

Which frame is which comes from the index that PyAV reads (`demux`), and each decoded frame is checked by its stamp. At
their own size on a CPU the pixels are those of PyAV, bit for bit; scaled ones are within rounding of its filter.
"""

from collections.abc import Sequence
from fractions import Fraction
from types import ModuleType

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from vidsieve.checks import require
from vidsieve.errors import MissingExtra, VideoError
from vidsieve.video.demux import Index

AT_ONCE = 8  # frames that are held at their own size
INSTEAD = 'decoder="pyav" reads it'


def load() -> ModuleType:
    """Import torchcodec. Raises `MissingExtra` where it is not installed, or does not load."""
    try:
        return require("torchcodec.decoders", "torchcodec")
    except (OSError, RuntimeError) as error:
        raise MissingExtra(
            f"torchcodec is installed and does not load beside torch {torch.__version__}: "
            f"{str(error).strip().splitlines()[0]}; it needs FFmpeg, and a release made for this torch; "
            'without it, decoder="pyav"'
        ) from error


def check_readable(found: Index, name: str) -> None:
    """Raise `VideoError` for a file of which torchcodec might give other frames than PyAV, or guesses."""
    if not found.keys or not found.intact:
        raise VideoError(
            f"{name}: its time stamps do not tell its frames apart, or it is damaged, which torchcodec does not say; "
            f"{INSTEAD}"
        )


def decode(
    place: str,
    name: str,
    stream: int,
    stamps: Sequence[Fraction],
    numbers: Sequence[int],
    size: tuple[int, int],
    device: str,
) -> Tensor:
    """Decode the frames `numbers` of a video stream, RGB uint8 (T, H, W, 3) on `device`, scaled to `size` (H, W).

    stamps: the time of every frame of the stream, in seconds, in order.
    Raises `VideoError` where a frame cannot be decoded, or is not the one of its stamp.
    """
    chosen = sorted(set(numbers))
    parts = []
    try:
        decoder = load().VideoDecoder(
            place, stream_index=stream, dimension_order="NHWC", num_ffmpeg_threads=0, device=device
        )
        for begin in range(0, len(chosen), AT_ONCE):
            some = chosen[begin : begin + AT_ONCE]
            batch = decoder.get_frames_at(some)
            for number, seconds in zip(some, batch.pts_seconds.tolist(), strict=True):
                if abs(seconds - stamps[number]) > 1e-6:
                    raise VideoError(
                        f"{name}: torchcodec gives a frame of {seconds:.6f} s where frame {number} is of "
                        f"{float(stamps[number]):.6f} s; {INSTEAD}"
                    )
            parts.append(_scaled(batch.data, size))
    except (RuntimeError, ValueError, IndexError) as error:
        if isinstance(error, VideoError):
            raise
        raise VideoError(
            f"{name}: torchcodec cannot decode it ({str(error).strip().splitlines()[0]}); {INSTEAD}"
        ) from error
    pixels = torch.cat(parts)
    if chosen == list(numbers):
        return pixels
    row = {number: i for i, number in enumerate(chosen)}
    return pixels[torch.tensor([row[number] for number in numbers], device=pixels.device)]


def _scaled(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Scale pixels (T, H, W, 3)."""
    if tuple(pixels.shape[1:3]) == size:
        return pixels
    planes = pixels.permute(0, 3, 1, 2)
    scaled = [interpolate(plane[None].float(), size, mode="bilinear", antialias=True) for plane in planes]
    return torch.cat(scaled).round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
