"""Let torchvision import beside a CPU build of torch. `vidsieve env` says whether that is needed here.

Hugging Face video processors need torchvision, and of it only what is written in Python (`transforms.v2`). The wheel
on PyPI is linked to CUDA; beside a CPU build of torch its compiled half does not load, and the import then fails,
because the Python half describes two operators that nobody defined. Defining their schemas, without kernels, is all it
takes; calling one still fails, as it should. A torchvision that matches its torch is left alone.

vidsieve does so where it loads a model. `python -m vidsieve.engines.torchvision`, which `make setup` runs, does it for
all else that this Python runs, plain transformers too: a line in site-packages that acts when torchvision is first
imported and imports nothing before. Where torch and torchvision come from one package index, none of this is needed.
"""

import importlib.machinery
import sys
import sysconfig
from pathlib import Path

import torch

from vidsieve.checks import pip_install, require
from vidsieve.errors import MissingExtra

HOOK = "VidsieveTorchvision"
LINE = (
    f"import sys; sys.meta_path.insert(0, type('{HOOK}', (), {{'find_spec': "
    "staticmethod(lambda name, *_: name == 'torchvision' and "
    "__import__('importlib.util').util.find_spec('vidsieve') and "
    "__import__('vidsieve.engines.torchvision', fromlist=['define']).define() or None)}))\n"
)

_library: torch.library.Library | None = None  # the schemas go when this does


def make_importable() -> None:
    """Import torchvision, if need be with the two schemas; raises `MissingExtra` where it is not installed."""
    if "torchvision" not in sys.modules:
        define()
    require("torchvision", "hf")


def define() -> None:
    """Define the two schemas where they are missing. To be called before torchvision is imported."""
    global _library
    if _library is not None or torch.version.cuda is not None or _fits():
        return
    _library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):  # somebody else may have done so
            _library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]


def _fits() -> bool:
    """Whether torchvision's compiled half loads beside this torch; True where there is no torchvision to load."""
    spec = importlib.machinery.PathFinder.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True
    try:
        for suffix in importlib.machinery.EXTENSION_SUFFIXES:
            if (compiled := Path(spec.origin).with_name(f"_C{suffix}")).exists():
                torch.ops.load_library(str(compiled))  # type: ignore[no-untyped-call]
                return True
    except OSError:
        pass
    return False


def state() -> str | None:
    """ "fine", "patched", "broken"; None where it is not installed. vidsieve itself can work with all but None."""
    if importlib.machinery.PathFinder.find_spec("torchvision") is None:
        return None
    if _fits():
        return "fine"
    hooked = any(getattr(finder, "__name__", "") == HOOK for finder in sys.meta_path)
    return "patched" if hooked and torch.version.cuda is None else "broken"


def install(folder: Path) -> Path | None:
    """Write the line into `folder`, a site-packages; None where torchvision needs no help."""
    path = folder / "vidsieve_torchvision.pth"
    if torch.version.cuda is not None or _fits():
        path.unlink(missing_ok=True)
        return None
    path.write_text(LINE, encoding="utf-8")
    return path


if __name__ == "__main__":
    if state() is None:
        raise MissingExtra(f"there is no torchvision here; install it with: {pip_install('hf')}")
    written = install(Path(sysconfig.get_path("purelib")))
    print(f"torchvision is not built for this torch; {written} lets it import" if written else "torchvision fits torch")
