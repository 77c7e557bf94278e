"""The prefill benchmark runs at small shapes, and so does its figure."""

import json
import runpy
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
SMALL = "--frames 8 --tokens 24 --layers 8 --hidden 64 --heads 4 --kv-heads 2 --intermediate 128 --rounds 1"


def test_it_measures_every_variant_and_draws_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "prefill_small.json"

    def run(script: str, *arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        runpy.run_path(str(BENCHMARKS / script), run_name="__main__")

    run("prefill.py", *SMALL.split(), "--device", "cpu", "--out", str(out))
    found = json.loads(out.read_text())
    shares = {row["variant"]: row["flops_share"] for row in found["rows"]}
    assert not any(row["wrong"] for row in found["rows"])
    assert shares["full"] == 1
    assert shares["framefusion-cost-30"] == pytest.approx(0.3, rel=0.01)
    assert all(share < 1 for name, share in shares.items() if name != "full")
    assert all(row["kv_bytes"] < found["rows"][0]["kv_bytes"] for row in found["rows"][1:])
    run("plot.py", str(out), "--out", str(tmp_path))
    assert (tmp_path / "prefill_small.png").stat().st_size > 1000
