"""What decoding costs before a model sees a frame: benchmarks/results/decoding_cpu.json.

    python -m benchmarks.decoding CLIP ... --out benchmarks/results/decoding_cpu.json

64 frames of each clip, at even distances and of the key frames alone, in turns: seconds, frames decoded, and how many
frames came out. A clip is described by its own header.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import av
import torch

from vidsieve.evaluation.card import commit, processor
from vidsieve.video import read_video

FRAMES = 64


def measure(clip: Path, rounds: int) -> list[dict[str, Any]]:
    """Two rows: even sampling, and that of key frames."""
    with av.open(str(clip)) as container:
        stream = container.streams.video[0]
        about = f"{stream.codec_context.name} {stream.width} x {stream.height}"
    seconds: dict[str, list[float]] = {"even": [], "keyframes": []}
    frames: dict[str, Any] = {}
    for _ in range(rounds):
        for sampling, spent in seconds.items():
            begin = time.perf_counter()
            frames[sampling] = read_video(clip, num_frames=FRAMES, sampling=sampling)  # type: ignore[arg-type]
            spent.append(time.perf_counter() - begin)
    return [
        {
            "clip": clip.name,
            "video": about,
            "duration_s": round(found.duration, 1),
            "frames_in_clip": found.total,
            "key_frames": found.key_frames,
            "sampling": sampling,
            "frames": len(found),
            "decoded": found.decoded,
            "median_s": round(statistics.median(seconds[sampling]), 3),
            "seconds": [round(value, 3) for value in seconds[sampling]],
        }
        for sampling, found in frames.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("clips", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=3, help="(3)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "decoding_cpu.json")
    options = parser.parse_args()
    rows = [row for clip in options.clips for row in measure(clip, options.rounds)]
    clips = " ".join(clip.name for clip in options.clips)
    card = {
        "command": f"python -m benchmarks.decoding {clips} --rounds {options.rounds}",
        "device": processor(),
        "threads": torch.get_num_threads(),
        "av": av.__version__,
        "commit": commit(),
    }
    options.out.write_text(json.dumps({"card": card, "rows": rows}, indent=1) + "\n")
    for row in rows:
        print(f"{row['clip']:28} {row['sampling']:10} {row['median_s']:8.2f} s, {row['decoded']} frames decoded")


if __name__ == "__main__":
    main()
