"""The command line. `main` has the commands, `run` and `demo` are two of them."""

from importlib import import_module

__all__ = ["demo", "main", "run"]


def __getattr__(name: str) -> object:
    if name in __all__:  # imported when asked for: each needs something of its own
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
