"""What each method loses on a synthetic needle suite, at each keep ratio, for each kind of question.

    found = evaluate(Plan(str(BUNDLED)))        # a plain dictionary; docs/evaluation.md says what is in it

Every row is one method at one keep ratio, on the same videos: accuracy, and accuracy relative to the unreduced model;
loyalty, how often it gives the unreduced answer (agreement) and how far its distribution is from the unreduced one
(KL); the share of the evidence it kept (recall). Each with a bootstrap interval over videos, and paired tests against
the unreduced model and against uniform sampling. `FLOORS` are always run.

How a row is run, checked and refused: needles/runner.py.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from vidsieve import registry
from vidsieve.engines.hf.loading import load
from vidsieve.errors import VidsieveError
from vidsieve.evaluation.card import commit
from vidsieve.evaluation.card import processor as processor_name
from vidsieve.evaluation.floors import FLOORS, KEEPS, LOW, Method, check_keeps
from vidsieve.evaluation.needles import CHANCES, SIZES, Size, generate, recall
from vidsieve.evaluation.needles.runner import Answers, EncodedBatch, Smaller, Suite, larger
from vidsieve.evaluation.needles.tiny import BUNDLED
from vidsieve.evaluation.statistics import Bootstrap, holm, sign_test

MEASURES = ("accuracy", "agreement", "kl", "recall")


@dataclass(frozen=True)
class Plan:
    """What to evaluate.

    model: folder of a checkpoint that was trained on the suite.  methods: names and what makes them, of a keep ratio.
    suite: one of `needles.SUITES`.  frames: of a video; None for the suite's own number.
    videos: how many of the split, from number `first` on.
    plain: without clutter and camouflage (`needles.Size`).
    checked: videos on which packed answers are compared with the attached model's.  timed: videos that are timed.
    """

    model: str
    split: str = "dev"
    videos: int = 500
    keeps: tuple[float, ...] = KEEPS
    methods: dict[str, Method] = field(default_factory=lambda: dict(registry.methods()))
    device: str | None = None
    frames: int | None = None
    plain: bool = False
    batch: int = 64
    checked: int = 4
    timed: int = 8
    command: str = ""
    suite: str = "needles"
    first: int = 0

    def __post_init__(self) -> None:
        check_keeps(self.keeps)
        if self.suite not in SIZES:
            raise ValueError(f"expected a suite among {', '.join(SIZES)}, got {self.suite!r}")
        for name in ("videos", "batch", "checked"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected at least one for {name}, got {getattr(self, name)}")

    @property
    def size(self) -> Size:
        """Of a video."""
        size = replace(SIZES[self.suite], plain=self.plain)
        return size if self.frames is None else replace(size, frames=self.frames)


def evaluate(plan: Plan, tell: Callable[[str], None] = lambda what: None) -> dict[str, Any]:
    """The card and the rows. `tell` hears of the progress."""
    processor, model = load(plan.model, plan.device, "float32")
    return evaluate_model(processor, model, plan, tell)


@torch.no_grad()
def evaluate_model(
    processor: Any, model: Any, plan: Plan, tell: Callable[[str], None] = lambda what: None
) -> dict[str, Any]:
    """`evaluate` for a processor and a model that are loaded already."""
    suite = Suite(processor, model, plan.size)
    whole = Row("unreduced", 1.0, None)
    rows = [whole]
    for keep in dict.fromkeys(plan.keeps):
        rows += [Row(name, keep, method(keep)) for name, method in {**plan.methods, **FLOORS}.items()]
        rows.append(Row(LOW, keep, Smaller(keep)))
    for start in range(0, plan.videos, plan.batch):
        numbers = plan.first + torch.arange(start, min(start + plan.batch, plan.videos))
        videos = f"videos {start + 1} to {start + len(numbers)} of {plan.videos}"
        tell(f"{videos}: {_place(rows, 0)}")
        encoded = suite.show(generate(plan.split, numbers, suite.size, suite.device))
        right = suite.packed.token[encoded.questions.answer]
        full = suite.unreduced(encoded)
        whole.add(full, full, encoded, right)
        for place, row in enumerate(rows[1:], 1):
            if not row.refused:
                tell(f"{videos}: {_place(rows, place)}")
                try:
                    log_probs = suite.answer(row.method, encoded, 0 if start else plan.checked)
                    row.add(log_probs, full, encoded, right)
                except VidsieveError as reason:  # `Refused`, or a method that cannot work at this ratio or model
                    row.refused = str(reason)
    for place, row in enumerate(rows):
        if not row.refused:
            tell(f"timing {_place(rows, place)}")
            row.cost = suite.cost(row.method, encoded, plan.timed)
    return {"card": card(plan, suite), "rows": summary(rows, plan.videos, suite.plan)}


class Row:
    """One method at one keep ratio: what it log_probs, batch after batch."""

    def __init__(self, name: str, keep: float, method: Any) -> None:
        self.name, self.keep, self.method = name, keep, method
        self.refused: str | None = None
        self.cost: dict[str, float | int | None] = {}
        self.checked: dict[str, Any] | None = None
        self.path = self.reducer = ""
        self.layers: tuple[int, ...] = ()
        self.batches: dict[str, list[Tensor]] = {name: [] for name in (*MEASURES, "tokens")}

    def add(self, answers: Answers, whole: Answers, encoded: EncodedBatch, answer: Tensor) -> None:
        """answer: (B, Q), the token that is right.  whole: what was said with all tokens."""
        log_probs, evidence = answers.log_probs, encoded.questions.evidence
        best = log_probs.argmax(2)
        kept = answers.kept
        nothing = torch.full_like(best, torch.nan, dtype=torch.float32)
        values = {
            "accuracy": best == answer,
            "agreement": best == whole.log_probs.argmax(2),
            "kl": (whole.log_probs.exp() * (whole.log_probs - log_probs)).sum(2),
            "recall": nothing if kept is None else recall(evidence, kept),
            "tokens": answers.tokens,
        }
        for name, value in values.items():
            self.batches[name].append(value.double().cpu())
        self.layers = larger(self.layers, answers.layers)
        self.checked = self.checked or answers.checked
        self.path, self.reducer = answers.path, answers.reducer

    def by_kind(self, measure: str, plan: Sequence[str]) -> Tensor:
        """The mean over each kind's questions: (V, kinds), NaN where a video has none that counts."""
        value = torch.cat(self.batches[measure])
        columns = [[i for i, kind in enumerate(plan) if kind == wanted] for wanted in dict.fromkeys(plan)]
        return torch.stack([value[:, column].nanmean(1) for column in columns], dim=1)


