"""Whether to pick by attention of what is stored beats storing less: benchmarks/results/stored_stages_<device>.json.

    python -m benchmarks.stored_stages --device cuda

A video is stored as `vidsieve.encode` stores it, and asked as `EncodedVideo.ask` asks, all questions about it as one
batch. With 10 or 5 % of its tokens: that share stored outright; a quarter stored and cut by `at`; and a quarter stored,
of which a stage inside the model picks that share for each question, by attention. Layers before the stage see the
quarter, so a row of as many FLOPs has what that costs, without a stage. `cost` is the share of the prefill FLOPs of the
unreduced prompt. The videos are those of the synthetic suites' test halves.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from benchmarks.chunked_selection import in_pieces
from torch import Tensor

from vidsieve import Prune, Staged, attach
from vidsieve.engines.hf.loading import load
from vidsieve.engines.hf.replay import Replay
from vidsieve.engines.hf.replayed import StoredVideo
from vidsieve.errors import BudgetError
from vidsieve.evaluation.evaluate import Plan, Row, card, summary
from vidsieve.evaluation.needles import SIZES, generate
from vidsieve.evaluation.needles.layout import GRID
from vidsieve.evaluation.needles.runner import Answers, EncodedBatch, Suite, larger
from vidsieve.evaluation.needles.tiny import BUNDLED
from vidsieve.methods import ConditionalDPP, PromptAttention, Proportional, TopRelevance, Uniform, Whole, in_chunks
from vidsieve.methods.presets import vidsieve
from vidsieve.types.selection import Selection

RESULTS = Path(__file__).parent / "results"
STORED, KEEPS = 0.25, (0.1, 0.05)
LESS, CUT = "stored outright", "a quarter stored, cut by at()"


LAST = PromptAttention("last")  # of the question as a whole it was worse, on 8 `dev` videos
STAGES: Mapping[str, Any] = {
    "most attended": lambda keep: Prune(keep, Whole(), Proportional(), LAST, TopRelevance()),
    "attended and unlike": lambda keep: Prune(keep, Uniform(8), Proportional(), LAST, ConditionalDPP()),
}


@dataclass(frozen=True)
class Arm:
    """One way to answer with a share `keep` in the end.

    stored: the share that is stored.  cut: the share that `at` cuts it to; None for all.  stages: inside the model;
    None for none.
    """

    name: str
    keep: float
    stored: float
    cut: float | None = None
    stages: Staged | None = None


def arms(layers: list[float]) -> Iterator[Arm]:
    for keep in KEEPS:
        yield Arm(LESS, keep, keep)
        yield Arm(CUT, keep, STORED, cut=keep)
        for layer in layers:
            yield Arm(f"as many FLOPs as a stage at {layer:g}", keep, STORED, layer * STORED + (1 - layer) * keep)
            for name, stage in STAGES.items():
                yield Arm(f"{name} at {layer:g}", keep, STORED, stages=Staged({layer: stage(keep)}))


def asked(suite: Suite, encoded: EncodedBatch, kept: list[Tensor]) -> Iterator[dict[str, Tensor]]:
    """The questions about each video as one batch, padded on the left, with the `kept` tokens (K,) alone.

    Token ids and positions are those of `EncodedVideo.inputs`.
    """
    packed, count = suite.packed, len(kept[0])
    rows = [packed.prompts(encoded.questions.words, question, count) for question in range(len(suite.plan))]
    longest = max(row.shape[1] for row in rows)
    before, place, tail = (each[:, 0] for each in packed.place)  # (3, n) each
    for video, index in enumerate(kept):
        inputs: dict[str, list[Tensor]] = {"input_ids": [], "attention_mask": [], "position_ids": []}
        for row in rows:
            ids = row[video]
            after = torch.arange(len(ids) - before.shape[1] - count, device=ids.device)
            positions = torch.cat([before, place[:, index], tail[:, :1] + after], 1)
            for name, x in zip(inputs, (ids, torch.ones_like(ids), positions), strict=True):
                inputs[name].append(F.pad(x, (longest - x.shape[-1], 0)))
        yield {name: torch.stack(each, -2) for name, each in inputs.items()}


def stored_of(suite: Suite, keep: float, x: Tensor) -> Selection:
    """What `vidsieve.encode` keeps of a video x (N, D): hundreds of small operations, for which a GPU is slower."""
    return in_pieces(in_chunks(vidsieve(keep)), x.cpu(), suite.size.steps, 2.0, None).to(suite.device)


def answered(suite: Suite, encoded: EncodedBatch, stored: list[Selection], stages: Staged) -> tuple[Answers, float]:
    """What the model says to each question, and the share of the prefill's FLOPs."""
    depth, frames = len(suite.model.model.language_model.layers), (GRID * GRID,) * suite.size.steps
    log_probs: list[Tensor] = []
    layers: tuple[int, ...] = ()
    cost = 0.0
    kept = torch.zeros(len(stored), len(suite.plan), suite.size.tokens, dtype=torch.bool, device=suite.device)
    prompts = asked(suite, encoded, [selection.kept for selection in stored])
    with attach(suite.model, stages) as trace:
        for video, (selection, inputs) in enumerate(zip(stored, prompts, strict=True)):
            x = selection.features
            described = StoredVideo.of(selection.kept, frames, (GRID, GRID), 0, averaged=False, like=x)
            with Replay(suite.model, x, {}, [described]):
                logits = suite.model(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1]
            log_probs.append(logits.float().log_softmax(1))
            [call] = trace.calls[-1:]
            for record in call.videos:
                kept[video, record.row, record.reduction.kept] = True
            entered = [max(s.layer for s in call.videos[0].stages if s.layer <= layer) for layer in range(depth)]
            after = {s.layer: s.after for s in call.videos[0].stages}
            layers = larger(layers, tuple(after[layer] for layer in entered))
            cost += (call.cost or 1.0) / len(stored)
    return Answers(torch.stack(log_probs), kept, kept.sum(2), layers, "stored", reducer=repr(stages)), cost


