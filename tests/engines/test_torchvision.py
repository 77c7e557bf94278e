"""torchvision.py: a torchvision that is not built for its torch imports in plain Python too, and nothing is slower."""

import json
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vidsieve.cli import main
from vidsieve.engines import torchvision

pytest.importorskip("torchvision")


def python(folder: Path, code: str) -> str:
    """What `code` prints in a Python that has `folder` as one of its site-packages."""
    code = f"import site; site.addsitedir({str(folder)!r})\n{code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def other_torchvision(folder: Path, fits: bool) -> Path:
    """Make `folder` one to import another torchvision from, whose compiled half loads beside this torch or does not."""
    (folder / "torchvision").mkdir(parents=True)
    (folder / "torchvision" / "__init__.py").touch()
    compiled = folder / "torchvision" / f"_C{EXTENSION_SUFFIXES[0]}"
    if fits:
        compiled.symlink_to(torch._C.__file__)  # any library that loads
    else:
        compiled.write_bytes(b"no library")
    return folder


def test_plain_transformers_finds_a_torchvision_that_imports(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    torchvision.install(tmp_path)
    told = python(
        tmp_path, "from transformers import AutoProcessor\nimport torchvision.transforms.v2\nprint('imports')"
    )
    assert told == "imports\n"


def test_the_line_imports_nothing_until_torchvision_is(tmp_path: Path) -> None:
    (tmp_path / "one.pth").write_text(torchvision.LINE)
    code = "import sys\nprint(sum(name in sys.modules for name in ('torch', 'torchvision', 'vidsieve')))"
    assert python(tmp_path, code) == "0\n"


def test_without_the_line_vidsieve_imports_transformers(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    others = f"[finder for finder in sys.meta_path if getattr(finder, '__name__', '') != {torchvision.HOOK!r}]"
    code = (
        f"import sys\nsys.meta_path = {others}\nimport vidsieve.engines.hf, torchvision.transforms.v2\nprint('imports')"
    )
    assert python(tmp_path, code) == "imports\n"


@pytest.mark.parametrize("namespace", ["FRAGMENT", "DEF"])
@pytest.mark.parametrize("names", [("nms", "qnms"), ("nms",)])
def test_schemas_that_somebody_else_defined_stay(tmp_path: Path, namespace: str, names: tuple[str, ...]) -> None:
    code = (
        f"import torch\nlibrary = torch.library.Library('torchvision', {namespace!r})\nfor name in {names}:\n"
        "    library.define(f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')\n"
        "import vidsieve.engines.torchvision as ours\nours._fits, torch.version.cuda = lambda: False, None\n"
        "ours.define()\nprint(all(hasattr(torch.ops.torchvision, name) for name in ('nms', 'qnms')))"
    )
    assert python(tmp_path, code) == "True\n"


def test_after_an_import_that_failed_it_still_can_be_made_to(tmp_path: Path) -> None:
    code = "try:\n    import torchvision\nexcept RuntimeError:\n    pass\n"
    code += (
        "from vidsieve.engines.torchvision import make_importable\nmake_importable()\nimport torchvision.transforms.v2"
    )
    assert python(tmp_path, code) == ""


def test_a_torchvision_that_fits_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other, packages = other_torchvision(tmp_path / "other", fits=True), tmp_path / "packages"
    packages.mkdir()
    code = f"import sys\nsys.path.insert(0, {str(other)!r})\nimport torch, vidsieve.engines.torchvision as ours\n"
    code += "ours.define()\nprint(ours.state(), hasattr(torch.ops.torchvision, 'nms'))"
    assert python(packages, code) == "fine False\n"
    (packages / "vidsieve_torchvision.pth").touch()
    monkeypatch.syspath_prepend(other)
    assert torchvision.install(packages) is None
    assert not list(packages.iterdir())


@pytest.mark.parametrize(
    ("cuda", "hooked", "state", "says"),
    [
        (None, True, "patched", "plain transformers works too"),
        (None, False, "broken", "python -m vidsieve.engines.torchvision"),
        ("12.8", True, "broken", "install both from one package index"),
    ],
)
def test_env_tells_of_a_torchvision_that_does_not_fit(
    cuda: str | None,
    hooked: bool,
    state: str,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(other_torchvision(tmp_path, fits=False))
    monkeypatch.setattr(torch.version, "cuda", cuda)
    finders = [finder for finder in sys.meta_path if getattr(finder, "__name__", "") != torchvision.HOOK]
    if hooked:
        finders.append(SimpleNamespace(__name__=torchvision.HOOK, find_spec=lambda *_: None))
    monkeypatch.setattr(sys, "meta_path", finders)
    assert main.main(["env", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["torchvision"] == state
    assert main.main(["env"]) == 0
    assert says in capsys.readouterr().out
