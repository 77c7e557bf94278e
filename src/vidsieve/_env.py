"""What `vidsieve env` tells: what is installed, what would run, and what stands in the way."""

import importlib.util
import os
import sys
from typing import Any

import torch

from vidsieve import _torchvision, ops
from vidsieve.run import versions


def environment() -> dict[str, Any]:
    """What is installed and what would run, as JSON knows it."""
    found = versions()
    models = None
    if found["transformers"]:
        from vidsieve.models import model_types

        models = list(model_types())
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
        "model_types": models,
    }


def _installed(*modules: str) -> bool:
    return all(importlib.util.find_spec(module) is not None for module in modules)
