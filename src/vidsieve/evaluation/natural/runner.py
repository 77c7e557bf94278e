"""What each method leaves of natural videos, without a language model: a table of all methods and floors.

    found = evaluate_natural(NaturalPlan(methods={"mine": lambda keep: Prune(keep)}))     # docs/natural.md

A method sees the features of a pretrained network, of which it is known where one shot ends, what stands still and what
moves. What needs a question, or acts inside a language model, is refused.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vidsieve import registry
from vidsieve.errors import UnsupportedCall, VidsieveError
from vidsieve.evaluation.card import commit
from vidsieve.evaluation.card import processor as processor_name
from vidsieve.evaluation.floors import FLOORS, KEEPS, LOW, Method, check_keeps
from vidsieve.evaluation.natural import metrics
from vidsieve.evaluation.natural.bars import bars
from vidsieve.evaluation.natural.features import DATA, Features, card, load
from vidsieve.evaluation.natural.takes import CLIPS, SIDE
from vidsieve.evaluation.natural.videos import PLACES, VIDEOS, Video, build
from vidsieve.methods.base import Reducer
from vidsieve.types.tokens import VideoTokens

MEASURES = ("share", "empty", "cov", "worst", "c99", "reconstruction", "qkl")
OBJECTS = ("static", "moving", "brief")


@dataclass(frozen=True)
class NaturalPlan:
    """What to evaluate.

    methods: names and what makes them, of a keep ratio.  videos: names of videos of the split; all of them if None.
    device: where methods run; measures are taken on the CPU.
    features: a folder made by benchmarks/natural_features.py, in place of the one that comes with the package.
    """

    split: Literal["dev", "test"] = "dev"
    keeps: tuple[float, ...] = KEEPS
    methods: Mapping[str, Method] = field(default_factory=lambda: dict(registry.methods()))
    videos: tuple[str, ...] | None = None
    device: str | None = None
    features: Path = DATA
    command: str = ""

    def __post_init__(self) -> None:
        check_keeps(self.keeps)
        if self.split not in VIDEOS:
            raise ValueError(f"expected a split among {', '.join(VIDEOS)}, got {self.split!r}")
        if unknown := [name for name in self.videos or () if name not in VIDEOS[self.split]]:
            raise ValueError(f"no video {unknown[0]!r} in {self.split}; there are {', '.join(VIDEOS[self.split])}")


@torch.no_grad()
def evaluate_natural(plan: NaturalPlan, tell: Callable[[str], None] = lambda what: None) -> dict[str, Any]:
    """The card and the rows, as JSON knows them. `tell` hears of the progress."""
    bank = load(plan.split, plan.features)
    names = plan.videos or tuple(VIDEOS[plan.split])
    rows = [
        _Row(name, keep, method)
        for keep in dict.fromkeys(plan.keeps)
        for name, method in {**plan.methods, **FLOORS, LOW: _refuse_low}.items()
    ]
    tokens = 0
    for name in names:
        video = build(plan.split, name, bank)
        tokens += len(video.features)
        for place, row in enumerate(rows):
            if row.refused is None:
                tell(f"{name}: {row.name}, keep {row.keep:g} ({place + 1} of {len(rows)})")
                row.add(video, bank, plan.device)
    found = [row.summary() for row in rows]
    for entry in found:
        floor = next(row for row in found if row["method"] == "uniform" and row["keep"] == entry["keep"])
        if not entry["refused"]:
            entry["bars"] = bars(entry, floor)
    return {"card": _card(plan, names, tokens), "rows": found}


def _refuse_low(keep: float) -> Reducer:
    raise UnsupportedCall("the features are those of whole frames; vidsieve eval --suite needles has this floor")


def kept_mask(method: Any, video: Video, device: str | None = None) -> Tensor:
    """Which tokens a method keeps: bool (T * PLACES,). Raises `VidsieveError` or `ValueError` where it cannot."""
    if not isinstance(method, Reducer):
        raise UnsupportedCall("acts inside the language model, and this suite has none")
    tokens = VideoTokens.from_grid(video.features.to(device), video.frames, SIDE, SIDE)
    reduction = method.reduce(tokens)
    reduction.check()
    if len(reduction) == len(tokens):
        raise UnsupportedCall(f"kept all {len(tokens)} tokens: nothing was reduced")
    mask = torch.zeros(len(tokens), dtype=torch.bool)
    mask[reduction.kept.cpu()] = True
    return mask


def figures(video: Video, mask: Tensor, bank: Features) -> dict[str, Any]:
    """Every measure of one video, of what was kept of it: bool (T * PLACES,)."""
    frames = mask.view(-1, PLACES)
    shots: dict[str, list[float]] = {name: [] for name in ("cov", "c99", "reconstruction", "qkl")}
    for a, b in video.shots:
        x, kept = video.features[a * PLACES : b * PLACES], mask[a * PLACES : b * PLACES]
        some = bool(kept.any())
        distance, index = metrics.nearest(x, kept) if some else (torch.full((len(x),), metrics.FAR), None)
        shots["cov"].append(metrics.coverage(distance, kept))
        shots["c99"].append(metrics.tail(distance))
        shots["reconstruction"].append(metrics.reconstruction(x, kept))
        shots["qkl"].append(metrics.classes(x, index, bank.weight, bank.bias))
    seen = metrics.found(mask, [thing.tokens for thing in video.objects])
    kinds: list[str] = [thing.kind for thing in video.objects]
    objects = {
        kind: [sum(s for s, k in zip(seen, kinds, strict=True) if k == kind), kinds.count(kind)] for kind in OBJECTS
    }
    return {
        "share": metrics.share(frames, video.shots),
        "empty": metrics.empty(frames),
        "worst": max(shots["cov"]),
        **{name: sum(values) / len(values) for name, values in shots.items()},
        **objects,
    }


class _Row:
    """One method at one keep ratio, video after video."""

    def __init__(self, name: str, keep: float, method: Method) -> None:
        self.name, self.keep = name, keep
        self.refused: str | None = None
        self.method: Any = None
        self.videos: dict[str, dict[str, Any]] = {}
        try:
            self.method = method(keep)
        except (VidsieveError, ValueError) as reason:
            self.refused = str(reason)

    def add(self, video: Video, bank: Features, device: str | None) -> None:
        try:
            mask = kept_mask(self.method, video, device)
        except (VidsieveError, ValueError) as reason:  # `ValueError`: a method that needs a question, see `Reducer`
            self.refused = str(reason)
            return
        self.videos[video.name] = {"tokens": int(mask.sum()), **figures(video, mask, bank)}

    def summary(self) -> dict[str, Any]:
        """The row as JSON knows it: means over the videos, and each video."""
        entry: dict[str, Any] = {"method": self.name, "keep": self.keep, "refused": self.refused}
        entry["reducer"] = repr(self.method) if self.method is not None else ""
        if self.refused is not None:
            return entry
        each = list(self.videos.values())
        entry["tokens"] = sum(video["tokens"] for video in each)
        for name in MEASURES:
            entry[name] = round(sum(video[name] for video in each) / len(each), 6)
        entry["least_share"] = round(min(video["share"] for video in each), 6)
        for name in OBJECTS:
            entry[name] = [sum(video[name][i] for video in each) for i in range(2)]
        entry["videos"] = {
            name: {key: round(value, 6) if isinstance(value, float) else value for key, value in video.items()}
            for name, video in self.videos.items()
        }
        return entry


def _card(plan: NaturalPlan, names: tuple[str, ...], tokens: int) -> dict[str, Any]:
    """Where the figures come from."""
    about = card(plan.features)
    return {
        "suite": "natural shots put together, without a language model (docs/natural.md)",
        "command": plan.command,
        "split": plan.split,
        "videos": list(names),
        "tokens": tokens,
        "network": about["network"],
        "rank": about["rank"],
        "clips": sorted(name for name, clip in CLIPS.items() if clip.split == plan.split),
        "device": plan.device or processor_name(),
        "torch": torch.__version__,
        "vidsieve": version("vidsieve"),
        "commit": commit(),
    }


def table(found: dict[str, Any]) -> Any:
    """The rows, as a rich table."""
    from rich.table import Table

    names = ("share", "least", "empty", "cov", "worst", "c99", "rec", "qkl", *OBJECTS, "bars missed")
    out = Table("method", "keep", *names, box=None)
    for row in found["rows"]:
        if row["refused"] is not None:
            out.add_row(row["method"], f"{row['keep']:g}", "refused")
            continue
        values = [row[name] for name in ("share", "least_share", *MEASURES[1:])]
        objects = [f"{row[name][0]}/{row[name][1]}" for name in OBJECTS]
        missed = " ".join(name for name, bar in row["bars"].items() if not bar["met"])
        out.add_row(row["method"], f"{row['keep']:g}", *(f"{value:.3f}" for value in values), *objects, missed)
    return out
