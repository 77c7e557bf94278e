"""writable.py: where nothing can be written is said before there is anything to write."""

import os
import sys
from pathlib import Path

import pytest

from vidsieve import writable
from vidsieve.cli import main
from vidsieve.cli.run import Request, run
from vidsieve.errors import VidsieveError

linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere is no folder that not even root can write into")


@linux
@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "clip.mp4", "-q", "?", "-m", "m"],
        ["show", "result.json"],
        ["demo"],
        ["batch", "clips", "-m", "m"],
        ["bench", "ops"],
        ["eval"],
    ],
    ids=lambda arguments: arguments[0],
)
@pytest.mark.parametrize("out", ["/proc/out", "/proc/a/b/out"])
def test_every_command_says_that_it_cannot_write_before_it_begins(
    arguments: list[str], out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main.main([*arguments, "--out", out])
    assert "--out: cannot write into /proc (" in capsys.readouterr().err


@linux
def test_the_default_folder_of_the_demo_is_looked_at_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir("/proc")
    with pytest.raises(SystemExit, match="2"):
        main.main(["demo"])
    assert "--out: cannot write into . (" in capsys.readouterr().err


@linux
def test_run_as_a_function_says_so_first(tmp_path: Path) -> None:
    with pytest.raises(VidsieveError, match=r"cannot write into /proc \("):
        run(Request("absent.mp4", "?", "absent"), out="/proc/out")
    (tmp_path / "result.json").mkdir()
    with pytest.raises(VidsieveError, match=r"expected the name of a file to write; .*result\.json is a folder"):
        run(Request("absent.mp4", "?", "absent"), out=tmp_path)


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "file/below", "nowhere", "file"])
def test_what_cannot_be_a_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    with pytest.raises(VidsieveError):
        writable.folder(tmp_path / name)


def test_looking_leaves_nothing_and_spoils_nothing(tmp_path: Path) -> None:
    (tmp_path / "there.json").write_text("[]")
    for name in ("there.json", "new.json", "a/b/new.json"):
        assert writable.file(tmp_path / name) == tmp_path / name
    assert writable.folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert [path.name for path in tmp_path.iterdir()] == ["there.json"]
    assert (tmp_path / "there.json").read_text() == "[]"
    assert writable.file(os.devnull) == Path(os.devnull)
