"""Shared by all tests."""

import importlib.util

from vidsieve._torchvision import make_importable

if importlib.util.find_spec("torchvision"):
    make_importable()
