"""What the command line lets onto the terminal: its own words, and of other libraries their errors alone."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def quiet() -> Iterator[None]:
    """Keep other libraries' chatter off the terminal; a warning of ours is one line."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    shown, level = warnings.showwarning, logging.root.manager.disable
    logging.disable(max(level, logging.WARNING))
    warnings.showwarning = _show
    try:
        yield
    finally:
        warnings.showwarning = shown
        logging.disable(level)


def _show(message: Warning | str, *_: Any, **__: Any) -> None:
    """Print a warning that was raised in vidsieve, wherever `stacklevel` says that it belongs."""
    frame = sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__") in ("warnings", "_py_warnings"):
        frame = frame.f_back
    if str(frame.f_globals.get("__name__")).partition(".")[0] == "vidsieve":
        print(f"vidsieve: warning: {' '.join(str(message).split())}", file=sys.stderr)
