"""How kernels are found, refused, compiled and called."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("vidsieve.ops.launch", reason="Triton is not installed")


def test_kernels_that_cannot_run_are_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("the kernels can run on this machine")
    code = "import torch, vidsieve as v; v.presets.vidsieve(.5).reduce(v.VideoTokens(torch.ones(4, 8), (2, 2)))"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"VIDSIEVE_OPS": "triton"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "KernelUnavailable: VIDSIEVE_OPS=triton cannot run here: Triton needs a CUDA device" in run.stderr


@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_kernels_compile_without_a_gpu(architecture: int) -> None:
    script = Path(__file__).with_name("compile_kernels.py")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(script), str(architecture)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    assert len(run.stdout.split()) == 27, run.stdout
