"""An hour of a stream in bounded memory: benchmarks/results/stream_cpu.json.

    python -m benchmarks.stream --out benchmarks/results/stream_cpu.json

The bundled model remembers 7 200 frames, 2 a second, made as they are added: scenes of 5 to 60 seconds, with noise and
a square that moves. A row for every five minutes: wall seconds that a second of the stream costs to add (which a chunk
of 16 frames pays at once, so the mean over chunks counts), resident memory at the end, what is held, and a question.
"""

import argparse
import json
import random
import resource
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidsieve import Stream
from vidsieve.engines.hf.loading import load
from vidsieve.evaluation.card import commit, processor, quantiles
from vidsieve.evaluation.needles.tiny import BUNDLED

FPS, ROW, CALL = 2, 300, 8  # frames a second; seconds of the stream in a row; seconds in a call, which fill a chunk
MIB = 2**20


def frames(side: int, seed: int = 0) -> Iterator[Tensor]:
    """Frames without an end, uint8 (side, side, 3)."""
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    while True:
        scene = torch.randint(0, 200, (side, side, 3), generator=generator)
        for number in range(draw.randint(5 * FPS, 60 * FPS)):
            picture = scene + torch.randint(0, 30, scene.shape, generator=generator)
            at = number * 4 % (side - 16)
            picture[at : at + 16, at : at + 16] = 250
            yield picture.to(torch.uint8)


def resident() -> float:
    """Get the resident memory of this process now, in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / MIB


def row(memory: Stream, source: Iterator[Tensor], begin: int, asked: bool) -> dict[str, Any]:
    """Add `ROW` seconds from `begin` on, and ask."""
    walls = []
    for second in range(begin, begin + ROW, CALL):
        count = FPS * min(CALL, begin + ROW - second)
        pixels = torch.stack([next(source) for _ in range(count)])
        clock = time.perf_counter()
        memory.add(pixels, [second + i / FPS for i in range(count)])
        walls.append((time.perf_counter() - clock) * FPS / count)
    found: dict[str, Any] = {
        "minutes": (begin + ROW) / 60,
        "frames": len(memory),
        "seconds_to_add_one": round(sum(walls) / len(walls), 5),
        "quantiles": quantiles(walls),
        "rss_mib": round(resident(), 1),
        "tokens": len(memory.snapshot().selection),
    }
    if asked:
        video = memory.snapshot()
        clock = time.perf_counter()
        memory.ask("What moves?", max_new_tokens=4)
        found |= {"frames_shown": len(video.frames), "seconds_to_ask": round(time.perf_counter() - clock, 3)}
        found["rss_mib_after_the_question"] = round(resident(), 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=int, default=60)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--side", type=int, default=128, help="of a frame, in pixels")
    options = parser.parse_args()
    made, model = load(str(BUNDLED), "cpu", "float32")
    memory, source = Stream(model, made, options.tokens), frames(options.side)
    card = {
        "command": "python -m benchmarks.stream " + " ".join(sys.argv[1:]),
        "commit": commit(),
        "device": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "model": "vidsieve-tiny, as bundled",
        "stream": repr(memory),
        "frames": f"{options.side} x {options.side}, {FPS} a second",
        "rss_mib_before": round(resident(), 1),
    }
    rows = []
    for begin in range(0, options.minutes * 60, ROW):
        rows.append(row(memory, source, begin, (begin + ROW) % (4 * ROW) == 0))
        print(json.dumps(rows[-1]), flush=True)
    card["tokens_a_token_frame"] = memory.snapshot().tokens[0]
    options.out.write_text(json.dumps({"card": card, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
