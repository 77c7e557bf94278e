"""A training run of vidsieve-tiny, step by step: which videos, which loss, what is kept for a later call."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vidsieve.engines.hf.loading import load
from vidsieve.evaluation.needles import LONG, PLANS, Batch, Questions, Size, generate
from vidsieve.evaluation.needles.layout import GRID
from vidsieve.evaluation.needles.packed import Packed
from vidsieve.evaluation.needles.tiny import build

KEEPS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.55, 0.75, 1.0)  # of the tokens, in the second phase
WARM = 0.03  # of a phase, in which the learning rate rises
AFTER = 0.1  # weight of the end of the answer in the loss
KIND_BITS = 6  # random planes that divide tokens into kinds that look alike


@dataclass(frozen=True)
class Scale:
    """Model, batch, and curriculum: until which share of the first phase videos are of which sizes, in turn.

    batch: videos a step, of those that have no more tokens than the first that count; of longer ones fewer.
    """

    stages: tuple[tuple[float, tuple[Size, ...]], ...]
    text: dict[str, int] = field(default_factory=dict)
    vision: dict[str, int] = field(default_factory=dict)
    batch: int = 128
    rate: float = 1e-3

    @property
    def sizes(self) -> tuple[Size, ...]:
        """Of the videos that count, one for each suite."""
        return tuple(dict.fromkeys(self.stages[-1][1]))

    def videos(self, size: Size) -> int:
        """How many a step."""
        return max(1, self.batch * self.sizes[0].tokens // max(self.sizes[0].tokens, size.tokens))


SCALES = {
    "full": Scale(((0.15, (Size(8, plain=True),)), (0.4, (Size(16),)), (1.0, (Size(),)))),
    "both": Scale(((1.0, (Size(), LONG, LONG)),), rate=6e-4),  # to go on with, from a model that knows `needles`
    "small": Scale(
        ((1.0, (Size(8, 8, plain=True),)),),
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

    def __init__(
        self,
        scale: Scale,
        seed: int,
        device: torch.device,
        command: str = "",
        start: Path | None = None,
        freeze_tower: bool = False,
    ) -> None:
        """start: folder of a checkpoint to go on from; without one the weights are random.

        freeze_tower: train the language model alone, so that features, and what is kept of them, stay as they are.
        """
        self.scale, self.seed, self.device, self.command, self.start = scale, seed, device, command, start
        if start:
            self.processor, model = load(str(start), str(device), "float32")
        else:
            self.processor, model = build(scale.sizes[0], seed, scale.text, scale.vision)
        self.model = model.to(device).train()
        model.model.visual.requires_grad_(not freeze_tower)
        trained = [p for p in model.parameters() if p.requires_grad]
        matrices = [p for p in trained if p.ndim >= 2]
        others = [p for p in trained if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": 0.02}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=scale.rate, betas=(0.9, 0.98), fused=device.type == "cuda")
        every = {size for _, sizes in scale.stages for size in sizes}
        self.packed = {size: Packed(self.processor, size, device) for size in every}
        self.captured: dict[Size, tuple[Any, Tensor, Batch]] = {}
        self.state: dict[str, Any] = {"phase": 0, "step": 0, "videos": 0, "seconds": 0.0, "history": [], "results": {}}

    def autocast(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16)

    def size(self, progress: float) -> Size:
        """The size of the videos of the next step, at this share of the phase."""
        progress = 1.0 if self.state["phase"] else progress
        sizes = next(sizes for until, sizes in self.scale.stages if progress <= until)
        return sizes[self.state["step"] % len(sizes)]

    def videos(self, size: Size) -> Batch:
        """The next batch; no video comes twice in a run, nor in a run of another seed.

        On CUDA it is valid until the next call: rendering is a thousand small kernels, replayed from a graph.
        """
        start = (self.seed << 40) + self.state["step"] * self.scale.batch
        numbers = torch.arange(start, start + self.scale.videos(size))
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

    def step(self, progress: float, clock: Callable[[str], Any], size: Size | None = None) -> Tensor:
        """One step at this share of the phase: its loss, on the device. size: of other videos than those in turn."""
        peak = self.scale.rate * (0.4 if self.state["phase"] else 1.0)
        rate = peak * min(1.0, progress / WARM + 0.02) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        size = size or self.size(progress)
        with clock("render"):
            batch = self.videos(size)
        turn = self.state["step"] // len(self.scale.stages[-1][1])  # every size with every share
        keep = KEEPS[turn % len(KEEPS)] if self.state["phase"] else 1.0
        with clock("forward"):
            loss = self.forward(size, batch.frames, batch.questions, keep)
        with clock("backward"):
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
        with clock("update"):
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
        self.state["step"] += 1
        self.state["videos"] += len(batch.frames)
        return loss.detach()

    @torch.no_grad()
    def accuracy(
        self, split: str, count: int, keep: float = 1.0, start: int = 0, size: Size | None = None
    ) -> dict[str, float]:
        """Of each kind of question, on the videos from number `start` on; keep = 0: without the video."""
        size = size or self.scale.sizes[0]
        packed, many = self.packed[size], self.scale.videos(size)
        right = torch.zeros(len(PLANS[size.suite]), device=self.device)
        self.model.eval()
        for first in range(start, start + count, many):
            numbers = torch.arange(first, min(first + many, start + count))
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
        return by_kind((right / count).tolist(), size.suite)

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


def by_kind(values: list[float], suite: str) -> dict[str, float]:
    """The mean of each kind's questions, and the mean of those."""
    grouped: dict[str, list[float]] = {kind: [] for kind in PLANS[suite]}
    for kind, value in zip(PLANS[suite], values, strict=True):
        grouped[kind].append(value)
    means = {kind: sum(each) / len(each) for kind, each in grouped.items()}
    return {kind: round(mean, 4) for kind, mean in means.items()} | {"mean": round(sum(means.values()) / len(means), 4)}


