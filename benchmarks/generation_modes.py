"""Every mode of `generate` on a tiny model of each type: benchmarks/results/generation_modes_cpu.json.

    python -m benchmarks.generation_modes --out benchmarks/results/generation_modes_cpu.json
    python -m benchmarks.generation_modes --table benchmarks/results/generation_modes_cpu.json

The first writes a row for each mode of each type that the installed release of transformers has, and leaves the rows of
other releases in the file. What a row says: tests/engines/hf/generation_modes.py. With --device cuda the models are on
a GPU, as offloaded caches need. The second prints the table of docs/attached.md.
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

CUT = 120  # letters of a message


def rows_of(families: list[str], device: str) -> list[dict[str, str]]:
    from tests.engines.hf.generation_modes import MODES, Case

    rows = []
    for family in families:
        case, began = Case(family, device), time.monotonic()
        for mode in MODES:
            found = {"identity": case.identity(mode), "reduced": case.reduced(mode)}
            stock = case.stock(mode)
            error = {"stock": stock[:CUT]} if isinstance(stock, str) else {}
            found = {column: said[:CUT] for column, said in found.items()}
            rows.append({"release": transformers.__version__, "type": family, "mode": mode, **error, **found})
        odd = Counter(said for row in rows if row["type"] == family for said in (row["identity"], row["reduced"]))
        print(f"{family}: {time.monotonic() - began:.0f} s, {dict(odd)}", file=sys.stderr, flush=True)
    return rows


def meaning(said: str) -> str:
    return said.partition(":")[0]


def tally(rows: list[dict[str, str]], column: str) -> str:
    """Count what a column says: "same 88, same error 11"."""
    counts = Counter(meaning(row[column]) for row in rows)
    return ", ".join(f"{said} {counts[said]}" for said in sorted(counts, key=lambda said: (-counts[said], said)))


def table(found: dict[str, Any]) -> str:
    """Make the table of docs/attached.md."""
    rows: list[dict[str, str]] = found["rows"]
    lines = ["| mode | every token kept | half of them |", "| --- | --- | --- |"]
    for mode in dict.fromkeys(row["mode"] for row in rows):
        these = [row for row in rows if row["mode"] == mode]
        lines.append(f"| {mode} | {tally(these, 'identity')} | {tally(these, 'reduced')} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--types", nargs="+", help="instead of every type that the release has")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    if args.table:
        print(table(json.loads(args.table.read_text())), end="")
        return
    make_importable()
    from tests.engines.hf.generation_modes import FAMILIES

    transformers.logging.set_verbosity_error()
    card = {
        "command": f"python -m benchmarks.generation_modes --out {args.out}",
        "commit": commit(),
        "torch": version("torch"),
        "python": platform.python_version(),
        "device": processor() if args.device == "cpu" else torch.cuda.get_device_name(),
    }
    began = time.monotonic()
    rows = rows_of(args.types or FAMILIES, args.device)
    card["seconds"] = round(time.monotonic() - began)
    if args.out is None:
        for row in rows:
            print(json.dumps(row))
        return
    release = transformers.__version__
    found = json.loads(args.out.read_text()) if args.out.exists() else {"card": {}, "rows": []}
    found["card"] = dict(sorted({**found["card"], release: card}.items()))
    found["rows"] = [row for row in found["rows"] if row["release"] != release] + rows
    found["rows"].sort(key=lambda row: row["release"])
    lines = ",\n".join(f"  {json.dumps(row)}" for row in found["rows"])
    args.out.write_text(f'{{"card": {json.dumps(found["card"], indent=1)},\n "rows": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
