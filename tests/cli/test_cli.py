"""main.py, run.py: the demo model end to end, what is printed where, and the exit codes."""

import inspect
import json
import logging
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import vidsieve
from tests import synthetic_clip
from vidsieve import registry
from vidsieve.cli import demo, main
from vidsieve.engines.hf import contract
from vidsieve.errors import VidsieveError

pytest.importorskip("av")
pytest.importorskip("transformers")
pytest.importorskip("rich")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a drawn clip.mp4 and a random model/."""
    folder = tmp_path_factory.mktemp("cli")
    synthetic_clip.render_clip(folder / "clip.mp4")
    synthetic_clip.build_model(folder / "model")
    return folder


def command(world: Path, *more: str) -> list[str]:
    return [
        *("run", str(world / "clip.mp4"), "--question", "What moves?", "--model", str(world / "model")),
        *("--frames", "8", "--max-new-tokens", "4", *more),
    ]


@pytest.fixture(scope="module")
def result(world: Path) -> dict:
    assert main.main(command(world, "--out", str(world / "out"), "--keep", "0.25")) == 0
    return json.loads((world / "out" / "result.json").read_text())


def test_run_writes_a_result_whose_numbers_agree(result: dict) -> None:
    assert (result["tokens_before"], result["tokens_after"]) == (4 * 192, 192)
    assert len(result["kept"]) == result["tokens_after"] == sum(result["budgets"])
    assert result["kept"] == sorted(set(result["kept"]))
    assert sum(result["tokens"]) == result["tokens_before"]
    assert result["grid"] == [12, 16]
    assert result["frames"]["index"] == [0, 21, 43, 64, 85, 106, 128, 149]
    assert result["prompt_before"] - result["prompt_after"] == result["tokens_before"] - result["tokens_after"]
    assert (result["method"], result["keep"]) == ("vidsieve", 0.25)
    assert isinstance(result["answer"], str)
    assert isinstance(result["answer_unreduced"], str)
    stages = result["stages_ms"]
    assert {"decode", "process", "vision_prefill", "segment", "budget", "relevance", "select", "generate"} <= set(
        stages
    )
    assert all(milliseconds >= 0 for milliseconds in stages.values())
    assert result["versions"]["torch"]


def test_run_draws_a_picture_and_says_how_long_that_took(world: Path, result: dict) -> None:
    assert sorted(path.name for path in (world / "out").iterdir()) == ["overlay.png", "result.json"]
    assert (world / "out" / "overlay.png").stat().st_size > 1000
    assert result["stages_ms"]["draw"] > 0


def test_a_film_is_drawn_on_request(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(command(world, "--only-reduced", "--film", "--out", str(tmp_path))) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["overlay.mp4", "overlay.png", "result.json"]
    out = capsys.readouterr().out
    assert [line.split()[:1] for line in out.splitlines()].count(["draw"]) == 1
    assert out.endswith(f"picture: {tmp_path / 'overlay.png'}\npicture: {tmp_path / 'overlay.mp4'}\n")
    assert main.main(["show", str(tmp_path), "--gif", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pictures"]["gif"] == str(tmp_path / "overlay.gif")


def test_keep_everything_answers_as_without(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(command(world, "--keep", "1", "--json")) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["tokens_after"] == result["tokens_before"]
    assert result["answer"] == result["answer_unreduced"]


def test_run_prints_for_people(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(command(world, "--method", "uniform")) == 0
    out = capsys.readouterr().out
    assert "768 video tokens -> 77 kept (10.0 %)" in out
    assert "every token" in out
    assert "vision + prefill" in out
    assert "What moves?" in out


@pytest.mark.parametrize("method", registry.methods())
def test_every_method_runs_at_what_it_is_known_for(
    world: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(command(world, "--method", method, "--only-reduced", "--json")) == 0
    result = json.loads(capsys.readouterr().out)
    if not registry.method(method).inside:
        assert result["tokens_after"] == 77
    else:
        assert result["stages"][-1]["tokens_after"] == result["tokens_after"] < result["tokens_before"]
        assert result["cost"] == pytest.approx(0.3, abs=0.01) or result["keep_of"] == "tokens"


def test_show_draws_the_same_picture_again(world: Path, result: dict, tmp_path: Path) -> None:
    assert main.main(["show", str(world / "out"), "--out", str(tmp_path)]) == 0
    assert (tmp_path / "overlay.png").read_bytes() == (world / "out" / "overlay.png").read_bytes()


def test_show_finds_a_clip_that_moved_with_its_result(
    world: Path, result: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "clip.mp4").write_bytes((world / "clip.mp4").read_bytes())
    (tmp_path / "result.json").write_text(json.dumps(result | {"clip": "/gone/clip.mp4"}))
    assert main.main(["show", str(tmp_path / "result.json"), "--json"]) == 0
    pictures = json.loads(capsys.readouterr().out)["pictures"]
    assert pictures["png"] == str(tmp_path / "overlay.png")
    (tmp_path / "clip.mp4").unlink()
    assert main.main(["show", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "vidsieve: error: /gone/clip.mp4: no such file\n"


@pytest.mark.parametrize(
    ("text", "says"), [(None, "no such file"), ("no json", "is not a result.json"), ("[1]", "it has no clip")]
)
def test_show_refuses_what_is_no_result(
    tmp_path: Path, text: str | None, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / "result.json").write_text(text)
    assert main.main(["show", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err
    assert err.count("\n") == 1


def test_demo_ends_by_saying_where_the_picture_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["demo", "--out", str(tmp_path / "demo")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("576 video tokens -> 58 kept (10.1 %)") for line in lines)
    _, right = demo.question()
    assert [line.split()[-1] for line in lines if line.startswith(("every token", "reduced"))] == [right, right]
    assert lines[-1] == f"picture: {tmp_path / 'demo' / 'overlay.png'}"
    assert (tmp_path / "demo" / "overlay.png").exists()


CLIPS = sorted(Path(os.environ.get("VIDSIEVE_CLIPS", "/nonexistent")).glob("*.mp4"))


@pytest.mark.skipif(not CLIPS, reason="set VIDSIEVE_CLIPS to a folder of real .mp4 clips")
def test_run_on_a_real_clip(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "-q",
        "?",
        "-m",
        str(world / "model"),
        "--frames",
        "4",
        "--max-new-tokens",
        "2",
        "--only-reduced",
        "--film",
    ]
    assert main.main(["run", str(CLIPS[0]), *arguments, "--json", "--out", str(tmp_path)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["tokens_after"] == round(0.1 * result["tokens_before"])
    assert Path(result["pictures"]["mp4"]).exists()


def test_methods_lists_every_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["methods", "--json"]) == 0
    methods = json.loads(capsys.readouterr().out)
    assert {method["name"] for method in methods} >= {*registry.methods(), "evs", "fewer_frames"}
    assert all(method["summary"] for method in methods)
    assert main.main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("arXiv" in line for line in lines)
    assert [line.split()[0] for line in lines if "square of the video's length" in line] == ["divprune"]


def test_env_says_what_would_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["env", "--json"]) == 0
    env = json.loads(capsys.readouterr().out)
    assert env["versions"]["vidsieve"]
    assert env["extras"]["hf"]
    assert env["ops"]["available"]["eager"] == ""
    assert "qwen2_5_vl" in env["model_types"]
    assert env["transformers"] == {"tested": list(contract.TESTED), "fault": None}
    assert main.main(["env"]) == 0
    out = capsys.readouterr().out
    assert "Did it engage?" in out
    call = re.search(r"vidsieve\.verify\((.+?)\)", out)
    assert call
    inspect.signature(vidsieve.verify).bind(*call[1].split(","))


def test_env_says_what_is_wrong_with_a_transformers_that_differs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("transformers.Cache.get_query_offset")
    assert main.main(["env"]) == 0
    out = capsys.readouterr().out
    assert f"transformers {', '.join(contract.TESTED)} were tested" in out
    assert "Cache has no get_query_offset" in out


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"clip": "absent.mp4"}, "absent.mp4: no such file"),
        ({"model": "/no/such/model"}, "model '/no/such/model': no such folder; expected a folder"),
        ({"model": "no/such"}, "model 'no/such': no such folder, no copy of it in the cache, and "),
        ({"model": __file__}, "is a file; expected a folder"),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used here"),
    ],
    ids=["clip", "folder", "name", "file", "device"],
)
def test_what_fails_says_why_in_one_line_and_exits_1(
    world: Path, change: dict[str, str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    choice = {"clip": str(world / "clip.mp4"), "model": str(world / "model"), "device": "cpu"} | change
    arguments = ["run", choice["clip"], "-q", "?", "-m", choice["model"], "--device", choice["device"]]
    assert main.main([*arguments, "--frames", "2"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("vidsieve: error: ")
    assert says in err
    assert err.count("\n") == 1


def test_a_model_of_another_kind_is_refused_before_its_weights_are_read(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert main.main(["run", str(world / "clip.mp4"), "-q", "?", "-m", str(tmp_path), "--frames", "2"]) == 1
    assert "got model type 'bert'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--json"], "COMMAND"),
        (["eval", "--method", "magic"], "no method 'magic'; there are vidsieve, "),
        (["batch", "c", "-m", "m", "--out", "o", "--method", "magic"], "no method 'magic'; there are vidsieve, "),
        (["batch", "c", "-m", "m", "--out", "o", "--method", "fastv"], "fastv cannot make features to store"),
        (["bench", "ops", "--case", "magic"], "no case 'magic'; there are perframe-10, "),
        (["run", "c", "-q", "?", "-m", "m", "--out", __file__], "expected a folder to write into"),
        (["run", "c", "-q", "?", "-m", "m", "--out", f"{__file__}/out"], "test_cli.py is not: it is a file"),
        (["batch", "c", "-m", "m", "--out", __file__], "expected a folder to write into"),
        (["eval", "--out", os.path.dirname(__file__)], "expected the name of a file to write"),
        (["run", "clip.mp4"], "--question"),
        (["run", "c", "-q", "?", "-m", "m", "--method", "magic"], "no method 'magic'; there are vidsieve, "),
        (
            ["run", "c", "-q", "?", "-m", "m", "--keep", "1.5"],
            "expected a fraction above 0, at most 1, such as 0.1 or 10%; got 1.5",
        ),
        (["run", "c", "-q", "?", "-m", "m", "--keep", "110%"], "at most 1, such as 0.1 or 10%; got 110%"),
        (["run", "c", "-q", "?", "-m", "m", "--frames", "0"], "at least 1; got 0"),
        (["sing"], "invalid choice"),
    ],
)
def test_mistakes_in_the_command_exit_2(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main.main(arguments)
    assert stopped.value.code == 2
    assert says in capsys.readouterr().err


def test_keep_may_be_in_percent(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(command(world, "--keep", "25%", "--only-reduced", "--json")) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["keep"], result["tokens_after"]) == (0.25, 192)


def test_alone_it_helps(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main([]) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: vidsieve")
    assert "demo" in out


def test_errors_are_json_for_those_who_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["run", "absent.mp4", "-q", "?", "-m", "m", "--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out) == {"error": {"type": "VideoError", "message": "absent.mp4: no such file"}}
    assert err == "vidsieve: error: absent.mp4: no such file\n"
    with pytest.raises(SystemExit):
        main.main(["run", "absent.mp4", "--json"])
    assert "--question" in json.loads(capsys.readouterr().out)["error"]["message"]


def test_nothing_of_other_libraries_reaches_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def methods(options: object) -> list:
        """Nothing."""
        logging.getLogger("torchao").warning("no extension")
        logging.getLogger("torch.utils._pytree").warning("deprecated")
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            exec("import warnings; warnings.warn('theirs')", {"__name__": "theirs.module"})
            exec("import warnings; warnings.warn('ours', stacklevel=2)", {"__name__": "vidsieve.module"})
        return []

    heard: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())
    logging.getLogger().addHandler(handler)
    monkeypatch.setattr(main, "_methods", methods)
    before = warnings.showwarning, logging.root.manager.disable
    try:
        assert main.main(["methods"]) == 0
    finally:
        logging.getLogger().removeHandler(handler)
    assert (warnings.showwarning, logging.root.manager.disable) == before
    assert capsys.readouterr().err.splitlines() == ["vidsieve: warning: ours"]
    assert heard == []


def test_nothing_is_said_while_a_model_loads_and_answers(world: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vidsieve", *command(world, "--only-reduced")],
        env=os.environ | {"HF_HUB_DISABLE_PROGRESS_BARS": "0"},  # as on a terminal
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("raised", "says"),
    [
        ("httpx.ConnectError('Name or service not known')", "cannot be reached (Name or service not known)"),
        ("httpx.ConnectTimeout('')", "cannot be reached (ConnectTimeout)"),
        ("hub.errors.RepositoryNotFoundError('404 many\\nlines', response=answer)", "knows no such model"),
        ("hub.errors.GatedRepoError('403', response=answer)", "to those alone who asked for it"),
        ("hub.errors.RemoteEntryNotFoundError('404', response=answer)", "has no config.json"),
        ("hub.errors.HfHubHTTPError('503 busy\\nlater', response=answer)", "refused (503 busy)"),
    ],
)
def test_a_name_on_the_hub_is_asked_for_once(raised: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx
    import huggingface_hub as hub

    asked = []

    def answer(url: str, timeout: float) -> None:
        asked.append(timeout)
        response = httpx.Response(404, request=httpx.Request("HEAD", url))
        raise eval(raised, {"hub": hub, "httpx": httpx, "answer": response})

    monkeypatch.setattr(hub, "is_offline_mode", lambda: False)
    monkeypatch.setattr(hub, "get_hf_file_metadata", answer)
    with pytest.raises(VidsieveError) as error:
        hub.find("no/such")
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert asked == [hub.SECONDS]
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda name, file: "/cache/config.json")
    assert hub.find("no/such") == {"local_files_only": True}
    monkeypatch.setattr(hub, "get_hf_file_metadata", lambda url, timeout: None)
    assert hub.find("no/such") == {}


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main.main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith("vidsieve 0.")


def test_ctrl_c_exits_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vidsieve.cli.run.run", interrupted)
    assert main.main(["run", "c", "-q", "?", "-m", "m"]) == 130
    assert capsys.readouterr().err == "vidsieve: interrupted\n"

    def counted(*_: object) -> None:
        raise KeyboardInterrupt("3 of 4 are stored")

    monkeypatch.setattr("vidsieve.cli.run.run", counted)
    assert main.main(["run", "c", "-q", "?", "-m", "m", "--json"]) == 130
    out, err = capsys.readouterr()
    assert err == "vidsieve: interrupted; 3 of 4 are stored\n"
    assert json.loads(out)["error"]["type"] == "KeyboardInterrupt"


def test_the_place_of_an_error_is_shown_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDSIEVE_TRACEBACK", "1")
    with pytest.raises(OSError, match="no such file"):
        main.main(["run", "absent.mp4", "-q", "?", "-m", "m"])


@pytest.mark.skipif(os.name != "posix", reason="pipes are closed otherwise")
def test_a_reader_that_has_read_enough_is_no_error() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", "from vidsieve.cli import main; raise SystemExit(main(['methods']))"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 0


def test_a_film_without_a_folder_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main.main(["run", "clip.mp4", "-q", "what?", "-m", "model", "--film"])
    assert "--film and --gif draw into the folder of --out" in capsys.readouterr().err