def drop(features: Tensor, evidence: Tensor, keep: float, seed: int) -> tuple[Tensor, Tensor]:
    """A random share of the tokens (B, K), sorted, and whether each question can still be answered: float (B, Q).

    features: (B, N, D), tokens in the order of time, GRID x GRID a step.  How uneven the choice is differs from video
    to video, as it does from selection to selection: some steps are favoured over others, what stands out over what
    does not, what is new at its place over what was there, and the first tokens of a kind over more of it.
    In every other video the evidence goes last, or at 10 % hardly any question could be answered.
    """
    batch, _, tokens = evidence.shape
    generator = torch.Generator(evidence.device).manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(batch, *shape, generator=generator, device=evidence.device)

    unit = F.normalize(features - features.mean(1, keepdim=True), dim=2)
    plain = _rank((unit * F.normalize(unit.sum(1, keepdim=True), dim=2)).sum(2))
    before = torch.cat([-unit[:, : GRID**2], unit[:, : -(GRID**2)]], 1)  # nothing was there before the first step
    still = _rank((unit * before).sum(2))
    planes = torch.randn(features.shape[2], KIND_BITS, generator=generator, device=features.device)
    kind = ((unit @ planes > 0) * 2 ** torch.arange(KIND_BITS, device=features.device)).sum(2)
    more = _place_in_group(kind, draw(tokens))  # of a kind there is already
    score = draw(tokens) + draw(1) * draw(tokens // GRID**2).repeat_interleave(GRID**2, dim=1)
    for held_against in (plain, still, more / (more + 3)):
        score = score - 2 * draw(1) ** 2 * held_against
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


def _rank(x: Tensor) -> Tensor:
    """The rank of each number of a row, in [0, 1)."""
    return x.argsort(1).argsort(1) / x.shape[1]


def _place_in_group(group: Tensor, order: Tensor) -> Tensor:
    """How many of its group come before each token, if they come by `order`, in [0, 1). All (B, N)."""
    by_group = (group + order).argsort(1)
    groups = group.gather(1, by_group)
    first = torch.searchsorted(groups, groups)
    return torch.empty_like(group).scatter_(1, by_group, torch.arange(group.shape[1], device=group.device) - first)
