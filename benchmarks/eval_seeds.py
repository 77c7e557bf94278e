"""The methods of this library on the synthetic suites, beside the default before and others, three draws.

    python -m benchmarks.eval_seeds --out benchmarks/results/seeds_h200.json
    python -m benchmarks.eval_seeds --videos 32 --method divprune --out out/seeds.json   less, on a CPU

A seed is 128 videos (`--videos`) of `test` that no other seed has, the same for every method. A row has the accuracy
and the recall of each seed, their means by kind of question, the interval of each seed, the kinds at which some seed is
significantly below uniform sampling, and those at which the videos of all seeds together are. Suites and seeds run at
the same time, each in a process of its own, so times mean nothing and none are reported.
"""

import argparse
import json
import math
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import vidsieve
from vidsieve import registry
from vidsieve.evaluation.evaluate import Plan, evaluate
from vidsieve.evaluation.needles.tiny import BUNDLED
from vidsieve.evaluation.statistics import holm
from vidsieve.methods import ConditionalDPP, MarginalGain, Novelty, Prune, Within

KEEPS = (0.25, 0.1, 0.05, 0.02)
OWN = ("vidsieve", "distinct", "moments")
OTHERS = ("divprune", "evs", "vidcom2", "visionzip", "dart", "flashvid")
SUITES = ("needles", "long")
MEASURES = ("accuracy", "recall")


def previous(keep: float) -> vidsieve.Reducer:
    """The default until it was tried on natural video."""
    return Prune(keep, Within(), MarginalGain(0), Novelty(), ConditionalDPP())


def one(suite: str, split: str, seed: int, videos: int, others: tuple[str, ...] = OTHERS) -> dict[str, Any]:
    """All rows of one draw of videos."""
    methods = {name: registry.method(name) for name in OWN} | {"previous": previous}
    methods |= {name: registry.method(name) for name in others}
    plan = Plan(str(BUNDLED), split, videos, KEEPS, methods, checked=1, timed=1, suite=suite, first=seed * videos)
    return evaluate(plan)


def combine(seeds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a method and keep ratio: each seed's figures, their mean, and how they stand against uniform sampling."""
    rows = []
    for same in zip(*(seed["rows"] for seed in seeds), strict=True):
        row: dict[str, Any] = {name: same[0][name] for name in ("method", "keep", "reducer", "refused")}
        if row["refused"] is None:
            for measure in MEASURES:
                of = [seed[measure]["all"]["mean"] for seed in same]
                if None not in of:
                    kinds = {kind: mean([seed[measure][kind]["mean"] for seed in same]) for kind in same[0][measure]}
                    row[measure] = {"mean": mean(of), "seeds": of, "kinds": kinds}
            row["interval"] = [[seed["accuracy"]["all"][end] for end in ("low", "high")] for seed in same]
            against = [seed["against"].get("uniform", {}) for seed in same]
            row["below_uniform"] = sorted(
                {
                    kind
                    for seed in against
                    for kind, found in seed.items()
                    if kind != "all" and found["p"] < 0.05 and found["mean"] < 0
                }
            )
            row["all_below_uniform"] = below_in_all(against)
        rows.append(row)
    return rows


def below_in_all(against: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """The kinds at which the videos of all seeds are significantly below, by the sign test, as Holm adjusts it."""
    kinds = [kind for kind in against[0] if kind != "all"]
    counts = {kind: [sum(seed[kind][side] for seed in against) for side in ("better", "worse")] for kind in kinds}
    p = {kind: sign_p(*counts[kind]) for kind in kinds}
    adjusted = dict(zip(kinds, holm(torch.tensor(list(p.values()), dtype=torch.float64)).tolist(), strict=True))
    return {
        kind: {"better": better, "worse": worse, "p": round(adjusted[kind], 6)}
        for kind, (better, worse) in counts.items()
        if worse > better and adjusted[kind] < 0.05
    }


def sign_p(better: int, worse: int) -> float:
    """Two-sided p of so many signs each way, were either as likely."""
    many, fewer = better + worse, min(better, worse)
    return min(1.0, 2 * sum(math.comb(many, n) for n in range(fewer + 1)) / 2**many)


def mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(sum(known) / len(known), 6) if known else None


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--split", choices=("dev", "test"), default="test")
    parser.add_argument("--videos", type=int, default=128, help="of each seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--method", action="append", dest="others", help="beside the default; repeatable (six)")
    parser.add_argument("--suite", choices=SUITES, help="run one draw in this process")
    parser.add_argument("--seed", type=int, default=0, help="with --suite")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    others = tuple(options.others or OTHERS)
    if options.suite:
        found = one(options.suite, options.split, options.seed, options.videos, others)
        options.out.write_text(json.dumps(found))
        return
    command = "python -m benchmarks.eval_seeds " + shlex.join(sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        running = []
        for suite in SUITES:
            for seed in range(options.seeds):
                out = Path(folder) / f"{suite}_{seed}.json"
                call = [sys.executable, "-m", "benchmarks.eval_seeds", "--suite", suite, "--seed", str(seed)]
                call += ["--split", options.split, "--videos", str(options.videos), "--out", str(out)]
                call += [word for name in others for word in ("--method", name)]
                running.append((suite, out, subprocess.Popen(call)))
        failed = [process.wait() for *_, process in running]  # all of them, before the folder goes
        if any(failed):
            raise SystemExit("a draw failed; see above")
        found = {suite: [json.loads(out.read_text()) for name, out, _ in running if name == suite] for suite in SUITES}
    card = {**found["needles"][0]["card"], "command": command, "seeds": options.seeds}
    for name in ("suite", "questions", "size", "tokens", "chance", "first"):
        card.pop(name, None)
    report = {"card": card, **{suite: combine(seeds) for suite, seeds in found.items()}}
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
