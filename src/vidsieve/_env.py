"""What `vidsieve env` tells: what is installed, what would run, and what stands in the way."""

import importlib.util
import os
import sys
from typing import Any

import torch

from vidsieve import _torchvision, ops
from vidsieve.errors import MissingExtra, UnsupportedVersion
from vidsieve.run import versions


def environment() -> dict[str, Any]:
    """What is installed and what would run, as JSON knows it."""
    found = versions()
    models, tested, fault = _models(found["transformers"])
    return {
        "versions": found,
        "platform": sys.platform,
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] or ["cpu"],
        "ops": {"asked": os.environ.get("VIDSIEVE_OPS", "auto"), "available": ops.available()},
        "torchvision": _torchvision.state(),
        "extras": {
            "hf": bool(found["transformers"] and found["torchvision"]),
            "video": bool(found["av"] and found["rich"]),
            "viz": bool(found["pillow"] and found["av"]),
            "ray": _installed("ray", "pyarrow"),
            "lmms": _installed("lmms_eval"),
            "vllm": _installed("vllm"),
        },
        "transformers": {"tested": tested, "fault": fault},
        "model_types": models,
    }


def _models(transformers: str | None) -> tuple[list[str] | None, list[str], str | None]:
    """The model types that are served, the releases of transformers that were tested, the fault of this one."""
    if transformers is None:
        return None, [], None
    try:
        from vidsieve.models import contract, model_types
    except MissingExtra as error:
        return None, [], str(error)
    try:
        contract.check_library()
    except UnsupportedVersion as error:
        return list(model_types()), list(contract.TESTED), str(error)
    return list(model_types()), list(contract.TESTED), None


def _installed(*modules: str) -> bool:
    return all(importlib.util.find_spec(module) is not None for module in modules)
