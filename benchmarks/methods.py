"""Milliseconds of every named method that reduces before the language model, as a user calls it.

    python benchmarks/methods.py --out benchmarks/results/methods_cpu.json

A call is `reduce` on the tokens of one video and the gather of what stays, eager, with a prompt of 32 tokens. Methods
take turns, so that a busy machine is busy for all; a slow one sits out once its time is spent.
"""

import argparse
import json
import os
import shlex
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from vidsieve import Prompt, registry
from vidsieve.evaluation.bench import Load
from vidsieve.evaluation.card import commit, processor, quantiles

PROMPT = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=196, help="of a frame")
    parser.add_argument("--dim", type=int, default=3584)
    parser.add_argument("--keep", type=float, default=0.1)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20, help="calls of each method, at most")
    parser.add_argument("--seconds", type=float, default=60, help="for each method; three calls are made in any case")
    parser.add_argument(
        "--method", action="append", dest="methods", choices=registry.methods(inside=False), help="repeatable (all)"
    )
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    load = Load(options.frames, options.tokens, options.dim, dtype=getattr(torch, options.dtype))
    taken = measured(load, options)
    card = {
        "command": "python benchmarks/methods.py " + shlex.join(sys.argv[1:]),
        "device": processor(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load": [round(load, 1) for load in os.getloadavg()],  # over 1, 5 and 15 minutes, these threads included
        "shape": f"{load.frames} frames x {load.tokens} tokens x {load.dim} {options.dtype}",
        "keep": options.keep,
        "prompt": PROMPT,
        "torch": torch.__version__,
        "vidsieve": version("vidsieve"),
        "commit": commit(),
    }
    rows = [
        {"method": name, "runs": len(times), "ms": dict(zip(("p20", "median", "p80"), quantiles(times), strict=True))}
        for name, times in taken.items()
    ]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"card": card, "rows": rows}, indent=1) + "\n")


@torch.no_grad()
def measured(load: Load, options: Any) -> dict[str, list[float]]:
    """Milliseconds of each call, by method. The first, which pays for what later ones do not, is not counted."""
    features = load.features(load.frames, 0)
    g = torch.Generator().manual_seed(1)
    prompt = Prompt(torch.randn(PROMPT, load.dim, generator=g).to(load.dtype))
    taken: dict[str, list[float]] = {name: [] for name in options.methods or registry.methods(inside=False)}
    for number in range(options.rounds + 1):
        for name, times in taken.items():
            if len(times) >= 3 and sum(times) > 1e3 * options.seconds:
                continue
            start = time.perf_counter()
            registry.method(name)(options.keep).reduce(load.video(features), prompt).apply(features)
            if number:
                times.append(1e3 * (time.perf_counter() - start))
        print(f"round {number} of {options.rounds}", file=sys.stderr, flush=True)
    return taken


if __name__ == "__main__":
    main()
