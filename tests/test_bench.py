"""What is timed is right, and what is wrong is not timed. No test asserts a time."""

import json
from pathlib import Path

import pytest
import torch

from tests.synthetic import video_like
from vidsieve import baselines, bench, cli
from vidsieve._regret import regret, relevance64, unit64
from vidsieve.ops import reference

TINY = bench.Load(frames=8, tokens=12, dim=48, dtype=torch.float32)
KEYS = {"case", "variant", "median_ms", "q20_ms", "q80_ms", "peak_bytes", "regret"}


def test_every_case_has_its_rows() -> None:
    found = bench.bench(TINY, list(bench.CASES), rounds=2)
    assert {"command", "device", "dtype", "feature_bytes", "torch", "vidsieve"} <= found["card"].keys()
    assert all(row.keys() == KEYS for row in found["rows"])
    for case in bench.CASES:
        variants = {row["variant"] for row in found["rows"] if row["case"] == case}
        assert {"perframe-10": {"eager", "guide-loop"}, "global-5": {"eager", "cdpruner-loop"}}.get(
            case, set()
        ) <= variants
    for row in found["rows"]:
        assert row["q20_ms"] <= row["median_ms"] <= row["q80_ms"]
        assert row["regret"] is None or row["regret"] <= bench.REGRET


def test_wrong_picks_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = baselines.guide_loop
    monkeypatch.setattr(baselines, "guide_loop", lambda *args: right(*args).flip(0))
    rows = {row["variant"]: row for row in bench.bench(TINY, ["perframe-50"], rounds=2)["rows"]}
    assert rows["guide-loop"]["median_ms"] is None
    assert rows["guide-loop"]["regret"] > bench.REGRET
    assert rows["eager"]["median_ms"] > 0


def test_the_loops_pick_what_the_reference_picks() -> None:
    x, prompt = video_like(3, 20, 64, seed=0, motion=0.5), video_like(1, 5, 64, seed=7)
    bounds, budgets = [0, 20, 45, 60], [4, 7, 3]
    r = relevance64(x, prompt)
    order = bench._order_of(baselines.guide_loop(x, prompt, bounds, budgets), bounds, 60)
    assert torch.equal(order.int(), reference.conditional_dpp(x, r, torch.tensor(bounds), torch.tensor(budgets)))
    order = bench._order_of(baselines.cdpruner_loop(x, prompt, 12), [0, 60], 60)
    assert torch.equal(order.int(), reference.conditional_dpp(x, r, torch.tensor([0, 60]), torch.tensor([12])))


def test_regret_is_the_loss_of_a_worse_pick() -> None:
    x = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    r = torch.ones(3, dtype=torch.float64)
    assert regret(unit64(x), r, [0, 3], torch.tensor([0, -1, 1])) == 0
    assert regret(unit64(x), r, [0, 3], torch.tensor([0, 1, -1])) == pytest.approx(1 - 0.36)


def test_the_command_writes_what_it_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "ops.json"
    size = ["--frames", "4", "--tokens", "9", "--dim", "16", "--rounds", "1"]
    assert cli.main(["bench", "ops", *size, "--case", "fast-10", "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(out.read_text())
    assert cli.main(["bench", "ops", *size, "--case", "nonsense"]) == 1
    assert "no case 'nonsense'; there are perframe-10" in capsys.readouterr().err
