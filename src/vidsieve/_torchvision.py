"""Let torchvision import beside a CPU build of torch.

Hugging Face video processors need torchvision, and of it only what is written in Python (`transforms.v2`). The wheel
on PyPI is linked to CUDA; beside a CPU build of torch its compiled half does not load, and the import then fails,
because the Python half describes two operators that nobody defined. Defining their schemas, without kernels, is all it
takes; calling one still fails, as it should. A torchvision that matches its torch is left alone.
"""

import sys

import torch

from vidsieve.errors import require

_library: torch.library.Library | None = None  # the schemas go when this does


def make_importable() -> None:
    """Import torchvision, if need be with the two schemas; raises `MissingExtra` where it is not installed."""
    global _library
    try:
        require("torchvision", "hf")
    except RuntimeError as error:
        if torch.version.cuda is not None or "operator torchvision::nms does not exist" not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        _library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for name in ("nms", "qnms"):
            _library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
        require("torchvision", "hf")