def _place(rows: list[Row], place: int) -> str:
    return f"{rows[place].name}, keep {rows[place].keep:g} ({place + 1} of {len(rows)})"


def summary(
    rows: list[Row], videos: int, plan: Sequence[str], bases: Sequence[str] = ("uniform",)
) -> list[dict[str, Any]]:
    """Every row as JSON knows it, the unreduced first. plan: the kinds of the questions.

    bases: rows that those of the same keep are compared with.
    """
    bootstrap, groups = Bootstrap(videos), ("all", *dict.fromkeys(plan))
    intervals, compared = partial(_intervals, bootstrap, groups), partial(_compared, bootstrap, groups)
    whole = rows[0].by_kind("accuracy", plan)
    based = {
        (row.name, row.keep): row.by_kind("accuracy", plan) for row in rows[1:] if row.name in bases and not row.refused
    }
    found = []
    for row in rows:
        entry: dict[str, Any] = {"method": row.name, "keep": row.keep, "reducer": row.reducer}
        entry |= {"path": row.path or None, "refused": row.refused, "checked": row.checked}
        if not row.refused:
            tokens = torch.cat(row.batches["tokens"])
            entry["tokens"] = {
                "mean": float(tokens.mean()),
                "least": int(tokens.min()),
                "most": int(tokens.max()),
                "layers": list(row.layers),
                "a_layer": round(sum(row.layers) / len(row.layers), 2),
            }
            entry |= {name: intervals(row.by_kind(name, plan)) for name in MEASURES}
            right = row.by_kind("accuracy", plan)
            entry["relative"] = intervals(right, whole)
            entry["against"] = {}
            if row is not rows[0]:
                entry["against"]["unreduced"] = compared(right - whole)
                for base in bases:
                    if (base, row.keep) in based and row.name != base:
                        entry["against"][base] = compared(right - based[base, row.keep])
            entry |= row.cost
        found.append(entry)
    return found


