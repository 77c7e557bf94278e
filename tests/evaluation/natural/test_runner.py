"""The natural suite: its data, its videos, and the rows of one of them."""

import json
import lzma
import shutil
from pathlib import Path

import pytest
import torch

from vidsieve import Prune, Reducer, Reduction, presets, registry
from vidsieve.cli import main
from vidsieve.errors import WrongArgument
from vidsieve.evaluation.floors import FLOORS
from vidsieve.evaluation.natural import NaturalPlan, evaluate_natural
from vidsieve.evaluation.natural.features import DATA, card, load, of_split
from vidsieve.evaluation.natural.runner import MEASURES, OBJECTS, figures, kept_mask
from vidsieve.evaluation.natural.takes import CLIPS, SIDE, SPLITS, TAKES
from vidsieve.evaluation.natural.videos import MOVING, PLACES, VIDEOS, build

FREE = ("CC0-1.0", "CC-BY-3.0", "CC-BY-4.0", "public domain")


def test_the_data_say_whose_they_are() -> None:
    about = card()
    assert about["clips"].keys() == CLIPS.keys()
    for name, clip in about["clips"].items():
        assert clip["licence"] in FREE, name
        assert clip["credit"], name
        assert clip["sha256"] == CLIPS[name].sha256
    assert "whose metadata say UNKNOWN" in about["licence of the weights"]
    readme = (DATA / "README.md").read_text()
    for clip in CLIPS.values():
        assert clip.file in readme
        assert clip.credit.partition(";")[0].partition(",")[0] in readme
    assert sum(path.stat().st_size for path in DATA.iterdir()) < 5 << 20


def test_projection_and_rounding_keep_the_direction() -> None:
    for split in SPLITS:
        about = card()["splits"][split]
        assert about["energy"] > 0.94
        assert about["errors"]["cosine"]["mean"] < 0.02
        assert about["errors"]["cosine"]["correlation"] > 0.99
        assert about["errors"]["head_kl"]["mean"] < 0.02


def test_features_of_other_takes_are_refused(tmp_path: Path) -> None:
    for path in DATA.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert torch.equal(load("dev", tmp_path).take("bunny"), load("dev").take("bunny"))
    (tmp_path / "test.xz").write_bytes((DATA / "dev.xz").read_bytes())
    with pytest.raises(WrongArgument, match=r"test\.xz holds \d+ numbers or more, and 134 frames need"):
        load("test", tmp_path)


def test_splits_share_no_clip() -> None:
    clips = {split: {TAKES[shot.take].clip for video in VIDEOS[split].values() for shot in video} for split in SPLITS}
    assert not clips["dev"] & clips["test"]
    assert clips["dev"] | clips["test"] == CLIPS.keys()
    for split in SPLITS:
        assert {CLIPS[name].split for name in clips[split]} == {split}
    assert VIDEOS["dev"].keys() - MOVING.keys() == VIDEOS["test"].keys()
    assert {*of_split("dev"), *of_split("test")} == TAKES.keys()


@pytest.mark.parametrize("split", SPLITS)
def test_videos_are_their_shots_one_after_another(split: str) -> None:
    bank = load(split)
    kinds = set()
    for name, shots in VIDEOS[split].items():
        video = build(split, name, bank)
        assert video.features.shape == (video.frames * PLACES, card()["rank"])
        assert video.frames in (32, 64)
        assert [end for _, end in video.shots] == [begin for begin, _ in video.shots[1:]] + [video.frames]
        for (begin, end), shot in zip(video.shots, shots, strict=True):
            assert end - begin == shot.count
            frames = video.features.view(-1, PLACES, video.features.shape[1])[begin:end]
            assert torch.equal(frames, bank.take(shot.take)[shot.frames])
        for thing in video.objects:
            assert thing.tokens.min() >= 0
            assert thing.tokens.max() < len(video.features)
            begin, end = video.shots[int(thing.name.split()[0])]
            assert ((thing.tokens >= begin * PLACES) & (thing.tokens < end * PLACES)).all()
            kinds.add(thing.kind)
            assert (thing.kind == "brief") == (end - begin == 1)
    assert kinds == {*OBJECTS}


