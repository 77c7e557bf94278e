"""How kernels are found, refused, compiled and called."""

import os
import subprocess
import sys
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

launch = pytest.importorskip("vidsieve.ops.launch", reason="Triton is not installed")

PATCH = count()  # of a version of Triton, so that each test asks about one that nobody has asked about yet
KERNELS: list[object] = []  # that were launched, which are told apart by where they lie


def test_kernels_that_cannot_run_are_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("the kernels can run on this machine")
    code = "import torch, vidsieve as v; v.presets.vidsieve(.5).reduce(v.VideoTokens(torch.ones(4, 8), (2, 2)))"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"VIDSIEVE_OPS": "triton"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "KernelUnavailable: VIDSIEVE_OPS=triton cannot run here: Triton needs a CUDA device" in run.stderr


def test_kernels_compile_without_a_gpu() -> None:
    architectures = ("80", "90", "100")
    script = Path(__file__).with_name("compile_kernels.py")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(script), *architectures]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    compiled = [line.split()[1] for line in run.stdout.splitlines()]
    assert [compiled.count(architecture) for architecture in architectures] == [34] * 3, run.stdout


@pytest.mark.parametrize(("version", "known"), [("3.7", True), ("3.6", True), ("3.99", False), ("4.0", False)])
def test_an_unknown_triton_launches_its_kernels_itself_and_that_is_said_once(
    version: str, known: bool, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    launched = []

    class Kernel:
        arg_names = ("x",)

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda *args, **options: launched.append(("by Triton", grid)) or compiled

    def run(*args: Any) -> None:
        launched.append(("directly", args[:3]))

    compiled = SimpleNamespace(run=run, function=None, packed_metadata=None)
    hooks = SimpleNamespace(calls=[])
    runtime = SimpleNamespace(launch_enter_hook=hooks, launch_exit_hook=hooks)
    monkeypatch.setattr(launch, "INTERPRETED", False)
    monkeypatch.setattr(launch, "knobs", SimpleNamespace(runtime=runtime))
    monkeypatch.setattr(launch, "driver", SimpleNamespace(active=SimpleNamespace(get_current_stream=lambda device: 0)))
    version = f"{version}.{next(PATCH)}"
    monkeypatch.setattr(launch.triton, "__version__", version)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    kernel, x = Kernel(), SimpleNamespace(device=SimpleNamespace(index=0))
    KERNELS.append(kernel)
    for _ in range(3):
        launch.launch(kernel, (7,), x)
    later = ("directly", (7, 1, 1)) if known else ("by Triton", (7,))
    assert launched == [("by Triton", (7,)), later, later]
    said = [str(warning.message) for warning in recwarn]
    assert [version in line and "Results are the same" in line for line in said] == ([] if known else [True])