def _intervals(
    bootstrap: Bootstrap, groups: Sequence[str], values: Tensor, base: Tensor | None = None
) -> dict[str, Any]:
    """Of values (V, kinds), or of their ratio to `base`: all kinds, each with the same weight, and every kind."""
    mean, drawn = (_with_all(part) for part in bootstrap.means(values))
    if base is not None:
        below, drawn_below = (_with_all(part) for part in bootstrap.means(base))
        mean, drawn = mean / below, drawn / drawn_below  # not finite where nothing was right
    return {
        group: _plain(asdict(bootstrap.interval(mean[column], drawn[:, column]))) for column, group in enumerate(groups)
    }


def _compared(bootstrap: Bootstrap, groups: Sequence[str], difference: Tensor) -> dict[str, Any]:
    """A paired comparison, difference (V, kinds); the p of the kinds are adjusted for there being several.

    better, worse: of how many videos the answers are.
    """
    found = _intervals(bootstrap, groups, difference)
    each = torch.cat((difference.mean(1, keepdim=True), difference), dim=1)
    p_all, *p_kinds = sign_test(each)
    for group, column, p in zip(groups, each.T, (float(p_all), *holm(torch.stack(p_kinds)).tolist()), strict=True):
        found[group] |= {"p": round(p, 6), "better": int((column > 0).sum()), "worse": int((column < 0).sum())}
    return found


def _with_all(means: Tensor) -> Tensor:
    """(..., kinds) -> (..., 1 + kinds), the mean of the kinds first."""
    return torch.cat((means.nanmean(-1, keepdim=True), means), dim=-1)


def _plain(values: dict[str, float]) -> dict[str, float | None]:
    """Rounded, and None for NaN and infinity, which JSON does not know."""
    return {name: round(value, 6) if math.isfinite(value) else None for name, value in values.items()}


def card(plan: Plan, suite: Suite) -> dict[str, Any]:
    """Where the figures come from."""
    chance = CHANCES[plan.suite]
    model, cuda = suite.model, suite.device.type == "cuda"
    return {
        "suite": f"the synthetic suite {plan.suite}, which is no benchmark of video language models (docs/needles.md)",
        "command": plan.command,
        "model": "vidsieve-tiny, as bundled" if plan.model == str(BUNDLED) else plan.model,
        "parameters": sum(p.numel() for p in model.parameters()),
        "split": plan.split,
        "videos": plan.videos,
        "first": plan.first,
        "questions": plan.videos * len(suite.plan),
        "size": repr(suite.size),
        "tokens": suite.size.tokens,
        "chance": {"all": sum(chance.values()) / len(chance), **chance},
        "device": torch.cuda.get_device_name(suite.device) if cuda else processor_name(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "vidsieve": version("vidsieve"),
        "commit": commit(),
    }


def table(found: dict[str, Any]) -> Any:
    """The rows over all kinds of questions, as a rich table."""
    from rich.table import Table

    names = ("accuracy", "95 %", "relative", "agreement", "KL", "recall", "p uniform", "prefill ms", "selection ms")
    out = Table("method", "keep", "tokens", "a layer", *names, box=None)
    for row in found["rows"]:
        if row["refused"]:
            out.add_row(row["method"], f"{row['keep']:g}", "refused")
            continue
        accuracy = row["accuracy"]["all"]
        p = row["against"].get("uniform", {}).get("all", {}).get("p")
        rest = (row[name]["all"]["mean"] for name in ("relative", "agreement", "kl", "recall"))
        out.add_row(
            row["method"],
            f"{row['keep']:g}",
            f"{row['tokens']['mean']:g}",
            f"{row['tokens']['a_layer']:g}",
            f"{accuracy['mean']:.3f}",
            f"{accuracy['low']:.3f} {accuracy['high']:.3f}",
            *("" if value is None else f"{value:.3f}" for value in rest),
            "" if p is None else f"{p:.4f}",
            f"{row['prefill_ms']:.1f}",
            f"{row['selection_ms']:.2f}",
        )
    return out
