"""The default and the one before it on natural shots: `python -m benchmarks.natural_defaults --out FILE`.

Both halves of the suite, at 10 and 5 %; the rows are those of `vidsieve eval --suite natural` (docs/natural.md).
"""

import argparse
import json
import sys
from pathlib import Path

from benchmarks.eval_seeds import previous

from vidsieve import registry
from vidsieve.evaluation.natural import NaturalPlan, evaluate_natural

KEEPS = (0.1, 0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    command = "python -m benchmarks.natural_defaults " + " ".join(sys.argv[1:])
    methods = {"vidsieve": registry.method("vidsieve"), "previous": previous}
    found = {
        split: evaluate_natural(NaturalPlan(split, KEEPS, methods, command=command))  # type: ignore[arg-type]
        for split in ("dev", "test")
    }
    options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
