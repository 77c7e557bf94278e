"""warm: what is compiled, what is called for it, and what is refused."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from vidsieve.cli import main, warm, warm_encode
from vidsieve.evaluation.needles.tiny import BUNDLED

pytest.importorskip("transformers")
triton = pytest.importorskip("triton", reason="Triton is not installed")
tl = pytest.importorskip("triton.language", reason="Triton is not installed")


class FakeCache:
    """Stands in for Triton: the first call on a number of tokens stores two kernels in its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls: list[int] = []
        self._call = warm._seconds

    def __call__(self, model: Any, inputs: Any) -> float:
        tokens = int((inputs["input_ids"] == model.config.video_token_id).sum())
        if tokens not in self.calls:
            for part in range(2):
                stored = self.folder / f"{tokens}-{part}"
                stored.mkdir(parents=True)
                (stored / "__grp__kernel.json").write_text("{}")
        self.calls.append(tokens)
        return self._call(model, inputs)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCache:
    cache = FakeCache(tmp_path / "cache")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(cache.folder))
    monkeypatch.setattr(warm, "nothing_to_compile", lambda device: "")
    monkeypatch.setattr(warm, "_seconds", cache)
    monkeypatch.setattr(warm_encode, "MOST_TOKENS", 12)
    return cache


def _warm(*more: str) -> list[str]:
    return ["warm", str(BUNDLED), "--device", "cpu", *more]


LAYOUTS = ("--frames", "4", "6", "--size", "56", "84", "--size", "84", "56")


