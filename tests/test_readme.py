"""What README promises: its blocks run, its files exist, and its Chinese twin shows the same code."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CLI = (sys.executable, "-c", "import sys; from vidsieve.cli.main import main; sys.exit(main())")
ENGLISH, CHINESE = ROOT / "README.md", ROOT / "README.zh-CN.md"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(path: Path, language: str | None = None) -> list[str]:
    found = BLOCK.findall(path.read_text(encoding="utf-8"))
    return [code for name, code in found if language in (None, name)]


def commands() -> list[str]:
    lines = "".join(blocks(ENGLISH, "bash")).splitlines()
    return [line.partition("#")[0].strip() for line in lines if line.strip()]


def run(*command: str, cwd: Path) -> str:
    """Standard output of a command; a failure shows everything it printed."""
    environment = os.environ | {"PYTHONWARNINGS": "default", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `make demo` has left its clip and its model."""
    folder = tmp_path_factory.mktemp("readme")
    run(*CLI, "demo", "--out", "out/demo", cwd=folder)
    return folder


def test_both_languages_show_the_same_code() -> None:
    assert blocks(ENGLISH), "README.md shows no code"
    assert BLOCK.findall(ENGLISH.read_text("utf-8")) == BLOCK.findall(CHINESE.read_text("utf-8"))


@pytest.mark.parametrize("path", [ENGLISH, CHINESE], ids=lambda path: path.name)
def test_first_screen_shows_what_it_is_and_how_to_start(path: Path) -> None:
    screen = "\n".join(path.read_text("utf-8").splitlines()[:15])
    assert re.search(r"!\[.+\]\(docs/images/demo\.png\)", screen)
    assert "make demo" in screen
    assert "make test" in screen


@pytest.mark.parametrize("path", sorted(ROOT.glob("*.md")) + sorted((ROOT / "docs").glob("*.md")), ids=lambda p: p.name)
def test_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", path.read_text("utf-8"))
    missing = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert not missing


def test_make_targets_exist() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    asked = [command.split()[1] for command in commands() if command.startswith("make ")]
    assert asked
    assert set(asked) <= set(targets)


def test_extras_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    asked = [name for command in commands() for name in re.findall(r"\[(.+?)\]", command)]
    assert asked
    assert set(asked) <= set(extras)


def test_commands_run(workplace: Path) -> None:
    ours = [shlex.split(command)[1:] for command in commands() if command.startswith("vidsieve ")]
    assert ours
    for arguments in ours:
        assert run(*CLI, *arguments, cwd=workplace)


def test_every_command_is_known() -> None:
    """Anything but `make`, `pip` and `vidsieve` would go untested."""
    assert {command.split()[0] for command in commands()} <= {"make", "pip", "vidsieve"}


def test_python_blocks_run_one_after_another(workplace: Path) -> None:
    script = workplace / "readme.py"
    script.write_text("\n".join(blocks(ENGLISH, "python")), encoding="utf-8")
    printed = run(sys.executable, str(script), cwd=workplace)
    promised = re.findall(r"^print\(trace\)  # (.+)$", script.read_text("utf-8"), re.MULTILINE)
    assert len(promised) == 2
    for line in promised:
        assert re.search(".*".join(map(re.escape, line.split("..."))), printed), f"not printed: {line}\n{printed}"
    assert "Verification ok" in printed
