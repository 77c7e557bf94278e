"""What decoding costs before a model sees a frame: benchmarks/results/decoding_cpu.json.

    python -m benchmarks.decoding CLIP ... --out benchmarks/results/decoding_cpu.json
    python -m benchmarks.decoding --make 600 --threads 1 2 4 8 --out FILE        of a clip made here, as from_file.py's

64 frames of each clip, at even distances and of the key frames alone, in turns: seconds, frames decoded, and how many
frames came out; beside them the seconds that the index takes, which is read first. A clip is described by its own
header.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import av
import torch
from benchmarks.from_file import write_clip

from vidsieve.evaluation.card import commit, processor
from vidsieve.video import read_video
from vidsieve.video.decode import index_of

FRAMES = 64


def measure(clip: Path, rounds: int, threads: int) -> list[dict[str, Any]]:
    """Two rows: even sampling, and that of key frames."""
    torch.set_num_threads(threads)
    with av.open(str(clip)) as container:
        stream = container.streams.video[0]
        about = f"{stream.codec_context.name} {stream.width} x {stream.height}"
    seconds: dict[str, list[float]] = {"even": [], "keyframes": []}
    frames: dict[str, Any] = {}
    index = []
    for _ in range(rounds):
        begin = time.perf_counter()
        index_of(str(clip))
        index.append(time.perf_counter() - begin)
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
            "threads": threads,
            "sampling": sampling,
            "frames": len(found),
            "decoded": found.decoded,
            "median_s": round(statistics.median(seconds[sampling]), 3),
            "index_s": round(statistics.median(index), 3),
            "seconds": [round(value, 3) for value in seconds[sampling]],
        }
        for sampling, found in frames.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("clips", nargs="*", type=Path)
    parser.add_argument("--make", type=int, default=0, help="seconds of a clip to make, in place of clips")
    parser.add_argument("--threads", type=int, nargs="+", default=[torch.get_num_threads()], help="(those of torch)")
    parser.add_argument("--rounds", type=int, default=3, help="(3)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "decoding_cpu.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clips = options.clips
        if options.make:
            clips = [Path(folder) / f"{options.make}.mp4"]
            write_clip(clips[0], options.make)
        rows = [row for clip in clips for n in options.threads for row in measure(clip, options.rounds, n)]
    given = f"--make {options.make}" if options.make else " ".join(clip.name for clip in clips)
    card = {
        "command": f"python -m benchmarks.decoding {given} --rounds {options.rounds}",
        "device": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "av": av.__version__,
        "commit": commit(),
    }
    options.out.write_text(json.dumps({"card": card, "rows": rows}, indent=1) + "\n")
    for row in rows:
        told = f"{row['clip']:28} {row['threads']:3} {row['sampling']:10} {row['median_s']:8.2f} s"
        print(f"{told}, index {row['index_s']:.2f} s, {row['decoded']} frames decoded")


if __name__ == "__main__":
    main()
