"""How far features are from those of the whole tower where groups of pixels are left out.

    python -m benchmarks.repeated_features CLIPS --out benchmarks/results/repeated_features_clips.json

The model is the bundled one, in float32; clips are read as by `repeats.py`, as they are and panned. A number is the
distance of features to those of the tower that computes every group, relative to their length: of the groups that are
computed, and of those that repeat another: by `KCenter`, with held keys and with keys that are absent, by `RunLength`,
and at random, which compute as many. `oldest` is the longest time, in seconds, between a group and what it repeats.
"""

import json
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from benchmarks.repeats import KEEPS, PAN, frames_of, groups_of, options_of, repeats
from torch import Tensor

import vidsieve
from vidsieve.engines.hf.loading import load
from vidsieve.evaluation.card import commit
from vidsieve.evaluation.needles.tiny import BUNDLED
from vidsieve.methods import KCenter, Pixels, RandomGroups, RunLength, Staged
from vidsieve.methods.pixels import PixelSelector


def main() -> None:
    options = options_of(__doc__)
    processor, model = load(str(BUNDLED), "cpu", bar=False)
    rows = []
    for path in sorted(options.clips.glob("*.mp4")):
        print(path.name, file=sys.stderr, flush=True)
        for pan in (0, PAN):
            rows.append({"clip": path.name, "pan": pan, **measured(processor, model, path, pan, options)})
    card = {
        "command": "python -m benchmarks.repeated_features CLIPS " + shlex.join(sys.argv[2:]),
        "model": "vidsieve-tiny",
        "fps": options.fps,
        "side": options.side,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "vidsieve": version("vidsieve"),
        "commit": commit(),
    }
    options.out.write_text(json.dumps({"card": card, "rows": rows}, indent=1) + "\n")


@torch.inference_mode()
def measured(processor: Any, model: Any, path: Path, pan: int, options: Any) -> dict[str, Any]:
    pixels = frames_of(path, options.fps, options.side, pan)
    video: Any = processor.video_processor
    made = video(
        videos=[pixels.permute(0, 3, 1, 2)],
        do_sample_frames=False,
        size={"shortest_edge": options.side, "longest_edge": len(pixels) * options.side**2},
        return_tensors="pt",
    )
    groups = groups_of(made, video.merge_size)
    whole = features(model, made, None)
    seconds = video.temporal_patch_size / options.fps
    return {
        "frames": groups.shape[0],
        "groups": groups.shape[1],
        "repeats": repeats(groups),
        "keep": {str(keep): compared(model, made, groups, whole, keep, seconds) for keep in KEEPS},
    }


def compared(model: Any, made: Any, groups: Tensor, whole: Tensor, keep: float, seconds: float) -> dict[str, float]:
    """The distances of one share of the groups. seconds: from a frame of groups to the next."""
    places, found = groups.shape[1], {}
    row = torch.arange(groups.shape[0] * places)
    for name, selector in selectors(keep).items():
        selection = selector.select(groups)
        repeated = selection.kept[selection.source]
        made_of = features(model, made, selector)
        found[f"computed, {name}"] = distance(made_of, whole, repeated == row)
        found[f"repeated, {name}"] = distance(made_of, whole, repeated != row)
        found[f"oldest, {name}"] = round(float((row // places - repeated // places).abs().max()) * seconds, 2)
    return found


def selectors(keep: float) -> dict[str, PixelSelector]:
    return {
        "k-center": KCenter(keep),
        "k-center, absent": KCenter(keep, holds_keys=False),
        "run length": RunLength(keep),
        "random": RandomGroups(keep),
    }


def features(model: Any, made: Any, selector: PixelSelector | None) -> Tensor:
    """What the language model is given of the groups that `selector` chooses, of all without one: (N, D)."""
    method = None if selector is None else Staged({Pixels(): selector})
    with vidsieve.attach(model, method):
        found: Tensor = torch.cat(tuple(model.get_video_features(**made).pooler_output))
    return found


def distance(found: Tensor, whole: Tensor, rows: Tensor) -> float:
    """The distance between features of these rows, relative to the length of the second: over all rows together."""
    return round(float((found[rows] - whole[rows]).norm() / whole[rows].norm()), 4)


if __name__ == "__main__":
    main()
