"""Parse and check the values of command line options."""

import argparse
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch

from vidsieve import writable
from vidsieve.checks import check_question, require
from vidsieve.errors import VidsieveError


class Mistake(Exception):
    """A mistake in the command: exit code 2."""

    def __init__(self, message: str, usage: str = "") -> None:
        super().__init__(message)
        self.usage = usage


class Parser(argparse.ArgumentParser):
    """Raises `Mistake` where argparse would end the process, so that `main` prints all errors."""

    def error(self, message: str) -> NoReturn:
        raise Mistake(message, self.format_usage())


class Version(argparse.Action):
    """Prints the version, and those of what it runs on, which are looked up only then."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from vidsieve.cli.env import gpus, versions

        found = versions() | {"torch": torch.__version__}  # which tells the CUDA that it was built for
        print(f"vidsieve {found['vidsieve']}")
        for name in ("python", "torch", "transformers", "triton", "av"):
            print(f"{name} {found[name] or 'not installed'}")
        print(f"GPU {', '.join(gpus()) or 'none'}")
        parser.exit()


class Gone(argparse.Action):
    """Refuses an option that a command had. const: what to do instead."""

    def __call__(self, parser: argparse.ArgumentParser, _: Any, __: Any, option: str | None = None) -> None:
        parser.error(f"{option} is gone: {self.const}")


class Completion(argparse.Action):
    """Prints what completes commands and options in a shell. Raises `MissingExtra` without shtab."""

    def __call__(self, parser: argparse.ArgumentParser, _: Any, shell: Any, __: Any = None) -> None:
        shtab = require("shtab", "completion")
        commands = next(action.choices for action in parser._actions if isinstance(action.choices, dict))
        for action in (action for command in commands.values() for action in command._actions):
            if action.choices is None and action.nargs != 0:
                action.complete = shtab.FILE  # what shells do by themselves where nothing completes a command
        print(shtab.complete(parser, shell))
        parser.exit()


def fraction(text: str) -> float:
    """Parse a share above 0, at most 1; also in percent."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"expected a fraction above 0, at most 1, such as 0.1 or 10%; got {text}")
    return value


def count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1; got {text}")
    return int(text)


def seconds(text: str) -> float:
    """Parse a time: seconds, or minutes and seconds, or hours, minutes and seconds with colons between."""
    parts = text.split(":")
    try:
        values = [float(part) for part in parts]
    except ValueError:
        values = [-1.0]
    whole = all(value < 60 for value in values[1:]) and len(values) <= 3
    if not whole or not all(0 <= value < float("inf") for value in values):
        raise argparse.ArgumentTypeError(f"expected seconds, such as 90, or 1:30, or 1:02:03; got {text}")
    return math.fsum(value * 60.0**power for power, value in enumerate(reversed(values)))


def rate(text: str) -> float:
    """Parse a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, such as 1 or 0.5; got {text}")
    return value


def port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535; got {text}")
    return int(text)


def size(text: str) -> int:
    """Parse a number of bytes: 500MB, 1.5GB."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kMGT]?)B", text, re.IGNORECASE)
    value = int(float(found[1]) * 1024 ** " kmgt".index(found[2].lower() or " ")) if found else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a size, such as 500MB or 1.5GB; got {text}")
    return value


def method(name: str) -> str:
    from vidsieve import registry

    try:
        return registry.method(name).name
    except VidsieveError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def question(text: str) -> str:
    return _checked(check_question, text)


def folder(text: str) -> Path:
    """Check that files can be written to a folder, which exists or can be made."""
    return Path(_checked(writable.folder, text))


def file(text: str) -> Path:
    """Check that a file can be written or replaced."""
    return Path(_checked(writable.file, text))


def _checked(check: Callable[[str], object], text: str) -> str:
    try:
        check(text)
    except VidsieveError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text
