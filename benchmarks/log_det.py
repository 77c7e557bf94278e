"""How much volume cheaper selections lose against exact greedy MAP: benchmarks/results/log_det.json.

    python benchmarks/log_det.py

log det of L = diag(r) S diag(r) restricted to the picks, for independent and for video-like features. A log-det can
have either sign, so the ratio reported is that of the volumes, per token: exp((log det - log det exact) / k).
Relevance is uniform in [0.05, 1]; one segment of 784 tokens of 256 features; five seeds. Sketches are judged at 3 584
features, where there is something to leave out.
"""

import json
import math
import platform
from itertools import product
from pathlib import Path
from statistics import mean

import torch
from rich.console import Console
from rich.table import Table

import vidsieve
from vidsieve import Prune, VideoTokens
from vidsieve.methods.budget import Proportional
from vidsieve.methods.relevance import Given
from vidsieve.methods.segment import Whole
from vidsieve.methods.selection import (
    MMR,
    ConditionalDPP,
    EvenlySpaced,
    LowRankDPP,
    MaxMin,
    Random,
    Selector,
    TopRelevance,
)
from vidsieve.ops.greedy import reference

FRAMES, TOKENS, SEEDS = 4, 196, 5
EXACT = ConditionalDPP()
METHODS: dict[int, list[Selector]] = {  # by features
    256: [MMR(0.25), MMR(0.5), MMR(0.75), MaxMin(), TopRelevance(), EvenlySpaced(), Random()],
    3584: [LowRankDPP(rank, above=0) for rank in (64, 128, 256, 512, 1024)],
}
RESULTS = Path(__file__).parent / "results" / "log_det.json"


def features(kind: str, seed: int, dim: int) -> torch.Tensor:
    """(N, D): independent Gaussian tokens, or a still scene with noise around an offset common to all tokens."""
    g = torch.Generator().manual_seed(seed)
    if kind == "independent":
        return torch.randn(FRAMES * TOKENS, dim, generator=g)
    scene = torch.randn(TOKENS, dim, generator=g) + 2 * torch.randn(dim, generator=g)
    return (scene + 0.3 * torch.randn(FRAMES, TOKENS, dim, generator=g)).reshape(-1, dim)


def log_det(selector: Selector, x: torch.Tensor, r: torch.Tensor, keep: float) -> tuple[float, int]:
    kept = Prune(keep, Whole(), Proportional(), Given(r), selector).reduce(VideoTokens(x, (TOKENS,) * FRAMES)).kept
    return reference.log_det(x, r, kept), len(kept)


def main() -> None:
    rows = []
    for (dim, methods), kind, keep in product(METHODS.items(), ("independent", "video-like"), (0.1, 0.25)):
        losses: dict[str, list[float]] = {repr(method): [] for method in methods}
        for seed in range(SEEDS):
            x = features(kind, seed, dim)
            r = 0.05 + 0.95 * torch.rand(len(x), generator=torch.Generator().manual_seed(seed))
            exact, k = log_det(EXACT, x, r, keep)
            for method in methods:
                losses[repr(method)].append((log_det(method, x, r, keep)[0] - exact) / k)
        for name, loss in losses.items():
            ratios = [math.exp(value) for value in loss]
            rows.append(
                {"dim": dim, "features": kind, "keep": keep, "method": name, "log_det_per_token": round(mean(loss), 4),
                 "volume_ratio": round(mean(ratios), 4), "lowest": round(min(ratios), 4),
                 "highest": round(max(ratios), 4)}
            )  # fmt: skip
    card = {"command": "python benchmarks/log_det.py", "torch": torch.__version__, "vidsieve": vidsieve.__version__,
            "machine": platform.machine(), "tokens": FRAMES * TOKENS, "seeds": SEEDS}  # fmt: skip
    RESULTS.write_text(json.dumps({"card": card, "rows": rows}, indent=1) + "\n")
    table = Table("dim", "features", "keep", "method", "volume per token against exact", "lowest", "highest")
    columns = "dim", "features", "keep", "method", "volume_ratio", "lowest", "highest"
    for row in rows:
        table.add_row(*(str(row[column]) for column in columns))
    Console().print(table)


if __name__ == "__main__":
    main()
