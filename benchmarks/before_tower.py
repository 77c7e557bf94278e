"""What answers lose where groups of pixels that repeat are not computed: benchmarks/results/before_tower_<device>.json.

    python -m benchmarks.before_tower --videos 256

The default at 10 %, from features of a vision tower that computed all groups of pixels, half or a quarter of them: as
centres of blocks, with and without held keys, by run length, or at random. The videos are those of the synthetic
suites' test halves.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from vidsieve import registry
from vidsieve.evaluation.evaluate import Plan, evaluate
from vidsieve.evaluation.needles.tiny import BUNDLED
from vidsieve.methods import KCenter, Pixels, RandomGroups, RunLength, Staged

RESULTS = Path(__file__).parent / "results"
KEEP = 0.1
SELECTORS: dict[str, Any] = {
    f"{name}, {share:.0%}": make(share)
    for share in (0.5, 0.25)
    for name, make in {
        "k-center": KCenter,
        "k-center, no held keys": lambda share: KCenter(share, holds_keys=False),
        "run length": RunLength,
        "at random": RandomGroups,
    }.items()
}


def methods() -> dict[str, Any]:
    """The default, after each selector."""
    default = registry.method("vidsieve")
    after = {
        name: lambda keep, selector=selector: Staged({Pixels(): selector, 0: default(keep)})
        for name, selector in SELECTORS.items()
    }
    return {"every group": default, **after}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--videos", type=int, default=256, help="(256)")
    parser.add_argument("--suite", action="append", choices=("needles", "long"), help="(both)")
    parser.add_argument("--out", type=Path, help="(results/before_tower_<device>.json)")
    options = parser.parse_args()
    found: dict[str, Any] = {}
    for suite in options.suite or ("needles", "long"):
        command = f"python -m benchmarks.before_tower {shlex.join(sys.argv[1:])}"
        plan = Plan(str(BUNDLED), "test", options.videos, (KEEP,), methods(), suite=suite, command=command, batch=32)
        found[suite] = evaluate(plan, lambda text: print(text, file=sys.stderr, flush=True))
        rows = {row["method"]: row for row in found[suite]["rows"]}
        for name in ("unreduced", *methods(), "uniform"):
            row = rows[name]
            if row["refused"]:
                print(suite, name, "refused:", row["refused"])
                continue
            right, same = row["accuracy"]["all"], row["agreement"]["all"]["mean"]
            interval = f"({right['low']:.3f} to {right['high']:.3f})"
            print(f"{suite:8} {name:32} {right['mean']:.4f} {interval}, agreement {same:.4f}")
        device = found[suite]["card"]["device"]
    kind = next((word.lower() for word in device.split() if word[0] in "HBA" and any(c.isdigit() for c in word)), "cpu")
    out = options.out or RESULTS / f"before_tower_{kind}.json"
    out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
