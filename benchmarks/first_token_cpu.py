"""How long the first token takes on a CPU, by the bundled model: `python -m benchmarks.first_token_cpu`.

The clip of `vidsieve demo`, from pixels: vision tower and prefill, with every token, with 10 % of them, and with 10 %
where the tower computes half or a quarter of the groups of pixels. Variants take turns; a row has the 20, 50 and 80 %
quantiles of milliseconds on the clock, and the median of the processor's. Only the latter says something on a busy
machine.
"""

import argparse
import json
import shlex
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers

from vidsieve import registry
from vidsieve.cli import demo
from vidsieve.cli.answer import answer
from vidsieve.engines.hf.loading import load, prepare
from vidsieve.evaluation.card import commit, processor, quantiles
from vidsieve.evaluation.needles.tiny import BUNDLED
from vidsieve.methods.compose import with_pixels
from vidsieve.video import read_video

KEEP = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=31, help="calls of each variant (31)")
    parser.add_argument("--threads", type=int, default=2, help="(2)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "first_token_cpu.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    made, model = load(str(BUNDLED), "cpu", bar=False)
    with tempfile.TemporaryDirectory() as folder:
        frames = read_video(demo.render_clip(Path(folder) / "clip.mp4"), num_frames=demo.FRAMES)
    inputs = prepare(made, frames, demo.question()[0])
    method = registry.method("vidsieve")(KEEP)
    variants: dict[str, tuple[Any, ...]] = {
        "every token": (),
        "10 %": (method,),
        "10 %, half of the groups": (with_pixels(method, 0.5),),
        "10 %, a quarter of the groups": (with_pixels(method, 0.25),),
    }
    times: dict[str, list[tuple[float, float, float]]] = {name: [] for name in variants}
    for turn in range(options.rounds + 2):
        for name, attach in variants.items():
            before = time.process_time()
            found = answer(model, made, inputs, 1, *attach).stages_ms
            spent = 1e3 * (time.process_time() - before)
            if turn > 1:
                times[name].append((found["vision"], found["prefill"], spent))
    rows = [row(name, values) for name, values in times.items()]
    for one in rows:
        one["sooner"] = round(rows[0]["total"][1] / one["total"][1], 2)
        one["less_work"] = round(rows[0]["processor"] / one["processor"], 2)
        print(one)
    card = {
        "command": "python -m benchmarks.first_token_cpu " + shlex.join(sys.argv[1:]),
        "device": processor(),
        "threads": options.threads,
        "rounds": options.rounds,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "vidsieve": version("vidsieve"),
        "commit": commit(),
    }
    options.out.write_text(json.dumps({"card": card, "rows": rows}, indent=1) + "\n")


def row(name: str, values: list[tuple[float, float, float]]) -> dict[str, Any]:
    vision, prefill, spent = (list(column) for column in zip(*values, strict=True))
    return {
        "variant": name,
        "vision": quantiles(vision),
        "prefill": quantiles(prefill),
        "total": quantiles([a + b for a, b in zip(vision, prefill, strict=True)]),
        "processor": quantiles(spent)[1],
    }


if __name__ == "__main__":
    main()
