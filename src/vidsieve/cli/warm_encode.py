"""Compile what `vidsieve encode` needs beyond `vidsieve run`: the selection over chunks.

It is asked about the segments that end in a chunk: one or many, short or long, whatever the video shows. So besides
drawn frames it is given features of which each layout of segments is made, up to what a chunk can hold.
"""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from typing import Any

import torch
from torch import Tensor

from vidsieve.encoded.chunks import FeatureChunk, encode_chunks
from vidsieve.encoded.encode import LONGEST_CHUNK, chunk_of, lengths, select
from vidsieve.engines.hf.loading import frames_joined
from vidsieve.errors import VidsieveError
from vidsieve.methods.chunked import ChunkedPrune
from vidsieve.methods.pixels import PixelSelector
from vidsieve.methods.prune import Prune
from vidsieve.types.frames import Frames

LONG = 10 * LONGEST_CHUNK  # frames of a video whose chunks are as large as they get
MOST_TOKENS = 8 * 196  # of a segment of several frames, as the default has it


def call_each(
    model: Any,
    processor: Any,
    method: Prune,
    sizes: Sequence[tuple[int, int]],
    draw: Callable[[int, int, int], Frames],
    compiled: Callable[[], int],
    note: Callable[[str], None] = lambda what: None,
    selector: PixelSelector | None = None,
) -> list[dict[str, Any]]:
    """Encode a drawn video of each of `sizes` twice, in chunks as of a long one, and select of other segments.

    method: from `in_chunks`.  draw: makes so many frames of a height and width.  compiled: counts compiled kernels.
    selector: of groups of pixels before the tower; None for all.
    Raises `VidsieveError` for frames that do not fit into memory, `UnsupportedModel` and `UnsupportedCall` for a model
    that cannot be encoded in chunks.
    """
    rows = []
    for size in sizes:
        pixels = torch.empty(LONG, *size, 3, dtype=torch.uint8, device="meta")
        times = tuple(map(float, range(LONG)))
        chunk = chunk_of(Frames(pixels, tuple(range(LONG)), times, 1.0, LONG, float(LONG), "drawn"), model.device)
        begin, chunk = lengths(chunk, processor)
        note(f"compiling for encode: chunks of {chunk} frames of {size[0]} x {size[1]}")
        frames, before = draw(begin + chunk + frames_joined(processor), *size), compiled()  # the last one is shorter
        try:
            first, shown = _encoded(model, processor, frames, begin, chunk, method, selector)
            for features, tokens in layouts(shown.features, shown.tokens[0], len(shown.tokens)):
                with torch.no_grad():
                    ChunkedPrune(method, 1000 * len(features), held_on="cpu").add(features, tokens)
            second, _ = _encoded(model, processor, frames, begin, chunk, method, selector)
        except torch.OutOfMemoryError as error:
            raise VidsieveError(
                f"chunks of {chunk} frames of {size[0]} x {size[1]} do not fit into the memory of {model.device}; "
                "ask for a smaller --size"
            ) from error
        new = compiled() - before
        rows.append({"chunk": chunk, "size": [*size], "compiled": new, "first_s": first, "second_s": second})
    return rows


def _encoded(
    model: Any,
    processor: Any,
    frames: Frames,
    first: int,
    chunk: int,
    method: Prune,
    selector: PixelSelector | None,
) -> tuple[float, FeatureChunk]:
    """Encode, and return the seconds that it took and a whole chunk."""
    begin, shown = time.perf_counter(), []

    def watched() -> Generator[FeatureChunk]:
        with closing(encode_chunks(model, processor, frames, chunk, first=first, pixels=selector)) as chunks:
            for one in chunks:
                shown.append(one)
                yield one

    with closing(watched()) as chunks:
        select(model, processor, frames, chunks, method)
    return time.perf_counter() - begin, shown[1]


@torch.no_grad()
def layouts(features: Tensor, tokens: int, frames: int) -> Iterator[tuple[Tensor, tuple[int, ...]]]:
    """Make features (n, D) like `features`, and tokens of each of their frames: so many segments end in them.

    tokens: of a frame.  frames: token frames of a chunk.
    Other kernels are for other powers of two that cover the number of segments and the tokens of the longest, and for
    few segments or tokens, whatever few are on a device. So there is the least and the most of each.
    """
    generator = torch.Generator(features.device).manual_seed(0)
    for runs in [(), *segments(frames, max(1, MOST_TOKENS // tokens))]:
        of_scenes = torch.randn(
            len(runs) + 1, tokens, features.shape[1], device=features.device, generator=generator
        ).to(features.dtype)
        repeats = torch.tensor([*runs, 1], device=features.device)  # the last frame ends the segment before it
        yield of_scenes.repeat_interleave(repeats, 0).flatten(0, 1), (tokens,) * (sum(runs) + 1)


def segments(frames: int, most: int) -> list[tuple[int, ...]]:
    """List frames of segments that may end at once: with a chunk of `frames`, where each has at most `most`."""
    found: set[tuple[int, ...]] = set()
    for longest in {most, *(2**i for i in range(most.bit_length()))}:
        for number in {frames, *(n for i in range(frames.bit_length()) for n in (2**i, 2**i + 1) if n <= frames)}:
            more, left = [], frames - 1  # of the chunk, whose last frame ends the others
            for others in range(number - 1, 0, -1):
                more.append(min(longest, left - others + 1))
                left -= more[-1]
            found |= {(longest, *more), (longest, *(1,) * (number - 1))}
    return sorted(found)