def test_each_layout_is_called_twice_and_what_is_new_is_counted(
    fake: FakeCache, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(_warm(*LAYOUTS, "--keep", "50%", "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["keep"], found["folder"], found["reason"]) == (0.5, str(fake.folder), "")
    rows = found["layouts"]
    assert [(row["frames"], row["size"]) for row in rows] == [
        (4, [56, 84]), (4, [84, 56]), (6, [56, 84]), (6, [84, 56]),
    ]  # fmt: skip
    assert fake.calls == [row["tokens"] for row in rows for _ in range(2)]
    assert rows[0]["tokens"] == rows[1]["tokens"] < rows[2]["tokens"]
    assert [row["compiled"] for row in rows] == [2, 0, 2, 0]
    assert (found["attach_compiled"], found["compiled"]) == (0, 4)
    assert all(row["first_s"] > 0 < row["second_s"] for row in rows)
    assert found["tower"].startswith("packed")
    encoded = [(row["chunk"], row["size"], row["compiled"]) for row in found["encode"]]
    assert (encoded, found["encode_reason"]) == ([(64, [56, 84], 0), (64, [84, 56], 0)], "")
    assert all(row["first_s"] > 0 < row["second_s"] for row in found["encode"])


def test_a_line_for_each_layout(fake: FakeCache, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(_warm(*LAYOUTS, "--method", "uniform")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "qwen2_5_vl on cpu in float32; uniform, keep 0.1"
    assert lines[1].startswith("attached: ")
    layout = r"6 frames of 56 x 84, \d+ tokens: first \d+\.\d\d s, second \d+\.\d\d s, 2 kernels compiled"
    assert re.fullmatch(layout, lines[4])
    assert lines[6].startswith("encode: not with this model and method (Whole() needs the whole video or a prompt")
    assert lines[7:] == [f"4 kernels compiled into {fake.folder}"]


@pytest.mark.parametrize(
    ("device", "variable", "says"),
    [
        ("cpu", None, "kernels are for CUDA devices, and this is cpu"),
        ("cuda", ("VIDSIEVE_OPS", "eager"), "VIDSIEVE_OPS=eager asks for no kernels"),
        ("cuda", ("TRITON_INTERPRET", "1"), "TRITON_INTERPRET=1 has kernels interpreted"),
    ],
)
def test_it_says_why_nothing_compiles_and_loads_nothing(
    device: str,
    variable: tuple[str, str] | None,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(warm, "usable_device", lambda name: torch.device(device))
    monkeypatch.setattr(warm, "load", None)
    if variable:
        monkeypatch.setenv(*variable)
    assert main.main(_warm()) == 0
    out, err = capsys.readouterr()
    assert (out, err) == (f"nothing to compile: {says}\n", "")
    assert main.main(_warm("--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["reason"], found["layouts"], found["compiled"]) == (says, [], 0)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["warm", "/no/such/model"], 1, "model '/no/such/model': no such folder; expected a folder"),
        (["warm", str(BUNDLED), "--device", "cuda:99"], 1, "device 'cuda:99' cannot be used here"),
        (["warm", str(BUNDLED), "--method", "none"], 2, "no method 'none'; there are vidsieve"),
        (["warm", str(BUNDLED), "--frames", "0"], 2, "expected a whole number of at least 1; got 0"),
        (["warm", str(BUNDLED), "--size", "56"], 2, "--size: expected 2 arguments"),
    ],
    ids=["model", "device", "method", "frames", "size"],
)
def test_what_cannot_be_is_told_in_one_line(
    arguments: list[str], code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        returned = main.main(arguments)
    except SystemExit as stop:
        returned = int(stop.code or 0)
    out, err = capsys.readouterr()
    assert (returned, out) == (code, "")
    assert says in err.splitlines()[-1]


def test_a_cache_that_cannot_be_written_is_refused_before_the_model_is_loaded(
    fake: FakeCache, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.folder.write_text("a file")
    monkeypatch.setattr(warm, "load", None)
    assert main.main(_warm()) == 1
    err = capsys.readouterr().err
    assert err == (
        "vidsieve: error: compiled kernels cannot be stored (TRITON_CACHE_DIR names the folder): expected a folder to "
        f"write into, which {fake.folder} is not: it is a file\n"
    )


def test_frames_that_do_not_fit_into_memory_are_named(
    fake: FakeCache, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(model: Any, inputs: Any) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate all of it")

    monkeypatch.setattr(warm, "_seconds", call)
    assert main.main(_warm("--frames", "4", "--size", "56", "84")) == 1
    err = capsys.readouterr().err
    assert err.endswith(
        "4 frames of 56 x 84 do not fit into the memory of cpu; ask for fewer --frames, or a smaller --size\n"
    )


def test_what_triton_stores_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = triton.runtime.jit.JITFunction(_store_zero)
    source = triton.compiler.ASTSource(kernel, {"x_ptr": "*i32"}, {})
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    folder = warm.compiled_folder()
    assert warm.stored_kernels(folder) == 0
    for _ in range(2):
        triton.compile(source, triton.backends.compiler.GPUTarget("cuda", 90, 32))
        assert warm.stored_kernels(folder) == 1


def _store_zero(x_ptr):  # Triton reads its annotations
    tl.store(x_ptr, 0)


def test_drawn_frames_move_and_are_cut_halfway() -> None:
    frames = warm.draw(8, 32, 48)
    assert frames.pixels.shape == (8, 32, 48, 3)
    moved = torch.equal(frames.pixels[1, :, : -warm.SQUARE], frames.pixels[0, :, warm.SQUARE :])
    assert moved
    assert torch.equal(frames.pixels[5, warm.SQUARE :], frames.pixels[4, : -warm.SQUARE])
    changes = (frames.pixels[1:].float() - frames.pixels[:-1].float()).abs().mean((1, 2, 3))
    assert changes.min() > 0
    assert not torch.equal(frames.pixels[3, :, : -warm.SQUARE], frames.pixels[4, :, : -warm.SQUARE])


@pytest.mark.gpu
def test_a_second_time_nothing_is_left_to_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-m", "vidsieve", "warm", str(BUNDLED), "--dtype", "bfloat16", *LAYOUTS, "--json"]
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    runs = [subprocess.run(command, env=environment, check=True, capture_output=True) for _ in range(2)]
    first, second = (json.loads(run.stdout) for run in runs)
    assert first["compiled"] > 0
    assert second["compiled"] == 0
