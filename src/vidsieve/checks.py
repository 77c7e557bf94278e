"""Checks of arguments, and how a value is described in a message."""

import difflib
import importlib
import json
import math
import shlex
from collections.abc import Iterable
from importlib import metadata
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from torch import Tensor, nn

from vidsieve.errors import MissingExtra, WrongArgument


def pip_install(extra: str, *options: str) -> str:
    """The command that brings `extra`. Where vidsieve is an editable checkout it stays one, not replaced by a copy."""
    origin = json.loads(metadata.distribution("vidsieve").read_text("direct_url.json") or "{}")
    what = f"vidsieve[{extra}]"
    if origin.get("dir_info", {}).get("editable"):
        options, what = (*options, "-e"), f"{url2pathname(urlsplit(origin['url']).path)}[{extra}]"
    return " ".join(("pip install", *options, shlex.quote(what)))


def require(module: str, extra: str) -> ModuleType:
    """Import `module`, or raise `MissingExtra` naming the extra that brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(
            f"this needs {module.partition('.')[0]}, which could not be imported ({error}); "
            f"install it with: {pip_install(extra)}"
        ) from error


def check_number(
    requirement: str,
    value: Any,
    low: float,
    high: float = math.inf,
    *,
    exclusive_low: bool = False,
    integer: bool = False,
) -> None:
    """Raise `ValueError` unless `value` is a number in [low, high], or in (low, high] if `exclusive_low`.

    requirement: what is expected, which begins the message.  integer: whether it has to be whole.
    """
    fits = isinstance(value, int if integer else int | float) and not isinstance(value, bool)
    if not (fits and low <= value <= high and not (exclusive_low and value == low)):
        hint = "; a method is made first, then given the model: method(keep=0.1)(model)"
        raise ValueError(f"{requirement}; got {describe(value)}{hint if isinstance(value, nn.Module) else ''}")


def check_keep(keep: float) -> None:
    """Raise unless `keep` is a fraction in (0, 1]."""
    requirement = "keep is the fraction of the video tokens that stays, a share in (0, 1], such as 0.1"
    check_number(requirement, keep, 0, 1, exclusive_low=True)


def check_question(question: object) -> None:
    """Raise `WrongArgument` unless `question` is text that is not blank."""
    if not isinstance(question, str) or not question.strip():
        raise WrongArgument(f"expected a question, such as 'What happens?'; got {describe(question)}")


def check_part(name: str, part: object) -> None:
    """Raise `ValueError` unless `part` can be called, and is not merely a class of what can."""
    if isinstance(part, type):
        raise ValueError(f"expected a {name}, got the class {part.__name__}; write {part.__name__}()")
    if not callable(part):
        raise ValueError(f"expected a {name} such as the parts of vidsieve, got {part!r}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Write "; did you mean ...?" with the one of `known` that is most like `name`; "" where none is."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def not_among(name: str, known: Iterable[str]) -> str:
    """Write a name that is none of `known`, the one that may have been meant, and all that there are."""
    names = list(known)
    meant = did_you_mean(name, names)
    return f"{name!r}{f'{meant} There' if meant else '; there'} are {', '.join(names)}"


def printable(text: str) -> str:
    """Escape what would begin another line, or is no text: names of files may hold anything."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


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
