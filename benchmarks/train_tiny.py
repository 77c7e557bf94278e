"""Train vidsieve-tiny on the synthetic needle suite: out/tiny/{full,dropped}/ and out/tiny/log.json.

    python -m benchmarks.train_tiny --minutes 9 --drop-minutes 4 --out out/tiny
    python -m benchmarks.train_tiny --profile            # twenty steps, where the time goes, nothing written
    python -m benchmarks.train_tiny --scale both --start out/tiny/dropped --minutes 6 --drop-minutes 5 --out out/both
    python -m benchmarks.train_tiny --scale both --start out/both/dropped --minutes 0 --freeze-tower --seed 1
    python -m benchmarks.train_tiny --scale small --minutes 12 --device cpu --out out/small

`full` and `small` begin with random weights and learn the suite `needles`; `both` goes on from a model that knows it,
with one step of that suite and two of `long` in turn. A phase of no minutes is left out.

Two phases. `full` learns from whole videos; `dropped` goes on from there with 2 to 100 % of the visual tokens, chosen
at random and unevenly, so that a reduced video is nothing new to it, whatever reduced it. Videos are rendered where the
model is, each seen once, and all questions about a video share a forward pass. Learning rate and curriculum follow the
wall clock, so that a run ends on time on any device.

A run can be cut in pieces: with `--call-minutes 9` it stops after nine minutes, and the same command again goes on from
out/tiny/state.pt. Every minute the state and the log are written, with the accuracy on `dev`; at the end of each phase
the checkpoint, and the accuracy on 2 000 videos of `test`, beside what can be reached without the video. The seed fixes
the first weights and the order of the videos; how many of them are seen depends on the device.
"""

import argparse
import hashlib
import json
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from benchmarks.tiny_card import write_cards
from benchmarks.tiny_run import SCALES, Run, by_kind
from torch import Tensor

from vidsieve.evaluation.needles import CHANCES, PLANS, Size, describe
from vidsieve.evaluation.needles.packed import fast
from vidsieve.evaluation.needles.questions import WORDS

DEV, TEST = 512, 2000  # videos
FIT = 20000  # videos of which answers are counted, to guess by


