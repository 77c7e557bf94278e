"""benchmarks/train_tiny.py: a broken-off run goes on as if nothing had happened, and what it counts is right."""

import json
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from benchmarks import train_tiny
from benchmarks.tiny_run import KEEPS, Run, Scale, _place_in_group, by_kind, drop
from benchmarks.train_tiny import guess, train

from tests.evaluation.needles.small import LONG, SIZE, TEXT, VISION
from vidsieve.engines.hf.loading import load
from vidsieve.evaluation.needles import CHANCES, KINDS, PLAN, Size, generate, recall
from vidsieve.evaluation.needles.packed import fast

SCALE = Scale(((0.5, (Size(8, 8, plain=True),)), (1.0, (SIZE,))), TEXT, VISION, batch=4)
BOTH = Scale(((1.0, (SIZE, LONG, LONG)),), TEXT, VISION, batch=8)


def _steps(run: Run, count: int) -> list[float]:
    with fast(run.model):
        return [float(run.step(0.5, lambda name: nullcontext())) for _ in range(count)]


def _run(**state: Any) -> Run:
    run = Run(SCALE, 0, torch.device("cpu"))
    run.state.update(state)
    return run


def test_the_loss_falls_and_a_restored_run_goes_on(tmp_path: Path) -> None:
    run = _run()
    losses = _steps(run, 12)
    assert losses[-1] < losses[0] - 0.3
    run.keep_state(tmp_path / "state.pt")
    again = _run()
    again.restore(tmp_path / "state.pt")
    assert again.state == run.state
    # The moments are kept in bf16: close, not the same.
    for here, there in zip(_steps(run, 3), _steps(again, 3), strict=True):
        assert there == pytest.approx(here, abs=5e-3)


def test_two_runs_of_a_seed_are_alike() -> None:
    assert _steps(_run(), 2) == _steps(_run(), 2)


def test_the_curriculum_ends_with_the_videos_that_count() -> None:
    run = _run()
    assert run.size(0.4) == Size(8, 8, plain=True)
    assert run.size(0.6) == run.size(1.0) == SIZE
    assert run.scale.sizes == (SIZE,)
    run.state["phase"] = 1
    assert run.size(0.0) == SIZE


def test_both_suites_take_turns_with_every_share_of_the_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(BOTH, 0, torch.device("cpu"))
    assert run.scale.sizes == (SIZE, LONG)
    assert (run.scale.videos(SIZE), run.scale.videos(LONG)) == (8, 2)  # of four times the tokens
    seen = []
    monkeypatch.setattr(run, "forward", lambda size, frames, questions, keep: seen.append((size, keep)) or _loss(run))
    run.state["phase"] = 1
    _steps(run, 3 * len(KEEPS))
    assert [keep for size, keep in seen if size == SIZE] == list(KEEPS)
    assert [keep for size, keep in seen if size == LONG] == [keep for keep in KEEPS for _ in range(2)]
    assert run.state["videos"] == len(KEEPS) * (8 + 2 + 2)


def _loss(run: Run) -> torch.Tensor:
    return sum(parameter.sum() for parameter in run.model.parameters()) * 0.0  # type: ignore[return-value]


def test_a_run_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    first = Run(BOTH, 0, torch.device("cpu"))
    first.save(tmp_path)
    again = Run(BOTH, 1, torch.device("cpu"), start=tmp_path)
    for here, there in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(here.to(torch.bfloat16), there.to(torch.bfloat16))
    losses = _steps(again, 12)
    assert losses[9] < losses[0] - 0.3  # of `needles`
    assert losses[10] < losses[1] - 0.3  # of `long`


def test_no_video_comes_twice() -> None:
    run = _run()
    first = run.videos(SIZE).frames
    run.state["step"] = 1
    assert not torch.equal(first[0], run.videos(SIZE).frames[0])
    assert torch.equal(run.videos(SIZE).frames, generate("train", range(4, 8), SIZE).frames)


