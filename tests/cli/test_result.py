"""A result, and a question, without a model: what is no result, and no question, is said in one line."""

import json
from pathlib import Path

import pytest

from vidsieve.cli import main, run
from vidsieve.errors import WrongArgument

RESULT = {
    "clip": "clip.mp4",
    "model": "m",
    "model_type": "qwen2_5_vl",
    "method": "vidsieve",
    "keep": 0.1,
    "kept": [0, 767],
    "tokens": [192] * 4,
    "grid": [12, 16],
    "segments": [[0, 384], [384, 768]],
    "frames": {"index": [*range(8)], "seconds": [0.1 * i for i in range(8)], "size": [168, 224]},
}


def test_a_result_is_read_as_it_is(tmp_path: Path) -> None:
    for change in (
        {},
        {"grid": None, "segments": None},
        {"kept": [], "keep": 1},
        {"computed": None},
        {"computed": [0, 767]},
    ):
        (tmp_path / "result.json").write_text(json.dumps(RESULT | change), encoding="utf-8-sig")
        assert run.read(tmp_path) == RESULT | change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"clip": 5}, "expected clip as text, got 5"),
        ({"method": None}, "expected method as text, got None"),
        ({"question": ["a"]}, "expected question as text or null, got ['a']"),
        ({"answer": 1}, "expected answer as text or null, got 1"),
        ({"answer_unreduced": {}}, "expected answer_unreduced as text or null, got {}"),
        ({"gain": 3.1}, "expected gain as text or null, got 3.1"),
        ({"keep": "a lot"}, "expected keep as a number above 0, at most 1, got 'a lot'"),
        ({"keep": True}, "expected keep as a number above 0, at most 1, got True"),
        ({"kept": [1.5]}, "expected kept as whole numbers below 768, got [1.5]"),
        ({"kept": "many"}, "expected kept as whole numbers below 768, got 'many'"),
        ({"kept": [-1]}, "expected kept as whole numbers below 768, got [-1]"),
        ({"kept": [10**30]}, "expected kept as whole numbers below 768, got"),
        ({"kept": [768]}, "expected kept as whole numbers below 768, got [768]"),
        ({"computed": [768]}, "expected computed as whole numbers below 768 or null, got [768]"),
        ({"computed": "all"}, "expected computed as whole numbers below 768 or null, got 'all'"),
        ({"tokens": []}, "expected tokens as whole numbers above 0, got []"),
        ({"tokens": [768, 0, 0, 0], "grid": None}, "expected tokens as whole numbers above 0, got [768, 0, 0, 0]"),
        ({"tokens": [1] * 9}, "expected tokens of at most 8 frames, got [1, 1, "),
        ({"tokens": [768]}, "expected grid of [768] tokens, got [12, 16]"),
        ({"grid": [12]}, "expected grid as [rows, columns] or null, got [12]"),
        ({"grid": {}}, "expected grid as [rows, columns] or null, got {}"),
        ({"segments": [0, 768]}, "expected segments as pairs of whole numbers or null, got [0, 768]"),
        ({"segments": [["a", "b"]]}, "expected segments as pairs of whole numbers or null, got [['a', 'b']]"),
        ({"frames": []}, "expected frames with index and size, got []"),
        ({"frames": {"index": [0]}}, "expected frames with index and size, got {'index': [0]}"),
        ({"frames": {"index": [0.5], "size": [9, 9]}}, "expected index as whole numbers, one a frame, got [0.5]"),
        ({"frames": {"index": [], "size": [9, 9]}}, "expected index as whole numbers, one a frame, got []"),
        ({"frames": {"index": [0], "size": [0, 9]}}, "expected size as [height, width], got [0, 9]"),
        ({"frames": {"index": [0], "size": "big"}}, "expected size as [height, width], got 'big'"),
    ],
    ids=repr,
)
def test_what_is_wrong_in_a_result_edited_by_hand_is_said(
    tmp_path: Path, change: dict, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "result.json"
    file.write_text(json.dumps(RESULT | change))
    assert main.main(["show", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"vidsieve: error: {file}: is not a result.json of `vidsieve run`: ")
    assert says in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("text", ["[" * 100000, '{"keep": ' + "9" * 5000 + "}", "{", "\x00"], ids=lambda text: text[:9])
def test_what_json_cannot_read_is_no_result(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "result.json").write_text(text)
    assert main.main(["show", str(tmp_path)]) == 1
    assert "is not a result.json of `vidsieve run`" in capsys.readouterr().err


@pytest.mark.parametrize("question", ["", " "])
@pytest.mark.parametrize("command", [["run", "clip.mp4"], ["ask", "clip.vidsieve"]], ids=lambda command: command[0])
def test_a_question_that_asks_nothing_is_a_mistake(
    command: list[str], question: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main.main([*command, "-m", "m", "-q", question])
    assert f"--question/-q: expected a question, such as 'What happens?'; got {question!r}" in capsys.readouterr().err


def test_functions_refuse_it_before_they_begin() -> None:
    with pytest.raises(WrongArgument, match="expected a question"):
        run.run(run.Request("absent.mp4", None, "absent"))  # type: ignore[arg-type]
