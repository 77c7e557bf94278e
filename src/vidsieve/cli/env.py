"""Collect what `vidsieve env` prints: what is installed, what can run, and what prevents the rest."""

import importlib.util
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from vidsieve import ops
from vidsieve.engines import torchvision
from vidsieve.errors import MissingExtra, UnsupportedVersion


def environment() -> dict[str, Any]:
    """Collect what is installed and what can run, as JSON values."""
    found = versions()
    models, tested, fault = _models(found["transformers"])
    return {
        "versions": found,
        "platform": sys.platform,
        "devices": gpus() or ["cpu"],
        "ops": {"asked": os.environ.get("VIDSIEVE_OPS", "auto"), "available": ops.available()},
        "torchvision": torchvision.state(),
        "extras": {
            "hf": bool(found["transformers"] and found["torchvision"]),
            "video": bool(found["av"] and found["rich"]),
            "viz": bool(found["pillow"] and found["av"]),
            "app": _installed("gradio"),
            "ray": _installed("ray", "pyarrow"),
            "lmms": _installed("lmms_eval"),
            "vllm": _installed("vllm"),
        },
        "transformers": {"tested": tested, "fault": fault},
        "model_types": models,
    }


def gpus() -> list[str]:
    """List the names of the CUDA devices."""
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def _models(transformers: str | None) -> tuple[list[str] | None, list[str], str | None]:
    """Get the supported model types, the tested releases of transformers, and the fault of the installed one."""
    if transformers is None:
        return None, [], None
    try:
        from vidsieve.engines.hf import contract, model_types
    except MissingExtra as error:
        return None, [], str(error)
    try:
        contract.check_library()
    except UnsupportedVersion as error:
        return list(model_types()), list(contract.TESTED), str(error)
    return list(model_types()), list(contract.TESTED), None


def _installed(*modules: str) -> bool:
    return all(importlib.util.find_spec(module) is not None for module in modules)


PACKAGES = ("vidsieve", "torch", "transformers", "torchvision", "av", "pillow", "rich", "triton")


def versions() -> dict[str, str | None]:
    """Get the versions of Python and of the packages; None for one that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found