def test_every_box_is_seen_in_a_take() -> None:
    for name, clip in CLIPS.items():
        takes = [take for take in TAKES.values() if take.clip == name]
        for box in clip.boxes:
            assert any(take.cells(box, frame) for take in takes for frame in range(take.count)), (name, box.name)


def test_boxes_move_between_their_keys_and_with_the_window() -> None:
    bunny = next(box for box in CLIPS["bunny"].boxes if box.name == "bunny")
    assert bunny.at(2.63) == pytest.approx((1.8, 1.4, 6.8, 12.1))
    assert bunny.at((0.05 + 0.48) / 2) == pytest.approx((1.0, 4.75, 5.85, 10.7))
    hand = next(box for box in CLIPS["bottles"].boxes if box.name == "hand takes the left bottle")
    assert hand.at(5.0) is None
    eye = CLIPS["chelsea"].boxes[0]
    whole, pan = TAKES["chelsea"], TAKES["chelsea_pan"]
    rows = [cell // SIDE for cell in whole.cells(eye, 0)]
    columns = [cell % SIDE for cell in whole.cells(eye, 0)]
    assert (min(rows), max(rows), min(columns), max(columns)) == (4, 6, 4, 5)  # of the middles in 4 to 6.8, 4.2 to 6.4
    first = pan.cells(eye, 0)  # the window ends at 0.6 and 0.7: 4.2 / 0.6 = 7.0 and 4 / 0.7 = 5.7
    assert min(cell % SIDE for cell in first) == 7
    assert min(cell // SIDE for cell in first) == 6


@pytest.fixture(scope="module")
def found() -> dict:
    methods = {name: registry.method(name) for name in ("vidsieve", "cdpruner", "fastv", "evs")}
    return evaluate_natural(NaturalPlan("dev", (0.1,), methods, ("montage",)))


def test_rows_hold_what_docs_say(found: dict) -> None:
    json.loads(json.dumps(found, allow_nan=False))
    rows = {row["method"]: row for row in found["rows"]}
    assert list(rows) == ["vidsieve", "cdpruner", "fastv", "evs", *FLOORS, "lower_resolution"]
    assert "weighs tokens by the question" in rows["cdpruner"]["refused"]
    assert "inside the language model" in rows["fastv"]["refused"]
    assert "whole frames" in rows["lower_resolution"]["refused"]
    for name in ("vidsieve", "evs", *FLOORS):
        row = rows[name]
        assert row["refused"] is None
        assert row["tokens"] == round(0.1 * found["card"]["tokens"])
        assert all(row[measure] >= 0 for measure in MEASURES)
        assert row["videos"].keys() == {"montage"}
        assert all(found <= there and there > 0 for found, there in (row[kind] for kind in OBJECTS))
        assert row["videos"]["montage"]["cov"] == row["cov"]
        assert row["bars"].keys() == {"share", "cov", "c99", "static", "moving", "reconstruction", "qkl"}
    assert not rows["cdpruner"].keys() & {*MEASURES, "bars"}
    assert rows["uniform"]["bars"]["cov"]["met"]
    assert rows["fewer_frames"]["empty"] > 0.8
    assert rows["evs"]["cov"] > rows["uniform"]["cov"]


def test_figures_are_best_where_all_is_kept_and_worst_where_nothing_is() -> None:
    bank = load("dev")
    video = build("dev", "pans", bank)
    begin, end = video.shots[1]
    mask = torch.ones(len(video.features), dtype=torch.bool)
    whole = figures(video, mask, bank)
    assert (whole["cov"], whole["c99"], whole["qkl"], whole["empty"], whole["share"]) == (0, 0, 0, 0, 1)
    assert whole["moving"][0] == whole["moving"][1] > 0
    mask[begin * PLACES : end * PLACES] = False
    without = figures(video, mask, bank)
    assert without["worst"] == 1
    assert without["cov"] == pytest.approx(1 / len(video.shots))
    assert without["share"] == 0
    assert without["moving"][0] < without["moving"][1]


def test_what_the_default_keeps_of_shots_that_move_shows_the_classes_that_are_in_them() -> None:
    bank = load("dev")
    video = build("dev", "pans", bank)
    ours, floor = (
        figures(video, kept_mask(method(0.1), video), bank)
        for method in (registry.method("vidsieve"), FLOORS["uniform"])
    )
    assert ours["qkl"] < 1.5 * floor["qkl"]
    assert ours["c99"] < 0.85 * floor["c99"]


class Everything(Reducer):
    def reduce(self, tokens, prompt=None):
        return Reduction.identity(len(tokens), tokens.features.device)


def test_what_reduces_nothing_or_cannot_be_made_is_refused() -> None:
    def framefusion(keep: float) -> object:
        return presets.framefusion(keep)

    methods = {"all": lambda keep: Everything(), "framefusion": framefusion, "mine": lambda keep: Prune(keep)}
    rows = evaluate_natural(NaturalPlan("dev", (0.1,), methods, ("montage",)))["rows"]
    rows = {row["method"]: row for row in rows}
    assert "nothing was reduced" in rows["all"]["refused"]
    assert rows["framefusion"]["refused"]
    assert rows["mine"]["refused"] is None


def test_what_was_kept_is_what_the_method_says() -> None:
    video = build("dev", "montage", load("dev"))
    mask = kept_mask(presets.uniform(0.1), video)
    steps = mask.nonzero()[:, 0].diff()
    assert {*steps.tolist()} <= {9, 10, 11}


def test_plans_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="always in the table"):
        NaturalPlan(keeps=(1.0,))
    with pytest.raises(ValueError, match="a split among dev, test, got 'train'"):
        NaturalPlan("train")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no video 'x' in dev; there are equal, "):
        NaturalPlan(videos=("x",))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich")
    few = {"montage": VIDEOS["dev"]["montage"]}
    monkeypatch.setitem(VIDEOS, "dev", few)
    out = tmp_path / "natural.json"
    arguments = ["eval", "--suite", "natural", "--keep", "10%", "--method", "uniform", "--method", "cdpruner"]
    assert main.main([*arguments, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "refused: cdpruner at 0.1: PromptSimilarity weighs tokens by the question" in printed
    written = json.loads(out.read_text())
    assert written["card"]["network"].startswith("EfficientNet-Lite0")
    assert written["card"]["command"] == f"vidsieve {' '.join(arguments)} --out {out}"
    with pytest.raises(SystemExit):
        main.main(["eval", "--features", "x"])
    assert "--features is for --suite natural" in capsys.readouterr().err
    assert main.main(["eval", "--suite", "natural", "--features", str(tmp_path)]) == 1
    assert "natural_features.py made, got" in capsys.readouterr().err
    for name in ("--model", "--videos", "--frames"):
        with pytest.raises(SystemExit):
            main.main(["eval", "--suite", "natural", name, "3"])
        assert f"{name} is for synthetic suites" in capsys.readouterr().err


def test_the_figure_is_drawn_from_the_json(found: dict, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks.plot_natural import draw

    (tmp_path / "natural_dev.json").write_text(json.dumps(found))
    assert draw(tmp_path / "natural_dev.json", tmp_path / "images").stat().st_size > 10_000


def test_a_damaged_folder_of_features_is_refused_in_one_line(tmp_path: Path) -> None:
    for name in ("card.json", "dev.xz", "dev_head.xz"):
        shutil.copy(DATA / name, tmp_path / name)
    whole = (tmp_path / "dev.xz").read_bytes()
    (tmp_path / "dev.xz").write_bytes(b"no" + whole[2:])
    with pytest.raises(WrongArgument, match=r"dev\.xz cannot be read"):
        load("dev", tmp_path)
    for damaged in (whole[: len(whole) // 2], lzma.compress(bytes(1 << 26), preset=0)):  # cut short; far too large
        (tmp_path / "dev.xz").write_bytes(damaged)
        with pytest.raises(WrongArgument, match=r"dev\.xz holds \d+ numbers or more"):
            load("dev", tmp_path)
    for other in ([], {"network": "other"}):
        (tmp_path / "card.json").write_text(json.dumps(other))
        with pytest.raises(WrongArgument, match=r"is no card of benchmarks/natural_features\.py"):
            load("dev", tmp_path)
