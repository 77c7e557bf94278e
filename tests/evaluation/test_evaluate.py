"""evaluate: what is asked packed, attached and at low resolution; what is refused; what the rows hold."""

import copy
import json
import math
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vidsieve import registry

pytest.importorskip("transformers")

import vidsieve
from tests.evaluation.needles.small import SIZE, TEXT, VISION
from vidsieve import Prompt, Reduction, VideoTokens
from vidsieve.cli import main
from vidsieve.engines.hf.loading import prepare
from vidsieve.errors import VidsieveError
from vidsieve.evaluation.evaluate import MEASURES, Plan, evaluate_model
from vidsieve.evaluation.needles import CHANCES, KINDS, PLAN, PLANS, SIZES, generate
from vidsieve.evaluation.needles.clip import as_frames
from vidsieve.evaluation.needles.runner import EncodedBatch, Refused, Smaller, Suite, difference
from vidsieve.evaluation.needles.tiny import build
from vidsieve.methods import presets
from vidsieve.types.statistics import UNMEASURED

METHODS = dict(registry.methods(inside=False))
GROUPS = ("all", *KINDS)
FIRST = [PLAN.index(kind) for kind in ("colour", "order", "cuts")]


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, Any]:
    processor, model = build(SIZE, 0, TEXT, VISION)
    return processor, model.eval()


@pytest.fixture(scope="module")
def suite(tiny: tuple[Any, Any]) -> Suite:
    return Suite(*tiny, SIZE)


@pytest.fixture(scope="module")
@torch.no_grad()
def encoded(suite: Suite) -> EncodedBatch:
    return suite.show(generate("dev", range(3), suite.size))


@pytest.fixture(scope="module")
def found(tiny: tuple[Any, Any]) -> dict[str, Any]:
    plan = Plan("tiny", videos=5, keeps=(0.25,), methods=METHODS, frames=8, batch=3, checked=2, timed=1)
    return evaluate_model(*tiny, plan)


def test_the_suite_is_chosen_by_name(tiny: tuple[Any, Any]) -> None:
    methods = {"vidsieve": METHODS["vidsieve"], "cdpruner": METHODS["cdpruner"]}
    plan = Plan("tiny", videos=3, keeps=(0.1,), methods=methods, frames=32, batch=2, checked=1, timed=1, suite="long")
    found = evaluate_model(*tiny, plan)
    assert found["card"]["questions"] == 3 * len(PLANS["long"])
    assert list(found["card"]["chance"]) == ["all", *CHANCES["long"]]
    rows = {row["method"]: row for row in found["rows"]}
    assert {name: row["refused"] for name, row in rows.items()} == dict.fromkeys(rows)
    for row in rows.values():
        assert list(row["accuracy"]) == ["all", *CHANCES["long"]]
    assert rows["vidsieve"]["path"] == "packed"
    assert rows["cdpruner"]["path"] == "attached"
    assert rows["vidsieve"]["tokens"]["mean"] == round(0.1 * 576)
    assert replace(plan, frames=None).size == SIZES["long"]
    with pytest.raises(ValueError, match="a suite among needles, long, got 'hard'"):
        replace(plan, suite="hard")


class Idle(vidsieve.Reducer):
    """Says that it reduces, and does nothing."""

    def reduce(self, tokens: VideoTokens, prompt: Prompt | None = None) -> Reduction:
        return Reduction.identity(len(tokens), tokens.features.device)


@dataclass(frozen=True)
class Dodging(vidsieve.Reducer):
    """Chooses one thing when it is tried out and another when it is attached."""

    attached: bool = False

    def reduce(self, tokens: VideoTokens, prompt: Prompt | None = None) -> Reduction:
        return Reduction.select(torch.arange(20) + 100 * self.attached, len(tokens))

    def __call__(self, model: object) -> Any:
        return vidsieve.attach(model, replace(self, attached=True))


class Detached:
    """Can be attached, and touches nothing."""

    def __call__(self, model: object) -> Any:
        return nullcontext(vidsieve.engines.hf.Trace())


