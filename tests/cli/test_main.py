"""main.py: the commands, what is printed where, and the exit codes."""

import inspect
import io
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
from tests.cli.commands import command
from vidsieve import registry
from vidsieve.cli import main
from vidsieve.engines.hf import contract

pytest.importorskip("av")
pytest.importorskip("transformers")
pytest.importorskip("rich")


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
        (["--json"], "options of a command stand behind it: vidsieve run ... --json"),
        (["eval", "--method", "magic"], "no method 'magic'; there are vidsieve, "),
        (["batch", "c", "-m", "m", "--out", "o", "--method", "magic"], "no method 'magic'; there are vidsieve, "),
        (["bench", "ops", "--case", "magic"], "no case 'magic'; there are default-10, "),
        (["run", "c", "-q", "?", "-m", "m", "--out", __file__], "expected a folder to write into"),
        (["run", "c", "-q", "?", "-m", "m", "--out", f"{__file__}/out"], "test_main.py is not: it is a file"),
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
        (["sing"], "no command 'sing'; there are run, show, "),
    ],
)
def test_mistakes_in_the_command_exit_2(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main.main(arguments)
    assert stopped.value.code == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("typed", [[], ["help"]])
def test_alone_it_helps(typed: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(typed) == 0
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
    def methods() -> dict[str, registry.Method]:
        logging.getLogger("torchao").warning("no extension")
        logging.getLogger("torch.utils._pytree").warning("deprecated")
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            exec("import warnings; warnings.warn('theirs')", {"__name__": "theirs.module"})
            exec("import warnings; warnings.warn('ours', stacklevel=2)", {"__name__": "vidsieve.module"})
        return {}

    heard: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())
    logging.getLogger().addHandler(handler)
    monkeypatch.setattr(registry, "methods", methods)
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
        [sys.executable, "-c", "from vidsieve.cli.main import main; raise SystemExit(main(['methods']))"],
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


def test_a_step_is_shown_as_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", shown := Terminal())
    monkeypatch.setenv("TERM", "xterm")
    with main._notes() as note:
        note("a[red]b[/x].mp4: 3 of 4 frames")
    assert "a[red]b[/x].mp4: 3 of 4 frames ..." in shown.getvalue()
