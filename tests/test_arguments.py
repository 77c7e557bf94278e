"""What is given in the wrong place, or for something else: the parts that need no model. And what the package shows."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import vidsieve
from vidsieve import Chain, Prompt, Prune, VideoTokens, registry
from vidsieve.checks import check_number, describe
from vidsieve.errors import VidsieveError, WrongArgument
from vidsieve.methods import presets
from vidsieve.methods.merge import TemporalMerge

TOKENS = VideoTokens.from_grid(torch.randn(8, 4), 2, 2, 2)
REDUCERS = {
    "prune": Prune(0.5),
    "chain": Chain(Prune(0.5)),
    "merge": TemporalMerge(keep=0.5),
    "fixed size": presets.visionzip(0.5),
}


@pytest.mark.parametrize("name", REDUCERS)
def test_features_are_no_tokens_and_text_is_no_prompt(name: str) -> None:
    reducer = REDUCERS[name]
    with pytest.raises(WrongArgument, match=r"got a tensor float32\(8, 4\); .*VideoTokens\.from_grid"):
        reducer.reduce(TOKENS.features)
    with pytest.raises(WrongArgument, match=r"expected a Prompt or None, got 'Who wins\?'"):
        reducer.reduce(TOKENS, "Who wins?")
    with pytest.raises(WrongArgument, match=r"VideoTokens\.from_grid"):
        reducer.reduce_each([TOKENS.features, TOKENS.features])
    assert len(reducer.reduce(TOKENS, Prompt(torch.randn(2, 4))).kept) == 4


def test_a_path_is_no_frames() -> None:
    pytest.importorskip("transformers")
    from vidsieve.engines.hf.loading import prepare

    with pytest.raises(WrongArgument, match=r"expected Frames, got 'clip\.mp4'; read them first: read_video"):
        prepare(None, "clip.mp4", "What?")


def test_text_is_no_tail_and_a_path_no_tensors(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from tests.engines.hf import tiny
    from vidsieve.encoded import stored

    model = tiny.fresh("qwen2_5_vl")
    for tail in ("What?", torch.ones(1, 3, dtype=torch.long), torch.ones(3)):
        with pytest.raises(WrongArgument, match=r"expected tail as token ids, int64 \(n,\), got .*input_ids\[0\]"):
            stored.restore(model, {}, tail)
    with pytest.raises(WrongArgument, match=r"stored\.read\(file\)"):
        stored.restore(model, "clip.safetensors")
    with pytest.raises(VidsieveError, match="is a folder; expected one features file"):
        stored.read(tmp_path)
    with pytest.raises(VidsieveError, match="no such file; expected one features file"):
        stored.read(tmp_path / "absent")


def test_a_result_is_read_from_its_folder_by_any_kind_of_path(tmp_path: Path) -> None:
    from vidsieve.cli import run

    result: dict[str, Any] = {"clip": "c", "model": "m", "model_type": "t", "method": "m", "keep": 0.1, "kept": []}
    result |= {"tokens": [4], "grid": None, "segments": None, "frames": {"index": [0], "size": [9, 9]}}
    run.write(result, str(tmp_path))
    assert run.read(str(tmp_path)) == run.read(tmp_path / "result.json") == result
    (tmp_path / "other" / "result.json").mkdir(parents=True)
    with pytest.raises(VidsieveError, match=r"no such file; expected the result\.json"):
        run.read(str(tmp_path / "other"))


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("clip.mp4", "'clip.mp4'"),
        (0.5, "0.5"),
        (None, "None"),
        (torch.zeros(2, 3), "a tensor float32(2, 3)"),
        (len, "the function len"),
        (Prune, "the class Prune"),
        (sys, "the module sys"),
        (["many"] * 50, "a list"),
        (object(), "a object"),
    ],
)
def test_anything_is_described_in_one_short_line(value: object, says: str) -> None:
    assert describe(value) == says
    with pytest.raises(ValueError, match="a number; got"):
        check_number("a number", value, 2, 3)


@pytest.mark.parametrize("name", registry.methods(inside=False))
def test_the_work_grows_as_it_is_said_to(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidsieve.methods.selection.ELSEWHERE_TOKENS", 16 * 98)  # beyond which it is linear
    work = [_work(name, frames) for frames in (16, 32, 64)]
    growth = work[2] / work[1]
    assert growth == pytest.approx(4 if registry.method(name).grows == "square" else 2, rel=0.15)


def _work(name: str, frames: int) -> int:
    """How many numbers a method computes for a video."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Counted(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = call(*args, **(kwargs or {}))
            if not (call.is_view or call._schema.is_mutable):
                self.numbers += sum(x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor))
            return out

    g = torch.Generator().manual_seed(0)
    tokens = VideoTokens.from_grid(torch.randn(frames * 98, 16, generator=g), frames, 7, 14)
    with Counted() as counted:
        registry.method(name)(0.1).reduce(tokens, Prompt(torch.randn(5, 16, generator=g)))
    return counted.numbers


def test_what_the_package_shows_is_there_and_loaded_when_asked_for() -> None:
    code = (
        "import sys, vidsieve; assert {'engines', 'cli', 'video', 'detach'} <= set(dir(vidsieve))\n"
        "assert not {'transformers', 'av', 'PIL', 'vidsieve.engines.hf'} & sys.modules.keys()\n"
        "print(vidsieve.engines.hf.__name__, vidsieve.video.read_video.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout == "vidsieve.engines.hf read_video\n", done.stderr
    assert set(vidsieve.__all__) <= set(dir(vidsieve))
    for name in vidsieve.__all__:
        assert getattr(vidsieve, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        vidsieve.nothing  # noqa: B018


def test_exported_names_are_sorted_and_exist() -> None:
    assert vidsieve.__all__ == sorted(vidsieve.__all__)
    assert all(hasattr(vidsieve, name) for name in vidsieve.__all__)