class Measured(Row):
    """An arm, with its share of the FLOPs."""

    def __init__(self, arm: Arm) -> None:
        super().__init__(arm.name, arm.keep, arm.stages)
        self.arm, self.shares, self.refused_cuts = arm, list[float](), 0

    def ask(self, suite: Suite, encoded: EncodedBatch, stored: Mapping[float, list[Selection]], full: Answers) -> None:
        """Add the answers about some videos. stored: of each of them, by the share that was stored outright."""
        arm = self.arm
        selections = stored[arm.stored]
        if arm.cut is not None:
            selections = [self._cut(suite, arm.cut, *pair) for pair in zip(selections, encoded.features, strict=True)]
        answers, share = answered(suite, encoded, selections, arm.stages or Staged({1: Prune(1.0)}))
        self.add(
            replace(answers, reducer=repr(arm.stages)), full, encoded, suite.packed.token[encoded.questions.answer]
        )
        self.shares.append(share)
        self.cost = {"cost": round(sum(self.shares) / len(self.shares), 4), "stored": arm.stored, "cut": arm.cut}
        self.cost["not_cut"] = self.refused_cuts

    def _cut(self, suite: Suite, keep: float, selection: Selection, x: Tensor) -> Selection:
        """Cut to a share, or where not all of that is held, store it outright."""
        try:
            return selection.at(keep)
        except BudgetError:
            self.refused_cuts += 1
            return stored_of(suite, keep, x)


@torch.no_grad()
def measured(plan: Plan, layers: list[float], model: Any) -> dict[str, Any]:
    """The card and the rows of a suite. layers: of the stages, in shares of the depth.  model: after its processor."""
    suite, began = Suite(*model, plan.size), time.perf_counter()
    rows = [Measured(arm) for arm in arms(layers)]
    whole = Row("unreduced", 1.0, None)
    whole.cost = {"cost": 1.0}
    for start in range(0, plan.videos, plan.batch):
        numbers = torch.arange(start, min(start + plan.batch, plan.videos))
        encoded = suite.show(generate(plan.split, numbers, suite.size, suite.device))
        full = suite.unreduced(encoded)
        whole.add(full, full, encoded, suite.packed.token[encoded.questions.answer])
        stored = {
            keep: [stored_of(suite, keep, x) for x in encoded.features]
            for keep in dict.fromkeys(row.arm.stored for row in rows)
        }
        for row in rows:
            row.ask(suite, encoded, stored, full)
        print(
            f"{plan.suite}: {int(numbers[-1]) + 1} of {plan.videos}, {time.perf_counter() - began:.0f} s",
            file=sys.stderr,
        )
    made = {
        "stored": STORED,
        "method": repr(in_chunks(vidsieve(STORED))),
        "seconds": round(time.perf_counter() - began),
    }
    bases = dict.fromkeys(row.name for row in rows if row.arm.stages is None)
    return {"card": card(plan, suite) | made, "rows": summary([whole, *rows], plan.videos, suite.plan, tuple(bases))}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--videos", type=int, default=256, help="(256)")
    parser.add_argument("--suite", action="append", choices=tuple(SIZES), help="(both)")
    parser.add_argument("--split", default="test", help="(test)")
    parser.add_argument("--layer", type=float, action="append", help="of a stage, a share of the depth (0.5, 0.67)")
    parser.add_argument("--device", help="(cuda where there is one)")
    parser.add_argument("--out", type=Path, help="(results/stored_stages_<device>.json)")
    options = parser.parse_args()
    command = f"python -m benchmarks.stored_stages {shlex.join(sys.argv[1:])}"
    model, found = load(str(BUNDLED), options.device, "float32"), {}
    for name in options.suite or tuple(SIZES):
        plan = Plan(str(BUNDLED), options.split, options.videos, KEEPS, {}, suite=name, command=command, batch=32)
        found[name] = measured(plan, options.layer or [0.5, 0.67], model)
        for row in found[name]["rows"]:
            right, kept = row["accuracy"]["all"], row["recall"]["all"]["mean"]
            less = row["against"].get(LESS, {}).get("all")
            beats = "" if less is None else f", {less['mean']:+.4f} ({less['low']:+.4f} to {less['high']:+.4f}) of less"
            interval = f"{right['mean']:.4f} ({right['low']:.4f} to {right['high']:.4f})"
            print(f"{name:8}{row['keep']:5.0%} {row['method']:32} {interval}, recall {kept:.3f}, {row['cost']}{beats}")
        device = found[name]["card"]["device"].split()
        kind = next((word.lower() for word in device if word[0] in "HBA" and any(c.isdigit() for c in word)), "cpu")
        out = options.out or RESULTS / f"stored_stages_{kind}.json"
        out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
