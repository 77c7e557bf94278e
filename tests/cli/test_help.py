"""What the command line says about itself: versions, an example of each command, completion in a shell."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from vidsieve.cli import main
from vidsieve.cli.parser import EXAMPLES, parser
from vidsieve.errors import MissingExtra


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main.main(arguments)
    assert stopped.value.code == 0
    return capsys.readouterr().out


def test_version_says_what_it_runs_on(capsys: pytest.CaptureFixture[str]) -> None:
    said = dict(line.split(" ", 1) for line in printed(capsys, "--version").splitlines())
    assert list(said) == ["vidsieve", "python", "torch", "transformers", "triton", "av", "GPU"]
    assert said["torch"] == torch.__version__
    assert said["transformers"] == transformers.__version__
    assert (said["GPU"] == "none") == (not torch.cuda.is_available())


@pytest.mark.parametrize("name", main.COMMANDS)
def test_each_command_shows_an_example_that_parses(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, name, "--help").rstrip().endswith(f"example:\n  {EXAMPLES[name]}")
    program, command, *arguments = shlex.split(EXAMPLES[name])
    assert (program, command) == ("vidsieve", name)
    assert parser(main.COMMANDS).parse_args([command, *arguments]).command is main.COMMANDS[name][0]


def test_no_example_is_left_over() -> None:
    assert set(EXAMPLES) == set(main.COMMANDS)


@pytest.mark.skipif(shutil.which("bash") is None, reason="completes in bash, which is not installed")
@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (("vidsieve", "en"), "encode env"),
        (("vidsieve", "run", "lec"), "lecture.mp4"),
        (("vidsieve", "run", "a.mp4", "--sampling", "k"), "keyframes"),
    ],
)
def test_bash_completes_commands_files_and_choices(
    words: tuple[str, ...], completed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lecture.mp4").touch()
    (tmp_path / "complete").write_text(printed(capsys, "--print-completion", "bash"), encoding="utf-8")
    script = (
        f"source ./complete; COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}; "
        "_shtab_vidsieve; echo ${COMPREPLY[@]}"
    )
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == completed


def test_completion_without_its_extra_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main.main(["--print-completion", "bash"]) == 1
    said = capsys.readouterr().err
    assert "completion]" in said
    with pytest.raises(MissingExtra):
        parser(main.COMMANDS).parse_args(["--print-completion", "bash"])
