"""The scripts in examples/ run offline, on the clip and the model that `vidsieve demo` makes."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = "from vidsieve.cli.main import main; raise SystemExit(main(['demo', '--out', 'out/demo']))"
EXAMPLES = Path(__file__).parent.parent / "examples"
OTHERS = {"select_only.py", "data_parallel.py"}  # with tests of their own


def run(*command: str, cwd: Path) -> str:
    done = subprocess.run([sys.executable, *command], cwd=cwd, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    run("-c", DEMO, cwd=folder)
    return folder


def test_select_only(tmp_path: Path) -> None:
    printed = run(str(EXAMPLES / "select_only.py"), cwd=tmp_path)
    assert "3136 tokens -> 314 kept" in printed


@pytest.mark.parametrize("name", sorted({path.name for path in EXAMPLES.glob("*.py")} - OTHERS))
def test_runs_on_the_demo_model(name: str, workplace: Path) -> None:
    assert "kept" in run(str(EXAMPLES / name), cwd=workplace)


def test_data_parallel_processes_answer_as_one(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = str(EXAMPLES / "data_parallel.py")
    monkeypatch.chdir(workplace)
    runpy.run_path(script)["main"]()
    alone = capsys.readouterr().out
    answers = [line.partition("?")[2].strip() for line in alone.splitlines()]
    assert len(answers) == 5
    assert len(set(answers)) > 1
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    assert run(*launch, script, cwd=workplace) == alone
