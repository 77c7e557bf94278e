"""Keep the messages of other libraries off the terminal, errors excepted."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the messages of other libraries in the block; print a warning of vidsieve as one line."""
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
    """Print a warning that was raised in vidsieve, whatever its `stacklevel`; drop others."""
    frame = sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__") in ("warnings", "_py_warnings"):
        frame = frame.f_back
    if str(frame.f_globals.get("__name__")).partition(".")[0] == "vidsieve":
        print(f"vidsieve: warning: {' '.join(str(message).split())}", file=sys.stderr)
