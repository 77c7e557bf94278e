"""How many groups of pixels of real clips repeat: `python benchmarks/repeats.py CLIPS --out FILE`.

The pixels are those that a Qwen2.5-VL gets, at `--fps` frames a second. A share is of the groups after the first frame.
`panned` is of the same clips seen through a window that moves sideways by PAN pixels a frame. `left` is how far the
groups that are not computed are from those they repeat, in normalised pixel values: by run lengths, by as many groups
that differ most from the frame before, and at random.
"""

import argparse
import json
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from vidsieve import ops
from vidsieve.evaluation.card import commit
from vidsieve.methods import RandomGroups, RunLength
from vidsieve.methods.pixels import kept_groups
from vidsieve.types.pixels import PixelSelection
from vidsieve.video import read_video

THRESHOLDS = (0.0, 0.05, 0.1, 0.2)
KEEPS = (0.5, 0.25)
PAN = 20


def options_of(about: str | None) -> argparse.Namespace:
    """The options of a script about the clips of a folder."""
    parser = argparse.ArgumentParser(description=(about or "").splitlines()[0])
    parser.add_argument("clips", type=Path, help="a folder of .mp4 files")
    parser.add_argument("--fps", type=float, default=2.0)
    parser.add_argument("--side", type=int, default=448, help="the longest of a frame, in pixels")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    options = options_of(__doc__)
    rows = [measured(path, options) for path in sorted(options.clips.glob("*.mp4"))]
    card = {
        "command": "python benchmarks/repeats.py CLIPS " + shlex.join(sys.argv[2:]),
        "fps": options.fps,
        "side": options.side,
        "transformers": transformers.__version__,
        "vidsieve": version("vidsieve"),
        "commit": commit(),
    }
    options.out.write_text(json.dumps({"card": card, "rows": rows}, indent=1) + "\n")


def measured(path: Path, options: Any) -> dict[str, Any]:
    groups = pixels_of(path, options.fps, options.side)
    frames, places, _ = groups.shape
    return {
        "clip": path.name,
        "frames": frames,
        "groups": places,
        "repeats": repeats(groups),
        "panned": repeats(pixels_of(path, options.fps, options.side, PAN)),
        "left": {
            str(keep): {
                "run length": distances(groups, RunLength(keep).select(groups)),
                "frame before": distances(groups, from_frame_before(groups, keep)),
                "random": distances(groups, RandomGroups(keep).select(groups)),
            }
            for keep in KEEPS
        },
    }


def repeats(groups: Tensor) -> dict[str, float]:
    """The share of the groups after the first frame that repeat, by threshold."""
    frames, places, _ = groups.shape
    counts = {threshold: len(RunLength(threshold=threshold).select(groups)) for threshold in THRESHOLDS}
    return {
        str(threshold): round(1 - (count - places) / ((frames - 1) * places), 4) for threshold, count in counts.items()
    }


def pixels_of(path: Path, fps: float, side: int, pan: int = 0) -> Tensor:
    """The groups (T, P, C) that the processor of Qwen2.5-VL makes of a clip; see the top for `pan`."""
    pixels = frames_of(path, fps, side, pan)
    limits = {"shortest_edge": 28 * 28, "longest_edge": len(pixels) * side * side}
    processor = transformers.Qwen2VLVideoProcessor(size=limits, cap_pixels_per_frame=False)
    made = processor(videos=[pixels.permute(0, 3, 1, 2)], do_sample_frames=False, return_tensors="pt")
    return groups_of(made, processor.merge_size)


def frames_of(path: Path, fps: float, side: int, pan: int) -> Tensor:
    """The frames of a clip, uint8 (T, H, W, 3); with `pan`, through a window that moves by so many pixels a frame."""
    pixels = read_video(path, fps=fps, size=side * 4 // 3 if pan else side).pixels
    if not pan:
        return pixels
    room = pixels.shape[2] // 4  # to go to and fro in
    left = [room - abs(room - t * pan % (2 * room)) for t in range(len(pixels))]
    return torch.stack([frame[:, x : x + 3 * room] for frame, x in zip(pixels, left, strict=True)])


def groups_of(made: Any, merge: int) -> Tensor:
    """What a processor made of one video, as groups (T, P, C)."""
    count, rows, columns = made["video_grid_thw"][0].tolist()
    pixels: Tensor = made["pixel_values_videos"]
    return pixels.view(count, rows * columns // merge**2, -1)


def from_frame_before(groups: Tensor, keep: float) -> PixelSelection:
    score = torch.full(groups.shape[:2], torch.inf)
    score[1:] = (groups[1:] - groups[:-1]).abs().mean(-1)
    return PixelSelection(*ops.hold_highest(ops.HoldHighestProblem(score, kept_groups(keep, *score.shape))))


def distances(groups: Tensor, found: PixelSelection) -> dict[str, float]:
    """Mean absolute differences of groups that are not computed to those they repeat: their mean and the largest."""
    flat = groups.flatten(0, 1)
    held = found.kept[found.source]
    repeats = (held != torch.arange(len(held))).nonzero()[:, 0]
    difference = torch.stack([(flat[i] - flat[held[i]]).abs().mean() for i in repeats])
    return {"mean": round(float(difference.mean()), 4), "max": round(float(difference.max()), 4)}


if __name__ == "__main__":
    main()