def guess(size: Size, device: torch.device, fit: int, count: int) -> dict[str, float]:
    """Accuracy of the most frequent answer to each question's exact words, counted on `fit` videos: what words give."""
    many, plan = len(WORDS), PLANS[size.suite]
    kinds = tuple(dict.fromkeys(plan))

    def tables(split: str, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        kind = torch.tensor([kinds.index(kind) for kind in plan], device=device)
        for first in range(start, stop, 500):
            _, asked = describe(split, torch.arange(first, min(first + 500, stop)), size, device)
            yield (kind * many + asked.words[..., 0]) * many + asked.words[..., 1], asked.answer

    counts = torch.zeros(len(kinds) * many * many * many, device=device)
    for key, answer in tables("train", 1 << 60, (1 << 60) + fit):
        counts.index_add_(0, (key * many + answer).flatten(), torch.ones(key.numel(), device=device))
    best = counts.view(-1, many).argmax(1)
    right = sum((best[key] == answer).sum(0) for key, answer in tables("test", 0, count))
    return by_kind((right / count).tolist(), size.suite)  # type: ignore[union-attr]


def train(run: Run, minutes: list[float], call: float, out: Path) -> None:
    """Both phases, or what is left of them and fits into `call` minutes."""
    out.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    state = run.state
    while state["phase"] < 2:
        seconds = 60 * minutes[state["phase"]]
        if not seconds:
            state.update(phase=state["phase"] + 1, seconds=0.0)
            continue
        start, noted, losses = time.perf_counter() - state["seconds"], state["seconds"], []
        while (now := time.perf_counter()) - start < seconds:
            if now - began > 60 * call:
                note(run, out, losses)
                run.keep_state(out / "state.pt")
                print("stopped; the same command goes on from here", flush=True)
                return
            state["seconds"] = now - start
            losses.append(run.step(min(1.0, state["seconds"] / seconds), lambda name: nullcontext()))
            if state["seconds"] - noted > 60:
                note(run, out, losses)
                run.keep_state(out / "state.pt")
                noted, losses = time.perf_counter() - start, []
        note(run, out, losses)
        name = ("full", "dropped")[state["phase"]]
        run.save(out / name)
        state["results"][name] = {size.suite: results(run, size) for size in run.scale.sizes}
        state.update(phase=state["phase"] + 1, seconds=0.0)
        write(run, out)
        run.keep_state(out / "state.pt")
    state["results"]["words"] = {size.suite: guess(size, run.device, FIT, TEST) for size in run.scale.sizes}
    write(run, out)
    write_cards(out)


def results(run: Run, size: Size) -> dict[str, Any]:
    """On held-out textures, on the textures of the training, without the video, and with random tokens dropped."""
    return {
        "test": run.accuracy("test", TEST, size=size),
        "train textures": run.accuracy("train", TEST, start=1 << 50, size=size),
        "no video": run.accuracy("test", TEST, keep=0.0, size=size),
        **{f"random {keep:g}": run.accuracy("test", TEST, keep=keep, size=size) for keep in (0.5, 0.25, 0.1, 0.05)},
    }


def note(run: Run, out: Path, losses: list[Tensor]) -> None:
    """A line of the history: loss since the last one and accuracy on `dev`."""
    state = run.state
    line = {
        "phase": ("full", "dropped")[state["phase"]],
        "minute": round(state["seconds"] / 60, 2),
        "step": state["step"],
        "videos": state["videos"],
        "loss": round(float(torch.stack(losses).mean()), 4) if losses else None,
        "dev": {size.suite: run.accuracy("dev", min(DEV, 16 * run.scale.batch), size=size) for size in run.scale.sizes},
    }
    state["history"].append(line)
    print(json.dumps(line), flush=True)
    write(run, out)


def write(run: Run, out: Path) -> None:
    card = {
        "command": run.command,
        "seed": run.seed,
        "start": None if run.start is None else str(run.start),
        "start_sha256": run.start and hashlib.sha256((run.start / "model.safetensors").read_bytes()).hexdigest(),
        "device": torch.cuda.get_device_name() if run.device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "test_videos": TEST,
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "videos": run.state["videos"],
        "scale": repr(run.scale),
        "frames": [size.frames for size in run.scale.sizes],
        "chance": {size.suite: CHANCES[size.suite] for size in run.scale.sizes},
    }
    whole = card | {"results": run.state["results"], "history": run.state["history"]}
    (out / "log.json").write_text(json.dumps(whole, indent=1) + "\n")


def profile(run: Run, steps: int = 20) -> None:
    """Videos a second at each size, and milliseconds a step of each part."""

    def wait() -> float:
        if run.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    class Clock:
        def __init__(self) -> None:
            self.spent: dict[str, float] = {}

        def __call__(self, name: str) -> Any:
            self.name = name
            return self

        def __enter__(self) -> None:
            self.start = wait()

        def __exit__(self, *_: object) -> None:
            self.spent[self.name] = self.spent.get(self.name, 0.0) + wait() - self.start

    for size in run.packed:
        for _ in range(3):
            run.step(1.0, Clock(), size)
        clock, start = Clock(), wait()
        losses = [run.step(1.0, clock, size) for _ in range(steps)]
        parts = wait() - start
        start = wait()
        for _ in range(steps):
            run.step(1.0, lambda name: nullcontext(), size)
        whole = wait() - start
        line = {
            "size": repr(size),
            "videos_per_s": round(steps * run.scale.videos(size) / whole, 1),
            "ms_per_step": round(1e3 * whole / steps, 1),
            "ms": {name: round(1e3 * spent / steps, 1) for name, spent in clock.spent.items()},
            "ms_clocked": round(1e3 * parts / steps, 1),
            "loss": round(float(torch.stack(losses).mean()), 3),
            "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 1) if run.device.type == "cuda" else None,
        }
        print(json.dumps(line), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="of the first phase")
    parser.add_argument("--drop-minutes", type=float, default=4.0, help="of the second phase")
    parser.add_argument("--call-minutes", type=float, default=math.inf, help="stop after this long, to be continued")
    parser.add_argument("--scale", choices=SCALES, default="full")
    parser.add_argument("--start", type=Path, help="folder of a checkpoint to go on from (random weights)")
    parser.add_argument("--freeze-tower", action="store_true", help="train the language model alone")
    parser.add_argument("--batch", type=int, help="videos a step, if not those of the scale")
    parser.add_argument("--compile", action="store_true", help="compile each layer: worth it in long runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("out/tiny"))
    parser.add_argument("--profile", action="store_true", help="time twenty steps of each size and write nothing")
    args = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    scale = SCALES[args.scale]
    scale = replace(scale, batch=args.batch or scale.batch)
    command = (
        f"python -m benchmarks.train_tiny --minutes {args.minutes:g} --drop-minutes {args.drop_minutes:g} "
        f"--scale {args.scale} --batch {scale.batch} --seed {args.seed}"
        + f" --start {args.start}" * bool(args.start)
        + " --freeze-tower" * args.freeze_tower
        + " --compile" * args.compile
    )
    run = Run(scale, args.seed, torch.device(args.device), command, args.start, args.freeze_tower)
    if args.compile:
        torch._dynamo.config.recompile_limit = 64  # one for each number of tokens
        for layer in (*run.model.model.visual.blocks, *run.model.model.language_model.layers):
            layer.compile()
    with fast(run.model):
        if args.profile:
            profile(run)
            return
        if (args.out / "state.pt").exists():
            run.restore(args.out / "state.pt")
        train(run, [args.minutes, args.drop_minutes], args.call_minutes, args.out)


if __name__ == "__main__":
    main()
