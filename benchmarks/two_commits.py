"""Prefill and reductions of two checkouts in turns, on one machine in one run: whether a change cost any time.

    git worktree add ../before COMMIT
    python benchmarks/two_commits.py ../before . --out benchmarks/results/two_commits_h200.json

Each checkout runs its own code, and they take turns, so that a busy host is busy for both. The figures are those of
`benchmarks/prefill.py` and `vidsieve bench ops`, one row a run; compare rows of one `what` and `variant`. The default
differs between commits: what `before-10` was before 2026-11-28 is `novelty-10` after it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PREFILL = ("overhead_q20_ms", "overhead_ms", "overhead_q80_ms", "median_ms")
OPS = ("q20_ms", "median_ms", "q80_ms", "regret")


def run(tree: Path, *command: str) -> dict[str, Any]:
    """What `command`, a Python command that takes `--out`, writes when the code of `tree` runs it."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        paths = os.pathsep.join(filter(None, (str(tree / "src"), os.environ.get("PYTHONPATH", ""))))
        environment = {**os.environ, "PYTHONPATH": paths}
        subprocess.run([sys.executable, *command, "--out", str(out)], cwd=tree, env=environment, check=True, stdout=2)
        found: dict[str, Any] = json.loads(out.read_text())
    return found


def commit(tree: Path) -> str:
    """The commit that is checked out in `tree`, or the name of its folder where it is no checkout."""
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=tree, capture_output=True, text=True)
    return found.stdout.strip() or tree.name


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--commits", nargs=2, help="their names, where they are no checkouts of git")
    parser.add_argument("--turns", type=int, default=2, help="(2)")
    parser.add_argument("--segments", type=int, nargs="*", default=[1, 8], help="frames in a segment, of ops (1 8)")
    parser.add_argument("--no-prefill", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    trees = [tree.resolve() for tree in (options.before, options.after)]
    names = options.commits or [commit(tree) for tree in trees]
    rows, card = [], {}
    for turn in range(options.turns):
        for tree, name in zip(trees, names, strict=True):
            for frames in options.segments:
                bench = ("bench", "ops", "--keep", "0.1", "--segments", str(frames), "--rounds", "40")
                found = run(tree, "-m", "vidsieve", *bench)
                card = {"card": found["card"]}
                for row in found["rows"]:
                    figures = {key: row[key] for key in OPS}
                    rows.append(
                        {"what": row["case"], "variant": row["variant"], "commit": name, "turn": turn} | figures
                    )
            if not options.no_prefill:
                for row in run(tree, "benchmarks/prefill.py")["rows"]:
                    figures = {key: row[key] for key in PREFILL if key in row}
                    rows.append({"what": "prefill", "variant": row["variant"], "commit": name, "turn": turn} | figures)
    kept = ("device", "threads", "torch", "triton")
    where = {key: value for key, value in card.get("card", {}).items() if key in kept}
    command = "python benchmarks/two_commits.py BEFORE AFTER"
    found = {"card": {"command": command, "before": names[0], "after": names[1], **where}, "rows": rows}
    options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