@torch.no_grad()
@pytest.mark.parametrize("question", FIRST)
def test_asking_is_what_the_processor_and_the_model_make_of_it(
    tiny: tuple[Any, Any], suite: Suite, encoded: EncodedBatch, question: int
) -> None:
    processor, model = tiny
    reducer = presets.cdpruner(0.25)  # looks at the question
    with reducer(model):
        log_probs, layers = suite._ask(encoded, question, encoded.features, (6, 6))
    assert layers == (36, 36)
    for video in range(3):
        text = encoded.questions.text(video, question)
        inputs = prepare(processor, as_frames(encoded.batch.frames[video]), text)
        with reducer(model):
            alone = model(**inputs).logits[0, -1].log_softmax(0)
        torch.testing.assert_close(log_probs[video], alone, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in METHODS if name != "cdpruner"])
def test_packed_answers_are_those_of_the_attached_model(suite: Suite, encoded: EncodedBatch, name: str) -> None:
    answers = suite.answer(METHODS[name](0.25), encoded, check=3)
    assert answers.path == "packed"
    assert answers.checked is not None
    assert answers.checked["videos"] == 3
    assert answers.checked["difference"] < 1e-4
    assert answers.layers == (36, 36)
    attached = suite._attached(suite._equipped(METHODS[name](0.25), encoded), encoded)
    assert attached.kept is not None
    assert answers.kept is not None
    assert torch.equal(attached.kept, answers.kept)


@torch.no_grad()
def test_what_looks_at_the_question_is_asked_attached(suite: Suite, encoded: EncodedBatch) -> None:
    answers = suite.answer(presets.cdpruner(0.1), encoded, check=3)
    assert answers.path == "attached"
    assert answers.kept is not None
    assert not torch.equal(answers.kept[:, FIRST[0]], answers.kept[:, FIRST[1]])
    assert (answers.tokens == 14).all()


@torch.no_grad()
def test_what_reduces_inside_the_model_is_asked_attached() -> None:
    processor, model = build(SIZE, 0, TEXT | {"num_hidden_layers": 4}, VISION)
    plan = Plan("tiny", videos=2, keeps=(0.25,), methods=dict(registry.methods(inside=True)), frames=8, timed=1)
    rows = {row["method"]: row for row in evaluate_model(processor, model.eval(), plan)["rows"]}
    assert rows["fastv"]["path"] == "attached"
    assert rows["fastv"]["tokens"]["layers"] == [144, 144, 36, 36]
    assert rows["fastv"]["tokens"]["a_layer"] == 90
    assert 0 < rows["fastv"]["recall"]["all"]["mean"] < 1
    assert "cost=0.25 cannot be met" in rows["framefusion"]["refused"]


@torch.no_grad()
def test_small_frames_are_those_of_the_processor(tiny: tuple[Any, Any], suite: Suite, encoded: EncodedBatch) -> None:
    assert Smaller(0.25).grid(SIZE) == (3, 3)
    assert Smaller(0.1).grid(SIZE) == (2, 2)
    assert Smaller(0.5).grid(SIZE) == (4, 5)
    same = suite._look(encoded.batch.frames, (6, 6))
    torch.testing.assert_close(same, encoded.features, rtol=0, atol=1e-5)
    answers = suite.answer(Smaller(0.25), encoded)
    assert answers.kept is None
    assert answers.layers == (36, 36)
    assert (answers.tokens == 36).all()


@torch.no_grad()
def test_the_tower_s_attention_reaches_the_methods_that_want_it(suite: Suite, encoded: EncodedBatch) -> None:
    torch.testing.assert_close(encoded.received.view(3, 4, 36).sum(2), torch.full((3, 4), 1 / 4))  # of 4 patches each
    method = suite._equipped(presets.visionzip(0.25), encoded)
    assert repr(method).endswith("attention=TowerAttention())")
    tokens = suite._tokens(encoded.features[1])
    assert torch.equal(method.attention(tokens, UNMEASURED, None), encoded.received[1])
    with pytest.raises(ValueError, match="not the tokens of a video that was shown"):
        method.attention(suite._tokens(encoded.features[1] + 1), UNMEASURED, None)
    assert suite._equipped(presets.uniform(0.25), encoded) == presets.uniform(0.25)


@torch.no_grad()
@pytest.mark.parametrize(
    ("method", "says"),
    [
        (Idle(), "saw all 144 video tokens of 144"),
        (Dodging(), "packed and attached answers differ"),
        (Detached(), "shown 0: it did not engage"),
    ],
)
def test_a_method_that_does_nothing_or_something_else_is_refused(
    suite: Suite, encoded: EncodedBatch, method: Any, says: str
) -> None:
    with pytest.raises(Refused, match=says):
        suite.answer(method, encoded, check=2)


