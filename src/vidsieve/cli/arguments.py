"""Parse and check the values of command line options."""

import argparse
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn

import torch

from vidsieve import writable
from vidsieve.checks import check_question, did_you_mean, not_among, require
from vidsieve.errors import VidsieveError

LARGEST = 2.0**63  # of a number of bytes
LONGEST = 80  # letters of a value that are shown


class Mistake(Exception):
    """A mistake in the command: exit code 2."""

    def __init__(self, message: str, usage: str = "") -> None:
        super().__init__(message)
        self.usage = usage


# What is told of an option that a command has not, where others have it.
_LATER = "questions are asked later: vidsieve ask FILE --question ..."
ELSEWHERE = {
    (f"vidsieve {command}", option): hint
    for command in ("encode", "batch")
    for option, hint in {"--question": _LATER, "-q": _LATER}.items()
}


class Parser(argparse.ArgumentParser):
    """Raises `Mistake` where argparse would end the process, so that `main` prints all errors.

    siblings: the parsers of all commands, by name.
    """

    siblings: Mapping[str, "Parser"] = {}

    def error(self, message: str) -> NoReturn:
        raise Mistake(message, f"{self._short_usage()}\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        args = sys.argv[1:] if args is None else args
        for option in self._unknown(args):  # before argparse misses what is required, which may be what was misspelt
            self.error(f"no option {option}{self._meant(option)}")
        found, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error(f"expected nothing more, got {' '.join(rest)}")
        return found, rest

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            if isinstance(action.choices, dict):
                raise argparse.ArgumentError(None, f"no command {not_among(value, action.choices)}")
            names = ", ".join(action.choices)
            message = f"expected one of {names}; got {value}{did_you_mean(value, action.choices)}"
            raise argparse.ArgumentError(action, message)

    def _short_usage(self) -> str:
        """Write in one line what a command needs."""
        parts = []
        for action in self._actions:
            name = str(action.metavar or action.dest.upper())
            if not action.option_strings:
                parts.append(name + " ..." * (action.nargs in (argparse.PARSER, argparse.ONE_OR_MORE)))
            elif action.required:
                parts.append(f"{_longest(action.option_strings)} {name}")
        return f"usage: {' '.join((self.prog, *parts))} [options]; {self.prog} --help shows them"

    def _unknown(self, args: Sequence[str]) -> Iterator[str]:
        """Yield what looks like an option among the arguments, and is none or the beginning of none."""
        mine = takewhile(lambda arg: arg != "--", args)
        if any(isinstance(action.choices, dict) for action in self._actions):
            mine = takewhile(lambda arg: arg.startswith("-"), mine)  # what follows is the command's
        for arg in mine:
            name = arg.partition("=")[0]
            option = re.fullmatch(r"--[^\s=]+|-[a-zA-Z]", name)
            if option and not any(one.startswith(name) for one in self._option_string_actions):
                yield name

    def _meant(self, option: str) -> str:
        """Say which command has an option, or which option may have been meant."""
        if hint := ELSEWHERE.get((self.prog, option)):
            return f"; {hint}"
        others = [name for name, other in self.siblings.items() if option in other._option_string_actions]
        if others and self not in self.siblings.values():
            return f"; options of a command stand behind it: vidsieve {others[0]} ... {option}"
        if others:
            return f"; vidsieve {', '.join(others)} {'has' if len(others) == 1 else 'have'} it"
        names = [one for one in self._option_string_actions if one.startswith("--")]
        begin_so = [name for name in names if name.startswith(f"-{option}")]  # -o, of --out
        return did_you_mean(option, names) or (f"; did you mean {begin_so[0]}?" if len(begin_so) == 1 else "")


def _longest(names: Sequence[str]) -> str:
    return max(names, key=len)


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
        meant = f"; did you mean {text}%?" if 1 < value <= 100 and not text.endswith("%") else ""
        raise argparse.ArgumentTypeError(
            f"expected a fraction above 0, at most 1, such as 0.1 or 10%; got {text}{meant}"
        )
    return value


def count(text: str) -> int:
    if not text.isdecimal() or len(text) > LONGEST or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1; got {_short(text)}")
    return int(text)


def seconds(text: str) -> float:
    """Parse a time: seconds, or minutes and seconds, or hours, minutes and seconds with colons between."""
    parts = text.split(":")
    try:
        values = [float(part) for part in parts]
    except ValueError:
        values = [-1.0]
    whole = len(values) <= 3 and all(0 <= value < 60 for value in values[1:])
    total = sum(value * 60.0**power for power, value in enumerate(reversed(values[:3])))
    if not whole or values[0] < 0 or not math.isfinite(total):
        raise argparse.ArgumentTypeError(f"expected seconds, such as 90, or 1:30, or 1:02:03; got {text}")
    return total


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
    if not text.isdecimal() or len(text) > LONGEST or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535; got {_short(text)}")
    return int(text)


def size(text: str) -> int:
    """Parse a number of bytes: 500MB, 1.5GB."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kMGT]?)B", text, re.IGNORECASE)
    value = float(found[1]) * 1024 ** " kmgt".index(found[2].lower() or " ") if found else 0.0
    if not 1 <= value < LARGEST:
        raise argparse.ArgumentTypeError(f"expected a size, such as 500MB or 1.5GB; got {_short(text)}")
    return int(value)


def host(text: str) -> str:
    """Check that a text is the name of a host, or its address, without scheme and port."""
    if not re.fullmatch(r"[\w.-]+|\[[\da-f:.]+\]", text, re.IGNORECASE):
        raise argparse.ArgumentTypeError(f"expected the name of a host, such as clips.example.org; got {_short(text)}")
    return text


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


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
