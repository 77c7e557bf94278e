"""Kernels of pixels, of the tower and of picks under NVIDIA's compute-sanitizer: results/sanitizer_<device>.json.

    python -m benchmarks.sanitizer            wants a GPU, and compute-sanitizer of the CUDA toolkit
    python -m benchmarks.sanitizer --once     the kernels alone, without it

Shapes end inside blocks of kernels, rows of a group are of odd widths, and each runs in three precisions. `memcheck`
counts reads and writes outside of what is allocated, `racecheck` those of shared memory that nothing keeps apart. What
the kernels return is looked at only roughly; tests/ops compares it with the reference.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import torch

from vidsieve import ops
from vidsieve.evaluation.card import commit
from vidsieve.ops import definitions as asked
from vidsieve.ops.vision import gate, rotate_

RESULTS = Path(__file__).parent / "results"
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
PIXELS = ((9, 5, 33), (10, 40, 588), (4, 300, 96))  # frames, groups a frame, values a group
ROWS = ((1, 2, 20), (77, 3, 80), (130, 16, 72))  # of a tower: tokens, heads, width
SEGMENTS = ((0, 1, 64, 194), (0, 700), (0, 600, 1300))  # bounds: short and long
TOOLS = {"memcheck": r"ERROR SUMMARY: (\d+) error", "racecheck": r"RACECHECK SUMMARY: (\d+) hazard"}


def pixels(dtype: torch.dtype) -> None:
    """Selections of groups of pixels."""
    for frames, places, width in PIXELS:
        x = torch.randn(frames, places, width, device="cuda").to(dtype)
        total = max(places, frames * places // 4)
        for kept, source, _ in (
            ops.k_center(asked.KCenterProblem(x, total)),
            ops.run_length(asked.RunLengthProblem(x, total)),
            ops.run_length(asked.RunLengthProblem(x, threshold=0.5)),
        ):
            assert 0 <= int(source.min()) <= int(source.max()) < len(kept)


def tower(dtype: torch.dtype) -> None:
    """Rotation and gate of a vision tower."""
    for rows, heads, width in ROWS:
        angle = torch.randn(rows, width, device="cuda")
        rotate_(
            asked.RotaryProblem(torch.randn(rows, 3, heads, width, device="cuda").to(dtype), angle.cos(), angle.sin())
        )
        columns = width + 7
        both = torch.randn(rows, 2 * columns, device="cuda").to(dtype)
        bias = (torch.randn(width, device="cuda").to(dtype), torch.randn(width, device="cuda").to(dtype))
        for given in (None, bias):
            assert gate(asked.GateProblem(both, width, given)).shape == (rows, columns)


def picks(dtype: torch.dtype) -> None:
    """The conditional DPP, with one relevance for all picks and with another for the first."""
    for bounds in SEGMENTS:
        n = bounds[-1]
        offsets = torch.tensor(bounds, device="cuda")
        budget = (offsets.diff() // 8).clamp(min=1)
        x, r = torch.randn(n, 96, device="cuda").to(dtype), torch.rand(n, device="cuda")
        measures = ops.measure(asked.MeasureProblem(x, (n,)))
        longest, total = int(offsets.diff().max()), int(budget.sum())
        problem = asked.GreedyProblem(x, r, offsets, budget, longest, total, measures)
        for head in (None, asked.Head(torch.rand(n, device="cuda"), budget // 3 + 1)):
            assert int((ops.conditional_dpp(problem._replace(head=head)) >= 0).sum()) == total


def once() -> None:
    torch.manual_seed(0)
    for dtype in DTYPES:
        pixels(dtype)
        tower(dtype)
        picks(dtype)
    torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--once", action="store_true", help="run the kernels in this process, without the sanitizer")
    parser.add_argument("--out", type=Path, help="(results/sanitizer_<device>.json)")
    options = parser.parse_args()
    if options.once:
        once()
        return
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    rows = []
    for tool, summary in TOOLS.items():
        command = [sanitizer, "--tool", tool, sys.executable, "-m", "benchmarks.sanitizer", "--once"]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        found = re.search(summary, run.stdout + run.stderr)
        if run.returncode or found is None:
            raise SystemExit(f"{tool} did not come to its end:\n{run.stdout[-2000:]}{run.stderr[-2000:]}")
        rows.append({"tool": tool, "found": int(found[1])})
        print(rows[-1])
    name = torch.cuda.get_device_name()
    versions = {package: version(package) for package in ("torch", "triton")}
    card = {"command": "python -m benchmarks.sanitizer", "commit": commit(), "device": name, **versions}
    out = options.out or RESULTS / f"sanitizer_{name.split()[-1].lower()}.json"
    out.write_text(json.dumps({"card": card, "rows": rows}, indent=1) + "\n")
    if any(row["found"] for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
