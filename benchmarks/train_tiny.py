"""Train vidsieve-tiny on the synthetic needle suite: out/tiny/{full,dropped}/ and out/tiny/log.json.

    python -m benchmarks.train_tiny --minutes 9 --drop-minutes 4 --out out/tiny
    python -m benchmarks.train_tiny --profile            # twenty steps, where the time goes, nothing written
    python -m benchmarks.train_tiny --scale small --minutes 12 --device cpu --out out/small

Two phases. `full` learns from whole videos; `dropped` goes on from there with 10 to 100 % of the visual tokens, chosen
at random and unevenly, so that a reduced video is nothing new to it, whatever reduced it. Videos are rendered where the
model is, each seen once, and all questions about a video share a forward pass. Learning rate and curriculum follow the
wall clock, so that a run ends on time on any device.

A run can be cut in pieces: with `--call-minutes 9` it stops after nine minutes, and the same command again goes on from
out/tiny/state.pt. Every minute the state and the log are written, with the accuracy on `dev`; at the end of each phase
the checkpoint, and the accuracy on 2 000 videos of `test`, beside what can be reached without the video. The seed fixes
the first weights and the order of the videos; how many of them are seen depends on the device.
"""

import argparse
import copy
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from benchmarks.tiny_card import write_cards
from torch import Tensor

from vidsieve.evaluation.needles import CHANCE, KINDS, PLAN, Batch, Questions, Size, describe, generate
from vidsieve.evaluation.needles.layout import GRID
from vidsieve.evaluation.needles.packed import Packed, fast
from vidsieve.evaluation.needles.questions import WORDS
from vidsieve.evaluation.needles.tiny import build

KEEPS = (0.1, 0.15, 0.2, 0.3, 0.4, 0.55, 0.75, 1.0)  # of the tokens, in the second phase
WARM = 0.03  # of a phase, in which the learning rate rises
AFTER = 0.1  # weight of the end of the answer in the loss
DEV, TEST = 512, 2000  # videos


@dataclass(frozen=True)
class Scale:
    """Model, batch, and curriculum: until which share of the first phase videos are of which size."""

    stages: tuple[tuple[float, Size], ...]
    text: dict[str, int] = field(default_factory=dict)
    vision: dict[str, int] = field(default_factory=dict)
    batch: int = 128
    rate: float = 1e-3

    @property
    def size(self) -> Size:
        """Of the videos that count."""
        return self.stages[-1][1]


SCALES = {
    "full": Scale(((0.15, Size(8, plain=True)), (0.4, Size(16)), (1.0, Size(32)))),
    "small": Scale(
        ((1.0, Size(8, 8, plain=True)),),
        {
            "hidden_size": 128,
            "intermediate_size": 352,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
        },
        {"hidden_size": 64, "intermediate_size": 176, "depth": 2, "num_heads": 2},
        batch=16,
        rate=1.5e-3,
    ),
}