@torch.no_grad()
def test_a_method_that_says_another_number_than_the_layers_saw_is_refused(
    suite: Suite, encoded: EncodedBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Suite._reduced
    monkeypatch.setattr(Suite, "_reduced", lambda *args: replace(honest(*args), tokens=torch.full((3, len(PLAN)), 20)))
    with pytest.raises(Refused, match="says it kept 20 video tokens, and the last layer saw 36"):
        suite.answer(presets.uniform(0.25), encoded)


def test_a_refused_row_has_no_figures_and_spoils_no_other(tiny: tuple[Any, Any]) -> None:
    plan = Plan("tiny", videos=2, keeps=(0.25,), methods={"idle": lambda keep: Idle()}, frames=8, timed=1)
    rows = {row["method"]: row for row in evaluate_model(*tiny, plan)["rows"]}
    assert "nothing was reduced" in rows["idle"]["refused"]
    assert not rows["idle"].keys() & {*MEASURES, "relative", "prefill_ms"}
    assert rows["uniform"]["refused"] is None


def test_floors_are_always_there(found: dict[str, Any], tiny: tuple[Any, Any]) -> None:
    methods = [row["method"] for row in found["rows"]]
    assert methods == ["unreduced", *METHODS, "lower_resolution"]
    plan = Plan("tiny", videos=2, keeps=(0.25,), methods={}, frames=8, timed=1)
    methods = [row["method"] for row in evaluate_model(*tiny, plan)["rows"]]
    assert methods == ["unreduced", "uniform", "random", "fewer_frames", "lower_resolution"]


def test_the_unreduced_row_agrees_with_itself(found: dict[str, Any]) -> None:
    row = found["rows"][0]
    for group in GROUPS:
        assert row["kl"][group] == {"mean": 0, "low": 0, "high": 0}
        assert row["agreement"][group]["mean"] == row["agreement"][group]["low"] == 1
        assert row["relative"][group]["mean"] in (1, None)  # none of them right: no ratio
    assert row["against"] == {}
    assert row["tokens"]["layers"][-1] == 144


def test_rows_hold_what_docs_say(found: dict[str, Any]) -> None:
    json.loads(json.dumps(found, allow_nan=False))
    for row in found["rows"]:
        assert row["refused"] is None
        for name in (*MEASURES, "relative"):
            assert list(row[name]) == list(GROUPS)
            for interval in row[name].values():
                if interval["mean"] is not None:
                    assert interval["low"] <= interval["mean"] + 1e-6
                    assert interval["mean"] <= interval["high"] + 1e-6
        for interval in (*row["recall"].values(), *row["accuracy"].values(), *row["agreement"].values()):
            assert interval["mean"] is None or 0 <= interval["mean"] <= 1
        assert row["kl"]["all"]["mean"] >= 0
        assert (row["recall"]["all"]["mean"] is None) == (row["method"] == "lower_resolution")
        if row["method"] != "unreduced":
            assert row["tokens"]["mean"] == row["tokens"]["layers"][-1] == 36
            others = {"unreduced", "uniform"} - {row["method"]}
            assert set(row["against"]) == others
            for name in others:
                assert all(0 < entry["p"] <= 1 for entry in row["against"][name].values())
        assert row["prefill_ms"] > 0
    paths = {row["method"]: row["path"] for row in found["rows"]}
    assert paths["cdpruner"] == "attached"
    assert paths["vidsieve"] == "packed"


def test_accuracy_and_recall_are_means_over_kinds(tiny: tuple[Any, Any], found: dict[str, Any]) -> None:
    processor, model = tiny
    row = next(row for row in found["rows"] if row["method"] == "uniform")
    batch = generate("dev", range(5), SIZE)
    kept = presets.uniform(0.25).reduce(VideoTokens.from_grid(torch.zeros(144, 4), 4, 6, 6)).kept
    question = PLAN.index("cuts")
    right = 0
    for video in range(5):
        inputs = prepare(processor, as_frames(batch.frames[video]), batch.questions.text(video, question))
        with presets.uniform(0.25)(model) as trace:
            log_probs = model(**inputs).logits[0, -1].argmax()
        assert trace.videos[0].kept == kept.tolist()
        right += processor.decode(log_probs) == batch.questions.reply(video, question)
    assert row["accuracy"]["cuts"]["mean"] == right / 5
    evidence = batch.questions.evidence[:, question]
    shares = []
    for video in range(5):
        groups = set(evidence[video].tolist()) - {0}
        shares.append(len(groups & set(evidence[video, kept].tolist())) / len(groups))
    assert row["recall"]["cuts"]["mean"] == pytest.approx(sum(shares) / 5, abs=1e-6)
    kinds = [row["accuracy"][group]["mean"] for group in GROUPS[1:]]
    assert row["accuracy"]["all"]["mean"] == pytest.approx(sum(kinds) / len(kinds), abs=1e-6)


def test_differences_count_where_an_answer_is_likely() -> None:
    log_probs = torch.tensor([0.5, 0.5, 1e-9]).log()
    assert difference(log_probs, torch.tensor([0.5, 0.5, 1e-5]).log()) == 0
    assert difference(log_probs, torch.tensor([0.5, 0.4, 0.1]).log()) == pytest.approx(math.log(0.1 / 1e-9), rel=1e-3)


def test_plans_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="always in the table"):
        Plan("x", keeps=(1.0,))
    with pytest.raises(ValueError, match="in \\(0, 1\\]"):
        Plan("x", keeps=(0.0,))
    with pytest.raises(ValueError, match="at least one for videos"):
        Plan("x", videos=0)


