"""torchvision.py: a torchvision that is not built for its torch imports in plain Python too, and nothing is slower."""

import json
import subprocess
import sys
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


def test_after_an_import_that_failed_it_still_can_be_made_to(tmp_path: Path) -> None:
    code = "try:\n    import torchvision\nexcept RuntimeError:\n    pass\n"
    code += (
        "from vidsieve.engines.torchvision import make_importable\nmake_importable()\nimport torchvision.transforms.v2"
    )
    assert python(tmp_path, code) == ""


def test_a_torchvision_that_fits_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vidsieve_torchvision.pth").write_text("")
    monkeypatch.setattr(torchvision, "_fits", lambda: True)
    monkeypatch.setattr(torchvision, "_library", None)
    torchvision.define()
    assert torchvision._library is None
    assert torchvision.state() == "fine"
    assert torchvision.install(tmp_path) is None
    assert not list(tmp_path.iterdir())


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
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torchvision, "_fits", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    finders = [finder for finder in sys.meta_path if getattr(finder, "__name__", "") != torchvision.HOOK]
    if hooked:
        finders.append(SimpleNamespace(__name__=torchvision.HOOK, find_spec=lambda *_: None))
    monkeypatch.setattr(sys, "meta_path", finders)
    assert main.main(["env", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["torchvision"] == state
    assert main.main(["env"]) == 0
    assert says in capsys.readouterr().out
