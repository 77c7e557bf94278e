"""bench.py, baselines.py: what is timed is right, and what is wrong is not timed. No test asserts a time."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from vidsieve import registry
from vidsieve.cli import main
from vidsieve.evaluation import baselines, bench
from vidsieve.evaluation.regret import regret, relevance64, unit64
from vidsieve.ops import GreedyProblem, Measures, MMRProblem
from vidsieve.ops.greedy import reference
from vidsieve.ops.limits import TIE

TINY = bench.Load(frames=16, tokens=12, dim=160, dtype=torch.float32)
COLUMNS = {"case", "variant", "median_ms", "q20_ms", "q80_ms", "peak_bytes", "regret"}


@pytest.fixture(scope="module")
def found() -> dict:
    return bench.bench(TINY, bench.CASES, rounds=2)


def test_every_case_has_a_row_for_every_variant_that_can_run(found: dict) -> None:
    for case in bench.CASES:
        variants = [row["variant"] for row in found["rows"] if row["case"] == case]
        expected = {"eager"}
        if case != "batch8-10":
            expected.add("bmm")
            if case not in ("fast-10", "default-10"):  # the loops know the determinant and the prompt only
                expected |= {"cdpruner-loop"} if case.startswith("global") else {"guide-loop", "lean-loop"}
        assert len(variants) == len(set(variants))
        assert set(variants) == expected


def test_rows_follow_the_schema(found: dict) -> None:
    assert json.loads(json.dumps(found)) == found
    assert {"device", "torch", "triton", "vidsieve", "commit", "dtype", "feature_bytes"} <= set(found["card"])
    for row in found["rows"]:
        assert set(row) == COLUMNS
        assert 0 < row["q20_ms"] <= row["median_ms"] <= row["q80_ms"]
        assert row["variant"] == "bmm" or 0 <= row["regret"] <= bench.REGRET


def test_a_variant_that_is_wrong_has_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rich = pytest.importorskip("rich.console")
    right = baselines.guide_loop

    def wrong(*arguments: object) -> torch.Tensor:
        picks = right(*arguments).clone()  # type: ignore[arg-type]
        others = [i for i in range(TINY.tokens) if i not in picks.tolist()]
        picks[0] = others[-1]
        return picks

    monkeypatch.setattr(baselines, "guide_loop", wrong)
    found = bench.bench(TINY, {"perframe-25": bench.CASES["perframe-25"]}, rounds=2)
    (row,) = (row for row in found["rows"] if row["variant"] == "guide-loop")
    assert row["regret"] > bench.REGRET
    assert row["median_ms"] is row["q20_ms"] is row["q80_ms"] is row["peak_bytes"] is None
    console = rich.Console(width=120)
    with console.capture() as printed:
        console.print(bench.table(found))
    assert "wrong picks" in printed.get()


@pytest.mark.parametrize("segments", [8, 2, 1])
def test_the_loops_pick_what_the_reference_picks(segments: int) -> None:
    x = TINY.features(8, seed=3)
    prompt = torch.randn(8, TINY.dim, generator=torch.Generator().manual_seed(0))
    bounds = list(range(0, 97, 96 // segments))
    budgets = [24 // segments] * segments
    measures = Measures(x.norm(dim=-1), torch.zeros(96))
    given = x, relevance64(x, prompt), torch.tensor(bounds), torch.tensor(budgets)
    order = reference.conditional_dpp(GreedyProblem(*given, 96 // segments, 24, measures))
    expected = [a + int((order[a:b] == step).nonzero()) for a, b in pairwise(bounds) for step in range(budgets[0])]
    assert baselines.guide_loop(x, prompt, bounds, budgets).tolist() == expected
    assert baselines.lean_loop(x, prompt, bounds, budgets).tolist() == expected
    if segments == 1:
        assert baselines.cdpruner_loop(x, prompt, 24).tolist() == expected


def test_under_flat_relevance_the_loops_lose_nothing() -> None:
    """Every first pick ties, and the loops break ties by rounding: judged by regret, not by index."""
    x, r = TINY.features(8, seed=3), torch.ones(96, dtype=torch.float64)
    for bounds, picks in (
        ([0, 48, 96], baselines.guide_loop(x, None, [0, 48, 96], [12, 12])),
        ([0, 96], baselines.cdpruner_loop(x, None, 24)),
    ):
        assert regret(unit64(x), r, bounds, bench._order_of(picks, bounds, 96)) <= bench.REGRET


def test_regret_is_nothing_on_the_greedy_path_and_the_gap_off_it() -> None:
    x = TINY.features(8, seed=1)
    unit, r = unit64(x), torch.rand(96, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    offsets, budget = torch.tensor([0, 48, 96]), torch.tensor([9, 0])
    problem = GreedyProblem(x, r, offsets, budget, 48, 9, Measures(x.norm(dim=-1), torch.zeros(96)))
    dpp, mmr = reference.conditional_dpp(problem), reference.mmr(MMRProblem(problem, 0.5))
    for order, trade, gain in ((dpp, None, r[:48] ** 2), (mmr, 0.5, 0.5 * r[:48] + 0.5)):
        assert regret(unit, r, offsets.tolist(), order, trade) <= 2 * TIE
        swapped = order.clone()
        first, open_ = int((order == 0).nonzero()), int((order[:48] < 0).nonzero()[0])
        swapped[first], swapped[open_] = -1, 0
        assert regret(unit, r, offsets.tolist(), swapped, trade) >= float(gain.max() - gain[open_]) - 1e-9


def test_the_command_writes_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    out = tmp_path / "ops.json"
    shape = ["--frames", "8", "--tokens", "8", "--dim", "64", "--device", "cpu", "--rounds", "2"]
    chosen = ["--case", "perframe-50", "--relevance", "flat", "--dtype", "float32", "--out", str(out)]
    assert main.main(["bench", "ops", *shape, *chosen]) == 0
    assert {row["case"] for row in json.loads(out.read_text())["rows"]} == {"perframe-50"}
    assert "guide-loop" in capsys.readouterr().out
    assert main.main(["bench", "ops", *shape, "--keep", "0.3", "--segments", "4", "--out", str(out)]) == 0
    assert {row["case"] for row in json.loads(out.read_text())["rows"]} == {"4-frame-segments-keep-0.3"}
    for mistake, says in ((["--segments", "4"], "--keep"), (["--case", "perframe-11"], "perframe-10")):
        with pytest.raises(SystemExit) as stopped:
            main.main(["bench", "ops", *shape, *mistake])
        assert stopped.value.code == 2
        assert says in capsys.readouterr().err


def test_every_named_method_can_be_timed(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "methods.py"
    sizes = ("--frames", "4", "--tokens", "16", "--dim", "8", "--rounds", "2", "--threads", "1")
    command = [sys.executable, str(script), *sizes, "--out", str(tmp_path / "found.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert [row["method"] for row in found["rows"]] == list(registry.methods(inside=False))
    for row in found["rows"]:
        assert row["runs"] == 2
        assert row["ms"]["p20"] <= row["ms"]["median"] <= row["ms"]["p80"]
    assert found["card"]["threads"] == 1
