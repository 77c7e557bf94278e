"""Every mode of `generate` on a tiny model of each type: benchmarks/results/generation_modes_<release>.json.

    python -m benchmarks.generation_modes
    python -m benchmarks.generation_modes --types qwen2_5_vl --modes "static cache"        some rows of the file anew
    python -m benchmarks.generation_modes --table benchmarks/results/generation_modes_*    the table of docs/attached.md

The release is that of the transformers that is installed. A row is one mode of one type; what it says stands in
tests/engines/hf/generation_modes.py. With --device cuda the models are on a GPU, as offloaded caches need.
"""

import argparse
import json
import platform
import sys
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers

from vidsieve.engines.torchvision import make_importable
from vidsieve.evaluation.card import commit, processor

RESULTS = Path(__file__).parent / "results"
CUT = 120  # letters of a message


def rows_of(family: str, modes: list[str], device: str) -> list[dict[str, str]]:
    """Run these modes of a type."""
    from tests.engines.hf.generation_modes import Case

    case, rows = Case(family, device), []
    for mode in modes:
        found = {"identity": case.identity(mode), "reduced": case.reduced(mode)}
        stock = case.stock(mode)
        if isinstance(stock, str):
            found["stock"] = stock
        found = {column: said[:CUT] for column, said in found.items()}
        rows.append({"release": transformers.__version__, "type": family, "mode": mode, **found})
    return rows


def meaning(said: str) -> str:
    return said.partition(":")[0]


def tally(rows: list[dict[str, str]], column: str) -> str:
    """Count what a column says: "same 88, same error 11"."""
    counts = Counter(meaning(row[column]) for row in rows)
    return ", ".join(f"{said} {counts[said]}" for said in sorted(counts, key=lambda said: (-counts[said], said)))


def table(rows: list[dict[str, str]]) -> str:
    """Make the table of docs/attached.md of the rows of all releases."""
    of = {one: len({row[one] for row in rows}) for one in ("type", "release", "mode")}
    pairs = len({(row["type"], row["release"]) for row in rows})
    lines = [
        f"{of['mode']} modes, {of['type']} types, {of['release']} releases: {pairs} pairs of a type and a release."
    ]
    lines += ["", "| mode | every token kept | half of them |", "| --- | --- | --- |"]
    for mode in dict.fromkeys(row["mode"] for row in rows):
        these = [row for row in rows if row["mode"] == mode]
        lines.append(f"| {mode} | {tally(these, 'identity')} | {tally(these, 'reduced')} |")
    return "\n".join(lines) + "\n"


def read(paths: list[Path]) -> list[dict[str, str]]:
    return [row for path in sorted(paths) for row in json.loads(path.read_text())["rows"]]


def write(path: Path, card: dict[str, Any], rows: list[dict[str, str]]) -> None:
    """Write `rows` in place of those of the same types and modes that the file has."""
    anew = {(row["type"], row["mode"]) for row in rows}
    before = read([path]) if path.exists() else []
    rows = [row for row in before if (row["type"], row["mode"]) not in anew] + rows
    rows.sort(key=lambda row: row["type"])
    lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    path.write_text(f'{{"card": {json.dumps(card, indent=1)},\n "rows": [\n{lines}\n]}}\n')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", nargs="+", help="instead of every type that the release has")
    parser.add_argument("--modes", nargs="+", help="instead of every mode")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=RESULTS / f"generation_modes_{transformers.__version__}.json")
    parser.add_argument("--table", nargs="+", type=Path)
    args = parser.parse_args()
    if args.table:
        print(table(read(args.table)), end="")
        return
    make_importable()
    from tests.engines.hf.generation_modes import FAMILIES, MODES

    transformers.logging.set_verbosity_error()
    card = {
        "command": "python -m benchmarks.generation_modes",
        "commit": commit(),
        "versions": {name: version(name) for name in ("transformers", "torch")},
        "python": platform.python_version(),
        "device": processor() if args.device == "cpu" else torch.cuda.get_device_name(),
    }
    for family in args.types or FAMILIES:
        began = time.monotonic()
        rows = rows_of(family, args.modes or list(MODES), args.device)
        write(args.out, card, rows)
        said = Counter(row[column] for row in rows for column in ("identity", "reduced"))
        print(f"{family}: {time.monotonic() - began:.0f} s, {dict(said)}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