@pytest.mark.parametrize("keep", [0.1, 0.4])
def test_dropping_knows_what_can_still_be_answered(keep: float) -> None:
    evidence = generate("train", range(8), SIZE).questions.evidence
    kept, answerable = drop(torch.randn(8, SIZE.tokens, 16), evidence, keep, 0)
    assert kept.shape == (8, round(keep * SIZE.tokens))
    assert (kept.diff(dim=1) > 0).all()
    mask = torch.zeros(8, SIZE.tokens, dtype=torch.bool).scatter_(1, kept, True)
    found = recall(evidence, mask).nan_to_num(1.0)
    assert torch.equal(answerable == 1, found == 1)
    assert answerable[1::2].mean() > answerable[::2].mean()


def test_the_first_of_a_kind_come_first() -> None:
    group = torch.randint(5, (3, 40))
    order = torch.rand(3, 40)
    place = _place_in_group(group, order)
    for row in range(3):
        for at in range(40):
            before = (group[row] == group[row, at]) & (order[row] < order[row, at])
            assert place[row, at] == before.sum()


def test_a_frozen_tower_stays_and_the_language_model_learns(tmp_path: Path) -> None:
    _run().save(tmp_path)
    run = Run(SCALE, 0, torch.device("cpu"), start=tmp_path, freeze_tower=True)
    run.state["phase"] = 1
    before = {name: x.clone() for name, x in run.model.named_parameters()}
    _steps(run, 3)
    for name, x in run.model.named_parameters():
        assert torch.equal(x, before[name]) == ("visual" in name), name


def test_a_run_in_its_second_phase_learns_too() -> None:
    losses = _steps(_run(phase=1), 8)
    assert all(math.isfinite(loss) for loss in losses)


def test_what_words_alone_give_is_chance() -> None:
    short = CHANCES["needles"] | {"cuts": 1 / 2}  # two scenes at most
    chance = {SIZE: short, LONG: CHANCES["long"]}
    for size in chance:
        best = guess(size, torch.device("cpu"), fit=4000, count=1000)
        for kind in CHANCES[size.suite]:
            assert best[kind] < chance[size][kind] + 0.07, kind


@pytest.mark.parametrize("keep", [0.0, 0.25, 1.0])
def test_accuracy_counts_every_kind(keep: float) -> None:
    run = _run()
    with fast(run.model):
        found = run.accuracy("test", 6, keep)
    assert list(found) == [*KINDS, "mean"]
    assert all(0 <= share <= 1 for share in found.values())
    assert run.model.training


def test_a_whole_run_in_two_calls_leaves_both_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_tiny, "TEST", 4)
    monkeypatch.setattr(train_tiny, "DEV", 4)
    monkeypatch.setattr(train_tiny, "FIT", 500)
    minutes = [12 / 60, 1 / 60]  # the first call must end within the first phase, however busy the machine
    Run(BOTH, 0, torch.device("cpu")).save(tmp_path / "start")
    run = Run(BOTH, 0, torch.device("cpu"), start=tmp_path / "start")
    with fast(run.model):
        train(run, minutes, 1 / 60, tmp_path)
    assert run.state["phase"] == 0
    again = Run(BOTH, 0, torch.device("cpu"), start=tmp_path / "start")
    again.restore(tmp_path / "state.pt")
    with fast(again.model):
        train(again, minutes, math.inf, tmp_path)
    log = json.loads((tmp_path / "log.json").read_text())
    assert set(log["results"]) == {"full", "dropped", "words"}
    assert log["history"][0]["step"] == run.state["step"]
    for phase in ("full", "dropped"):
        assert (tmp_path / phase / "model.safetensors").exists()
        card = (tmp_path / phase / "README.md").read_text()
        assert f"vidsieve-tiny, `{phase}`" in card
        assert "Suite `long`" in card
        assert log["start_sha256"][:16] in card
        _, model = load(str(tmp_path / phase))
        assert model.config.model_type == "qwen2_5_vl"


def test_means_are_over_kinds_and_not_over_questions() -> None:
    means = by_kind([1.0 if kind == "order" else 0.0 for kind in PLAN], "needles")
    assert means["order"] == 1.0
    assert means["mean"] == pytest.approx(1 / len(KINDS), abs=1e-4)
