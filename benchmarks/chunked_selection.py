"""What selecting chunk after chunk loses of the evidence on the synthetic suites.

    python -m benchmarks.chunked_selection --out benchmarks/results/chunked_selection_cpu.json

Each video is given in chunks of four frames of tokens and compared, video by video, with one shot of the same parts and
segments: with the running centre, and with the true one, where the tokens are the same; and as a stream, whose length
is not known. Recall is the share of the evidence that is kept, the mean over the questions of a video.
"""

import argparse
import json
import sys
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vidsieve import VideoTokens
from vidsieve.engines.hf.loading import load
from vidsieve.evaluation.card import commit, processor
from vidsieve.evaluation.needles import SIZES, generate, recall
from vidsieve.evaluation.needles.runner import Suite
from vidsieve.evaluation.needles.tiny import BUNDLED
from vidsieve.evaluation.statistics import Bootstrap
from vidsieve.methods import ChunkedPrune, Prune, SceneRuns, StreamMemory, in_chunks
from vidsieve.methods.presets import vidsieve
from vidsieve.types.selection import Selection, kept_count

KEEPS = (0.1, 0.05)
CHUNK = 4  # frames of tokens
BATCH = 32  # videos that are encoded together
LONG = 4.0  # times its share by length that a segment holds where exactness is checked


def in_pieces(method: Prune, x: Tensor, frames: int, hold: float, centre: Tensor | None) -> Selection:
    """Select of the video x (N, D), a chunk at a time."""
    size = len(x) // frames
    chunked = ChunkedPrune(method, len(x), hold, centre)
    for chunk in x.split(CHUNK * size):
        chunked.add(chunk, (size,) * (len(chunk) // size))
    return chunked.finish()


def streamed(method: Prune, x: Tensor, frames: int) -> Selection:
    """Select of the same chunks as many tokens, without a word about how many will come."""
    size = len(x) // frames
    memory = StreamMemory(kept_count(method.keep, len(x)), method)
    for chunk in x.split(CHUNK * size):
        memory.add(chunk, (size,) * (len(chunk) // size))
    return memory.selection()


class Selected(NamedTuple):
    """What is kept of one video: at once, in chunks, of a stream, and in chunks with the true centre."""

    default: Tensor
    whole: Tensor
    running: Selection
    stream: Selection
    true: Selection


@torch.no_grad()
def select(x: Tensor, frames: int, keep: float, method: Prune) -> Selected:
    """Select of the video x (N, D)."""
    torch.set_num_threads(1)
    video = VideoTokens(x, (len(x) // frames,) * frames)
    return Selected(
        vidsieve(keep).reduce(video).kept,
        method.reduce(video).kept,
        in_pieces(method, x, frames, 2.0, None),
        streamed(method, x, frames),
        in_pieces(method, x, frames, LONG, x.mean(0)),
    )


def measured(
    pool: Executor, features: Tensor, evidence: Tensor, frames: int, keep: float, most: int | None
) -> dict[str, Any]:
    """One row: `most` frames in a segment at most, None for the default's number of tokens."""
    videos, tokens, _ = features.shape
    size = tokens // frames
    method = in_chunks(vidsieve(keep))
    if most is not None:
        method = replace(method, segmenter=SceneRuns(max_tokens=most * size))
    found = [*pool.map(partial(select, frames=frames, keep=keep, method=method), features.unbind(), chunksize=4)]
    default, whole, running, stream, true = (list(column) for column in zip(*found, strict=True))

    def recalled(kept: list[Tensor]) -> Tensor:
        mask = torch.zeros(videos, tokens, dtype=torch.bool)
        for row, index in zip(mask, kept, strict=True):
            row[index] = True
        return recall(evidence, mask).double().nanmean(1, keepdim=True)  # (V, 1)

    chunked = recalled([selection.kept for selection in running])
    return {
        "keep": keep,
        "method": repr(method),
        "one_shot_default": interval(recalled(default)),
        "one_shot": interval(recalled(whole)),
        "chunked": interval(chunked),
        "chunked_less_one_shot": interval(chunked - recalled(whole)),
        "chunked_less_default": interval(chunked - recalled(default)),
        "stream": interval(recalled([selection.kept for selection in stream])),
        "tokens_in_common": mean(running, lambda selection, i: shared(selection.kept, whole[i])),
        "capped_tokens": mean(running, lambda selection, i: selection.capped),
        "true_centre": {
            "hold": LONG,
            "capped_tokens": mean(true, lambda selection, i: selection.capped),
            "videos_equal_to_one_shot": sum(map(torch.equal, (selection.kept for selection in true), whole)),
        },
    }


def shared(kept: Tensor, other: Tensor) -> float:
    """The part of `kept` that is in `other`."""
    return float(torch.isin(kept, other).double().mean())


def mean(selections: list[Selection], of: Callable[[Selection, int], float]) -> float:
    """Over videos."""
    return round(sum(of(selection, i) for i, selection in enumerate(selections)) / len(selections), 4)


def interval(values: Tensor) -> dict[str, float]:
    """The mean of values (V, 1), and 95 % of what it would be of other videos."""
    bootstrap = Bootstrap(len(values))
    middle, drawn = bootstrap.means(values)
    found = bootstrap.interval(middle[0], drawn[:, 0])
    return {"mean": round(found.mean, 4), "low": round(found.low, 4), "high": round(found.high, 4)}


def encode(suite: Suite, videos: int) -> tuple[Tensor, Tensor]:
    """The features (V, N, D) of videos, and the evidence of the questions about them."""
    shown = [
        suite.show(generate("dev", numbers, suite.size, suite.device)) for numbers in torch.arange(videos).split(BATCH)
    ]
    return (
        torch.cat([encoded.features for encoded in shown]),
        torch.cat([encoded.questions.evidence for encoded in shown]),
    )


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--videos", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2, help="processes (2)")
    options = parser.parse_args()
    card = {
        "command": "python -m benchmarks.chunked_selection " + " ".join(sys.argv[1:]),
        "commit": commit(),
        "split": "dev",
        "videos": options.videos,
        "chunk": f"{CHUNK} frames of tokens",
        "model": "the vision tower of vidsieve-tiny, as bundled",
        "device": processor(),
        "torch": torch.__version__,
    }
    image_processor, model = load(str(BUNDLED), "cpu", "float32")
    suites: dict[str, Any] = {}
    with ProcessPoolExecutor(options.workers, get_context("spawn")) as pool:
        for name, size in SIZES.items():
            suite = Suite(image_processor, model, size)
            features, evidence = encode(suite, options.videos)
            asked = (features, evidence, suite.size.steps)
            suites[name] = [measured(pool, *asked, keep, most) for keep in KEEPS for most in (None, 8)]
    options.out.write_text(json.dumps({"card": card, "suites": suites}, indent=1) + "\n")


if __name__ == "__main__":
    main()
