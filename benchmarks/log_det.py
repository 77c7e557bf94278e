"""How much volume cheaper selections lose against exact greedy MAP: benchmarks/results/log_det.json.

    python benchmarks/log_det.py

log det of L = diag(r) S diag(r) restricted to the picks, for independent and for video-like features. A log-det can
have either sign, so the ratio reported is that of the volumes, per token: exp((log det - log det exact) / k).
Relevance is uniform in [0.05, 1]; one segment of 784 tokens of 256 features; five seeds.
"""

import json
import math
import platform
from pathlib import Path
from statistics import mean

import torch
from rich.console import Console
from rich.table import Table

import vidsieve
from vidsieve import Prune, VideoTokens
from vidsieve.budget import Proportional
from vidsieve.ops import reference
from vidsieve.relevance import Given
from vidsieve.segment import Whole
from vidsieve.selection import MMR, ConditionalDPP, EvenlySpaced, MaxMin, Random, Selector, TopRelevance

FRAMES, TOKENS, DIM, SEEDS = 4, 196, 256, 5
EXACT = ConditionalDPP()
METHODS: list[Selector] = [MMR(0.25), MMR(0.5), MMR(0.75), MaxMin(), TopRelevance(), EvenlySpaced(), Random()]
RESULTS = Path(__file__).parent / "results" / "log_det.json"


def features(kind: str, seed: int) -> torch.Tensor:
    """(N, D): independent Gaussian tokens, or a still scene with noise around an offset common to all tokens."""
    g = torch.Generator().manual_seed(seed)
    if kind == "independent":
        return torch.randn(FRAMES * TOKENS, DIM, generator=g)
    scene = torch.randn(TOKENS, DIM, generator=g) + 2 * torch.randn(DIM, generator=g)
    return (scene + 0.3 * torch.randn(FRAMES, TOKENS, DIM, generator=g)).reshape(-1, DIM)


def log_det(selector: Selector, x: torch.Tensor, r: torch.Tensor, keep: float) -> tuple[float, int]:
    kept = Prune(keep, Whole(), Proportional(), Given(r), selector).reduce(VideoTokens(x, (TOKENS,) * FRAMES)).kept
    return reference.log_det(x, r, kept), len(kept)


def main() -> None:
    rows = []
    for kind in ("independent", "video-like"):
        for keep in (0.1, 0.25):
            losses: dict[str, list[float]] = {repr(method): [] for method in METHODS}
            for seed in range(SEEDS):
                x = features(kind, seed)
                r = 0.05 + 0.95 * torch.rand(len(x), generator=torch.Generator().manual_seed(seed))
                exact, k = log_det(EXACT, x, r, keep)
                for method in METHODS:
                    losses[repr(method)].append((log_det(method, x, r, keep)[0] - exact) / k)
            for name, loss in losses.items():
                ratios = [math.exp(value) for value in loss]
                rows.append(
                    {"features": kind, "keep": keep, "method": name, "log_det_per_token": round(mean(loss), 4),
                     "volume_ratio": round(mean(ratios), 4), "lowest": round(min(ratios), 4),
                     "highest": round(max(ratios), 4)}
                )  # fmt: skip
    card = {"command": "python benchmarks/log_det.py", "torch": torch.__version__, "vidsieve": vidsieve.__version__,
            "machine": platform.machine(), "tokens": FRAMES * TOKENS, "dim": DIM, "seeds": SEEDS}  # fmt: skip
    RESULTS.write_text(json.dumps({"card": card, "rows": rows}, indent=1) + "\n")
    table = Table("features", "keep", "method", "volume per token against exact", "lowest", "highest")
    for row in rows:
        table.add_row(*(str(row[key]) for key in ("features", "keep", "method", "volume_ratio", "lowest", "highest")))
    Console().print(table)


if __name__ == "__main__":
    main()
