"""Shared by all tests."""

import importlib.util
import os

import torch

from vidsieve._torchvision import make_importable

if not torch.cuda.is_available():  # without a GPU the kernels run in Triton's interpreter; read when Triton is imported
    os.environ.setdefault("TRITON_INTERPRET", "1")

if importlib.util.find_spec("torchvision"):
    make_importable()
