"""What chunks save when a video is encoded: benchmarks/results/overlap_cpu.json.

    python -m benchmarks.overlap CLIP:FRAMES ... --out benchmarks/results/overlap_cpu.json
    python -m benchmarks.overlap 60:64 600:128         of clips of so many seconds, made here as from_file.py's

Each clip three ways, each in a process of its own: all frames at once; in chunks, one stage after another, which times
each stage alone; in chunks whose stages overlap, as `encode` does, the first of them shorter. The processor is
Qwen2.5-VL's, the model a tiny one, whose tower sleeps besides: it stands for one on a GPU, that leaves the CPU alone.
Peak memory is of the process, above what it had with the model loaded.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import torch
import transformers
from benchmarks.from_file import write_clip

from vidsieve.encoded.chunks import _Chunks, _features, encode_chunks
from vidsieve.encoded.encode import lengths
from vidsieve.engines.hf.families import adapter_for
from vidsieve.engines.torchvision import make_importable
from vidsieve.evaluation.card import commit, processor
from vidsieve.video import plan_video, read_chunks, read_video

VARIANTS = ("whole", "in turn", "overlapped")
MIB = 2**20


def resident() -> float:
    """Get the peak resident memory of this process, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / MIB


def tiny(sleep: float) -> tuple[Any, Any]:
    """Make a processor with Qwen2.5-VL's sizes, and a model whose tower sleeps `sleep` seconds a frame."""
    make_importable()
    from tests.engines.hf import processors
    from tests.engines.hf.tiny import fresh

    made, model = processors.processor("qwen2_5_vl"), fresh("qwen2_5_vl")
    made.video_processor = transformers.Qwen2VLVideoProcessor(cap_pixels_per_frame=False)

    def wait(tower: Any, args: Any, kwargs: Any) -> None:
        grid = kwargs["grid_thw"] if "grid_thw" in kwargs else args[1]
        time.sleep(2 * sleep * int(grid[0, 0]))

    model.base_model.visual.register_forward_pre_hook(wait, with_kwargs=True)
    return made, model


@contextmanager
def clocked(seconds: dict[str, float], name: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - begin


def measure(clip: str, frames: int, size: int, variant: str, sleep: float) -> dict[str, Any]:
    """Encode a clip once, in this process."""
    made, model = tiny(sleep)
    stages: dict[str, float] = {}
    first = None
    before, begin = resident(), time.perf_counter()
    if variant == "whole":
        chunks = encode_chunks(model, made, read_video(clip, num_frames=frames), frames)
    elif variant == "overlapped":
        chunks = encode_chunks(model, made, plan_video(clip, num_frames=frames), size, first=lengths(size, made)[0])
    else:
        chunks = in_turn(model, made, clip, frames, size, stages)
    for _ in chunks:
        first = first or time.perf_counter() - begin
    wall = time.perf_counter() - begin
    return {
        "wall_s": round(wall, 3),
        "first_chunk_s": round(first or wall, 3),
        "peak_mib": round(resident() - before),
        "stages_s": {name: round(value, 3) for name, value in stages.items()},
    }


def in_turn(model: Any, made: Any, clip: str, frames: int, size: int, stages: dict[str, float]) -> Iterator[Any]:
    """Encode in chunks without threads, and time each stage."""
    with clocked(stages, "decode"):
        planned = plan_video(clip, num_frames=frames)
        chunks = read_chunks(planned, size)
    process = _Chunks(adapter_for(model), model, made, planned, 2)
    positions: dict[int, torch.Tensor] = {}
    while True:
        with clocked(stages, "decode"):
            chunk = next(chunks, None)
        if chunk is None:
            return
        with clocked(stages, "processor"):
            inputs, layout = process(chunk)
        del chunk
        with clocked(stages, "tower"):
            features = _features(model, process.adapter, inputs, layout, process.total, positions)
        del inputs
        yield features


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("clips", nargs="+", help="a clip, or seconds, and how many frames of it: clip.mp4:64")
    parser.add_argument("--size", type=int, default=16, help="frames of a chunk (16)")
    parser.add_argument("--sleep", type=float, default=0.02, help="seconds that the tower sleeps a frame (0.02)")
    parser.add_argument("--rounds", type=int, default=3, help="(3)")
    parser.add_argument("--one", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "overlap_cpu.json")
    options = parser.parse_args()
    jobs = [(clip.rpartition(":")[0], int(clip.rpartition(":")[2])) for clip in options.clips]
    torch.set_num_threads(1)
    if options.one:
        print(json.dumps(measure(*jobs[0], options.size, options.one, options.sleep)))
        return
    rows = []
    for named, frames in jobs:
        with tempfile.TemporaryDirectory() as folder:
            clip = Path(named)
            if named.isdecimal():
                write_clip(clip := Path(folder) / f"{named}s.mp4", int(named))
            runs: dict[str, list[dict[str, Any]]] = {variant: [] for variant in VARIANTS}
            for _ in range(options.rounds):
                for variant, done in runs.items():
                    done.append(run(clip, frames, variant, options))
            rows += summarised(clip.name, frames, runs)
    clips = " ".join(f"{Path(clip).name}:{frames}" for clip, frames in jobs)
    card = {
        "command": f"python -m benchmarks.overlap {clips} --size {options.size} --sleep {options.sleep} "
        f"--rounds {options.rounds}",
        "device": processor(),
        "threads": 1,
        "av": av.__version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "commit": commit(),
    }
    options.out.write_text(json.dumps({"card": card, "rows": rows}, indent=1) + "\n")
    for row in rows:
        print(
            f"{row['clip']:28} {row['variant']:10} {row['wall_s']:7.1f} s, first {row['first_chunk_s']:6.1f} s, ",
            end="",
        )
        print(f"+{row['peak_mib']} MiB, {row['over_slowest']:.2f} times the slowest stage")


def run(clip: Path, frames: int, variant: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure in a process of its own."""
    command = (sys.executable, "-m", "benchmarks.overlap", f"{clip}:{frames}", "--one", variant)
    settings = ("--size", str(options.size), "--sleep", str(options.sleep))
    output = subprocess.run((*command, *settings), check=True, capture_output=True, text=True).stdout
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


def summarised(clip: str, frames: int, runs: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Take medians over the rounds; peaks are the highest. The slowest stage is that of the run in turn."""
    alone = {
        name: statistics.median(run["stages_s"][name] for run in runs["in turn"])
        for name in ("decode", "processor", "tower")
    }
    rows = []
    for variant, done in runs.items():
        wall = statistics.median(run["wall_s"] for run in done)
        rows.append(
            {
                "clip": clip,
                "frames": frames,
                "variant": variant,
                "wall_s": wall,
                "first_chunk_s": statistics.median(run["first_chunk_s"] for run in done),
                "peak_mib": max(run["peak_mib"] for run in done),
                "over_slowest": round(wall / max(alone.values()), 3),
                "stages_s": alone if variant == "in turn" else None,
                "walls_s": [run["wall_s"] for run in done],
            }
        )
    return rows


if __name__ == "__main__":
    main()