def test_another_model_is_refused(tiny: tuple[Any, Any]) -> None:
    processor, model = tiny
    other = copy.copy(processor)
    other.tokenizer = copy.deepcopy(processor.tokenizer)
    other.tokenizer.unk_token = "red"
    with pytest.raises(VidsieveError, match=r"it knows no word 'red'.*train_tiny"):
        Suite(other, model)


def test_the_command(
    tiny: tuple[Any, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in tiny:
        part.save_pretrained(tmp_path / "model")
    arguments = ["eval", "-m", str(tmp_path / "model"), "--frames", "8", "--quick", "--videos", "2", "--keep", "0.25"]
    monkeypatch.setattr(main, "LINE_EVERY", 0.0)
    assert main.main([*arguments, "--method", "evs", "--out", str(tmp_path / "eval.json")]) == 0
    out, err = capsys.readouterr()
    assert "evs" in out
    assert [line for line in err.splitlines() if "evs" in line] == [
        "videos 1 to 2 of 2: evs, keep 0.25 (2 of 6)",
        "timing evs, keep 0.25 (2 of 6)",
    ]
    monkeypatch.undo()
    written = json.loads((tmp_path / "eval.json").read_text())
    assert written["card"]["command"].startswith("vidsieve eval -m ")
    assert "no benchmark of video language models" in written["card"]["suite"]
    assert [row["keep"] for row in written["rows"]] == [1, *[0.25] * 5]
    monkeypatch.setitem(registry.REGISTERED, "idle", registry.Method("idle", lambda keep: Idle()))
    assert main.main([*arguments, "--method", "idle"]) == 0
    out, err = capsys.readouterr()
    assert "refused: idle at 0.25: the last layer saw all 144 video tokens" in out
    assert "videos 1 to 2 of 2: unreduced, keep 1 (1 of 6)\n" in err
    with pytest.raises(SystemExit):
        main.main(["eval", "-m", "x", "--method", "magic"])
    assert "no method 'magic'; there are vidsieve" in capsys.readouterr().err


def test_every_method_says_what_it_is() -> None:
    for name, method in registry.methods().items():
        assert method.summary, name


def test_the_figure_is_drawn_from_the_json(found: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks.plot_eval import draw

    refused = {"method": "idle", "keep": 0.25, "refused": "nothing was reduced"}
    (tmp_path / "eval_dev.json").write_text(json.dumps({**found, "rows": [*found["rows"], refused]}))
    assert draw(tmp_path / "eval_dev.json", tmp_path / "images").stat().st_size > 10_000


def test_the_bundled_model_orders_the_methods(tmp_path: Path) -> None:
    assert main.main(["eval", "--quick", "--out", str(tmp_path / "eval.json")]) == 0
    rows = {row["method"]: row for row in json.loads((tmp_path / "eval.json").read_text())["rows"]}
    full, ours, random = (rows[name]["accuracy"]["all"]["mean"] for name in ("unreduced", "vidsieve", "random"))
    assert full > ours > random