class Run:
    """A training run: what must survive a break is in `state`."""

    def __init__(self, scale: Scale, seed: int, device: torch.device, command: str = "") -> None:
        self.scale, self.seed, self.device, self.command = scale, seed, device, command
        size = scale.size
        self.processor, model = build(size, seed, scale.text, scale.vision)
        self.model = model.to(device).train()
        matrices = [p for p in model.parameters() if p.ndim >= 2]
        others = [p for p in model.parameters() if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": 0.02}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=scale.rate, betas=(0.9, 0.98), fused=device.type == "cuda")
        self.packed = {size: Packed(self.processor, size, device) for _, size in scale.stages}
        self.captured: dict[Size, tuple[Any, Tensor, Batch]] = {}
        self.state: dict[str, Any] = {"phase": 0, "step": 0, "seconds": 0.0, "history": [], "results": {}}

    def autocast(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16)

    def size(self, progress: float) -> Size:
        """The size of the videos at this share of the phase."""
        if self.state["phase"]:
            return self.scale.size
        return next(size for until, size in self.scale.stages if progress <= until)

    def videos(self, size: Size) -> Batch:
        """The next batch; no video comes twice in a run, nor in a run of another seed.

        On CUDA it is valid until the next call: rendering is a thousand small kernels, replayed from a graph.
        """
        start = (self.seed << 40) + self.state["step"] * self.scale.batch
        numbers = torch.arange(start, start + self.scale.batch)
        if self.device.type != "cuda":
            return generate("train", numbers, size)
        if size not in self.captured:
            static = numbers.to(self.device)
            generate("train", static, size, self.device)  # fills caches, which a capture must not do
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                batch = generate("train", static, size, self.device)
            self.captured[size] = graph, static, batch
        graph, static, batch = self.captured[size]
        static.copy_(numbers)
        graph.replay()
        return batch

    def forward(self, size: Size, frames: Tensor, questions: Questions, keep: float) -> Tensor:
        """The loss; questions whose evidence was dropped do not count."""
        packed = self.packed[size]
        with self.autocast():
            features = packed.features(self.model, frames)
            kept, weight = None, None
            if keep < 1:
                kept, weight = drop(features.detach().float(), questions.evidence, keep, self.state["step"])
            log_probs, after = packed.logits(self.model, features, questions.words, questions.answer, kept)
        answer = packed.token[questions.answer]
        end = torch.full_like(answer, packed.end)
        loss = F.cross_entropy(log_probs.float().flatten(0, 1), answer.flatten(), reduction="none")
        tail = F.cross_entropy(after.float().flatten(0, 1), end.flatten())
        loss = loss.mean() if weight is None else (loss * weight.flatten()).sum() / weight.sum().clamp(min=1)
        return loss + AFTER * tail

    def step(self, progress: float, clock: Callable[[str], Any]) -> Tensor:
        """One step at this share of the phase: its loss, on the device."""
        peak = self.scale.rate * (0.4 if self.state["phase"] else 1.0)
        rate = peak * min(1.0, progress / WARM + 0.02) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        size = self.size(progress)
        with clock("render"):
            batch = self.videos(size)
        keep = KEEPS[self.state["step"] % len(KEEPS)] if self.state["phase"] else 1.0
        with clock("forward"):
            loss = self.forward(size, batch.frames, batch.questions, keep)
        with clock("backward"):
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
        with clock("update"):
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
        self.state["step"] += 1
        return loss.detach()

    @torch.no_grad()
    def accuracy(self, split: str, count: int, keep: float = 1.0, start: int = 0) -> dict[str, float]:
        """Of each kind of question, on the videos from number `start` on; keep = 0: without the video."""
        size, packed = self.scale.size, self.packed[self.scale.size]
        right = torch.zeros(len(PLAN), device=self.device)
        self.model.eval()
        for first in range(start, start + count, self.scale.batch):
            numbers = torch.arange(first, min(first + self.scale.batch, start + count))
            batch = generate(split, numbers, size, self.device)
            kept = None
            if keep < 1:
                score = torch.rand(len(numbers), size.tokens, generator=torch.Generator().manual_seed(first))
                kept = score.topk(round(keep * size.tokens), dim=1).indices.sort(dim=1).values.to(self.device)
            with self.autocast():
                features = packed.features(self.model, batch.frames)
                log_probs, _ = packed.logits(self.model, features, batch.questions.words, batch.questions.answer, kept)
            right += (log_probs.argmax(2) == packed.token[batch.questions.answer]).sum(0)
        self.model.train()
        return by_kind((right / count).tolist())

    def save(self, folder: Path) -> None:
        """The checkpoint in bf16, with the processor's files, as `from_pretrained` takes it."""
        copy.deepcopy(self.model).to(torch.bfloat16).eval().save_pretrained(folder)
        self.processor.save_pretrained(folder)

    def keep_state(self, path: Path) -> None:
        """Everything a later call needs; moments in bf16, which makes the file a third smaller."""
        optimizer = self.optimizer.state_dict()
        moments = {
            number: {
                name: value.to(torch.bfloat16) if name.startswith("exp") else value for name, value in each.items()
            }
            for number, each in optimizer["state"].items()
        }
        whole = {"model": self.model.state_dict(), "optimizer": optimizer | {"state": moments}, "run": self.state}
        torch.save(whole, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)

    def restore(self, path: Path) -> None:
        whole = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(whole["model"])
        for each in whole["optimizer"]["state"].values():
            for name in ("exp_avg", "exp_avg_sq"):
                each[name] = each[name].float()
        self.optimizer.load_state_dict(whole["optimizer"])
        self.state = whole["run"]


def by_kind(values: list[float]) -> dict[str, float]:
    """The mean of each kind's questions, and the mean of those."""
    grouped: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for kind, value in zip(PLAN, values, strict=True):
        grouped[kind].append(value)
    means = {kind: sum(each) / len(each) for kind, each in grouped.items()}
    return {kind: round(mean, 4) for kind, mean in means.items()} | {"mean": round(sum(means.values()) / len(KINDS), 4)}


def drop(features: Tensor, evidence: Tensor, keep: float, seed: int) -> tuple[Tensor, Tensor]:
    """A random share of the tokens (B, K), sorted, and whether each question can still be answered: float (B, Q).

    features: (B, N, D), tokens in the order of time, GRID x GRID a step.  How uneven the choice is differs from video
    to video: some steps are favoured over others, and what stands out over what does not, as any selection will.
    In every other video the evidence goes last, or at 10 % hardly any question could be answered.
    """
    batch, _, tokens = evidence.shape
    generator = torch.Generator(evidence.device).manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(batch, *shape, generator=generator, device=evidence.device)

    unit = F.normalize(features - features.mean(1, keepdim=True), dim=2)
    alike = (unit * F.normalize(unit.sum(1, keepdim=True), dim=2)).sum(2)
    plain = alike.argsort(1).argsort(1) / tokens  # rank in [0, 1)
    score = draw(tokens) + draw(1) * draw(tokens // GRID**2).repeat_interleave(GRID**2, dim=1) - draw(1) * plain
    # Of a large group one token is enough: scenes and what stays for long need no protection.
    group = evidence.flatten(0, 1).long()
    sizes = torch.zeros(len(group), int(evidence.shape[2]) + 1, device=evidence.device).scatter_add_(
        1, group, torch.ones_like(group, dtype=torch.float32)
    )
    small = (sizes.gather(1, group) <= 4) & (group > 0)
    wanted = small.view_as(evidence).any(1)
    wanted[::2] = False
    kept = (score + 3 * wanted).topk(round(keep * tokens), dim=1).indices.sort(dim=1).values
    mask = torch.zeros(batch, tokens, dtype=torch.bool, device=evidence.device).scatter_(1, kept, True)
    found = torch.zeros_like(sizes).scatter_add_(1, group, mask[:, None].expand_as(evidence).flatten(0, 1).float())
    answerable = ((found > 0) | (sizes == 0))[:, 1:].all(1)
    return kept, answerable.view(evidence.shape[:2]).float()


def guess(size: Size, device: torch.device, fit: int = 20000, count: int = TEST) -> dict[str, float]:
    """Accuracy of the most frequent answer to each question's exact words, counted on `fit` videos: what words give."""
    many = len(WORDS)

    def tables(split: str, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        kind = torch.tensor([KINDS.index(kind) for kind in PLAN], device=device)
        for first in range(start, stop, 500):
            _, asked = describe(split, torch.arange(first, min(first + 500, stop)), size, device)
            yield (kind * many + asked.words[..., 0]) * many + asked.words[..., 1], asked.answer

    counts = torch.zeros(len(KINDS) * many * many * many, device=device)
    for key, answer in tables("train", 1 << 60, (1 << 60) + fit):
        counts.index_add_(0, (key * many + answer).flatten(), torch.ones(key.numel(), device=device))
    best = counts.view(-1, many).argmax(1)
    right = sum((best[key] == answer).sum(0) for key, answer in tables("test", 0, count))
    return by_kind((right / count).tolist())  # type: ignore[union-attr]


def train(run: Run, minutes: list[float], call: float, out: Path) -> None:
    """Both phases, or what is left of them and fits into `call` minutes."""
    out.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    state = run.state
    while state["phase"] < 2:
        seconds = 60 * minutes[state["phase"]]
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
        state["results"][name] = results(run)
        state.update(phase=state["phase"] + 1, seconds=0.0)
        write(run, out)
        run.keep_state(out / "state.pt")
    state["results"]["words"] = guess(run.scale.size, run.device)
    write(run, out)
    write_cards(out)


def results(run: Run) -> dict[str, Any]:
    """On held-out textures, on the textures of the training, without the video, and with random tokens dropped."""
    return {
        "test": run.accuracy("test", TEST),
        "train textures": run.accuracy("train", TEST, start=1 << 50),
        "no video": run.accuracy("test", TEST, keep=0.0),
        **{f"random {keep:g}": run.accuracy("test", TEST, keep=keep) for keep in (0.5, 0.25, 0.1)},
    }


def note(run: Run, out: Path, losses: list[Tensor]) -> None:
    """A line of the history: loss since the last one and accuracy on `dev`."""
    state = run.state
    line = {
        "phase": ("full", "dropped")[state["phase"]],
        "minute": round(state["seconds"] / 60, 2),
        "step": state["step"],
        "videos": state["step"] * run.scale.batch,
        "loss": round(float(torch.stack(losses).mean()), 4) if losses else None,
        "dev": run.accuracy("dev", min(DEV, 16 * run.scale.batch)),
    }
    state["history"].append(line)
    print(json.dumps(line), flush=True)
    write(run, out)


def write(run: Run, out: Path) -> None:
    card = {
        "command": run.command,
        "seed": run.seed,
        "device": torch.cuda.get_device_name() if run.device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "test_videos": TEST,
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "videos": run.state["step"] * run.scale.batch,
        "scale": repr(run.scale),
        "chance": CHANCE,
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

    for until, size in run.scale.stages:
        for _ in range(3):
            run.step(until, Clock())
        clock, start = Clock(), wait()
        losses = [run.step(until, clock) for _ in range(steps)]
        parts = wait() - start
        start = wait()
        for _ in range(steps):
            run.step(until, lambda name: nullcontext())
        whole = wait() - start
        line = {
            "frames": size.frames,
            "videos_per_s": round(steps * run.scale.batch / whole, 1),
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
        f"--scale {args.scale} --batch {scale.batch} --seed {args.seed}" + " --compile" * args.compile
    )
    run = Run(scale, args.seed, torch.device(args.device), command)
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
