"""Evidence: benchmarks of operations, the synthetic needle suite, natural shots, statistics, peers' harnesses."""

from importlib import import_module

__all__ = ["bench", "evaluate", "lmms", "natural", "needles"]


def __getattr__(name: str) -> object:
    if name in __all__:  # imported when asked for: each needs something of its own
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
