"""How kernels are found, refused, compiled and called."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

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
    assert [compiled.count(architecture) for architecture in architectures] == [40] * 3, run.stdout


class Device:
    """A GPU that runs nothing, and a Triton that tells in `launched` what it would: how, the grid, what is passed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, version: str = "3.7") -> None:
        self.launched: list[tuple[Any, ...]] = []
        self.current = 0
        self.hooks: list[object] = []  # of a profiler
        self.version = f"{version}.{next(PATCH)}"
        hooks = SimpleNamespace(calls=self.hooks)
        runtime = SimpleNamespace(launch_enter_hook=hooks, launch_exit_hook=hooks)
        active = SimpleNamespace(get_current_stream=lambda device: f"stream of {device}")
        monkeypatch.setattr(launch, "INTERPRETED", False)
        monkeypatch.setattr(launch, "knobs", SimpleNamespace(runtime=runtime))
        monkeypatch.setattr(launch, "driver", SimpleNamespace(active=active))
        monkeypatch.setattr(launch.triton, "__version__", self.version)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: self.current)
        monkeypatch.setattr(torch.cuda, "device", self._made_current)

    @contextmanager
    def _made_current(self, device: int) -> Iterator[None]:
        before, self.current = self.current, device
        yield
        self.current = before

    def kernel(self, *names: str) -> Any:
        kernel = _Kernel()
        kernel.arg_names, kernel.device = names, self
        KERNELS.append(kernel)
        return kernel


class _Compiled:
    function, packed_metadata = "function", "metadata"

    def __init__(self, device: Device) -> None:
        self._launched = device.launched

    def run(self, *args: Any) -> None:
        assert args[4:9] == ("function", "metadata", None, None, None)
        self._launched.append(("directly", args[:3], args[3], args[9:]))

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *values: self._launched.append(("for a profiler", grid, values))


class _Kernel:
    arg_names: tuple[str, ...]
    device: Device

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def call(*args: Any, **options: Any) -> _Compiled:
            self.device.launched.append(("by Triton", grid, self.device.current))
            return _Compiled(self.device)

        return call


class OnDevice(Tensor):
    """A tensor that says it is on a GPU."""

    index = 0

    @property
    def device(self) -> Any:  # type: ignore[override]
        return SimpleNamespace(index=self.index)


def on_device(index: int = 0, dtype: torch.dtype = torch.float32, offset: int = 0) -> Any:
    x = torch.zeros(64, dtype=dtype)[offset:].as_subclass(OnDevice)
    x.index = index
    return x


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize(("version", "known"), [("3.7", True), ("3.6", True), ("3.99", False), ("4.0", False)])
def test_an_unknown_triton_launches_its_kernels_itself_and_that_is_said_once(
    version: str, known: bool, prepared: bool, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    device = Device(monkeypatch, version)
    kernel, x, version = device.kernel("x"), on_device(), device.version
    call = launch.PreparedKernel(kernel) if prepared else partial(launch.launch, kernel)
    grid = (7, 1, 1) if prepared else (7,)
    for _ in range(3):
        call(grid, x)
    first = ("by Triton", grid, 0)
    later = ("directly", (7, 1, 1), "stream of 0", (x.data_ptr(),)) if known else first
    assert device.launched == [first, later, later]
    said = [str(warning.message) for warning in recwarn]
    assert [version in line and "Results are the same" in line for line in said] == ([] if known else [True])


def test_a_prepared_kernel_is_compiled_for_each_device_type_and_alignment(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    call = launch.PreparedKernel(device.kernel("x", "y", "WIDTH"), WIDTH=5, num_warps=4)
    y = on_device()
    for x in (on_device(), on_device(dtype=torch.float16), on_device(offset=1), on_device(1)):
        device.current = x.index
        for first in (True, False, False):
            call((3, 2, 1), x, y)
            by_triton = ("by Triton", (3, 2, 1), x.index)
            directly = ("directly", (3, 2, 1), f"stream of {x.index}", (x.data_ptr(), y.data_ptr(), 5))
            assert device.launched.pop() == (by_triton if first else directly)
    assert not device.launched


def test_kernels_with_other_constants_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    kernel, x = device.kernel("x", "WIDTH"), on_device()
    for width in (5, 6):
        call = launch.PreparedKernel(kernel, WIDTH=width)
        call((1, 1, 1), x)
        call((1, 1, 1), x)
    how = [entry[0] for entry in device.launched]
    assert how == ["by Triton", "directly"] * 2
    assert [entry[-1][-1] for entry in device.launched[1::2]] == [5, 6]


@pytest.mark.parametrize("prepared", [False, True])
def test_a_kernel_runs_on_the_device_of_its_tensors(prepared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    kernel, x = device.kernel("x"), on_device(1)
    call = launch.PreparedKernel(kernel) if prepared else partial(launch.launch, kernel)
    ran_on: list[int] = []
    run = _Compiled.run
    monkeypatch.setattr(_Compiled, "run", lambda self, *args: (ran_on.append(device.current), run(self, *args)))
    for _ in range(3):
        call((1, 1, 1), x)
    assert device.launched[0] == ("by Triton", (1, 1, 1), 1)
    assert [entry[0] for entry in device.launched[1:]] == ["directly"] * 2
    assert ran_on == [1, 1]
    assert device.current == 0


@pytest.mark.parametrize("prepared", [False, True])
def test_a_profiler_is_told_of_launches(prepared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    kernel, x = device.kernel("x"), on_device()
    call = launch.PreparedKernel(kernel) if prepared else partial(launch.launch, kernel)
    for _ in range(2):
        call((1, 1, 1), x)
    device.hooks.append(object())
    call((1, 1, 1), x)
    device.hooks.clear()
    call((1, 1, 1), x)
    assert [entry[0] for entry in device.launched] == ["by Triton", "directly", "for a profiler", "directly"]
    assert device.launched[2][2] == (x.data_ptr(),)
