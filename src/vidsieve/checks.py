"""Checks of arguments, and how a value is described in a message."""

import importlib
import math
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

from vidsieve.errors import MissingExtra


def require(module: str, extra: str) -> ModuleType:
    """Import `module`, or raise `MissingExtra` naming the extra that brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(
            f"this needs {module.partition('.')[0]}, which could not be imported ({error}); "
            f"install it with: pip install 'vidsieve[{extra}]'"
        ) from error


def check_number(
    told: str, value: Any, low: float, high: float = math.inf, *, beyond: bool = False, whole: bool = False
) -> None:
    """Raise `ValueError`, saying what it is, unless `value` is a number in [low, high], or (low, high] if `beyond`."""
    fits = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not (fits and low <= value <= high and not (beyond and value == low)):
        hint = "; a method is made first, then given the model: method(keep=0.1)(model)"
        raise ValueError(f"{told}; got {describe(value)}{hint if isinstance(value, nn.Module) else ''}")


def check_part(name: str, part: object) -> None:
    """Raise `ValueError` unless `part` can be called, and is not merely a class of what can."""
    if isinstance(part, type):
        raise ValueError(f"expected a {name}, got the class {part.__name__}; write {part.__name__}()")
    if not callable(part):
        raise ValueError(f"expected a {name} such as the parts of vidsieve, got {part!r}")


def describe(value: Any) -> str:
    """Anything at all in a message: a line of at most 80 letters."""
    if isinstance(value, Tensor):
        return f"a tensor {show(value)}"
    if isinstance(value, FunctionType | MethodType | BuiltinFunctionType):
        return f"the function {value.__name__}"
    if isinstance(value, type | ModuleType):
        return f"the {'class' if isinstance(value, type) else 'module'} {value.__name__}"
    text = repr(value)
    named = isinstance(value, nn.Module) or len(text) > 80 or "\n" in text or text.startswith("<")
    return f"a {type(value).__name__}" if named else text


def show(tensor: Tensor) -> str:
    """A tensor in a message: its type and shape."""
    return f"{str(tensor.dtype).removeprefix('torch.')}{tuple(tensor.shape)}"
