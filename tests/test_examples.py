"""The scripts in examples/ run offline, on the clip and the model that `vidsieve demo` makes."""

import contextlib
import io
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from vidsieve.engines.hf.attach import attachment_of
from vidsieve.evaluation.needles.tiny import BUNDLED

DEMO = "from vidsieve.cli.main import main; raise SystemExit(main(['demo', '--out', 'out/demo']))"
EXAMPLES = Path(__file__).parent.parent / "examples"
OTHERS = {"select_only.py", "data_parallel.py", "serve_transformers.py"}  # with tests of their own


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


def test_transformers_serve_loads_models_with_a_method_attached() -> None:
    """Without the server: what it would load, and how it would take a video."""
    served = runpy.run_path(str(EXAMPLES / "serve_transformers.py"))
    serve, modality = served["model_manager"].ModelManager, served["Modality"]
    assert serve is served["SievedModels"]  # the name that `transformers serve` looks up
    manager = serve(device="cpu", force_model=str(BUNDLED))
    model, processor = manager.load_model_and_processor(manager.process_model_name(str(BUNDLED)))
    attached = attachment_of(model.base_model)
    assert attached is not None
    assert attached.reducer.keep == served["KEEP"]
    assert manager.get_model_modality(model, processor) is modality.VLM
    manager.shutdown()


def test_notebook_prints_what_is_stored_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = json.loads((EXAMPLES / "tour.ipynb").read_text("utf-8"))
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert any(cell["outputs"] for cell in cells)
    for cell in cells:
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec("".join(cell["source"]), names)
        stored = "".join("".join(output.get("text", "")) for output in cell["outputs"])
        assert _untimed(said.getvalue()) == _untimed(stored)


def _untimed(text: str) -> list[str]:
    return [re.sub(r"[\d.,]+ ms", "ms", line) for line in text.splitlines()]
