"""One table of methods, by name: this library's own, published ones, floors, and those of other packages.

    @register_method(default_keep=0.3)
    def mine(keep: float) -> Reducer: ...

What `--method`, `attach(model, "name", keep=0.1)`, evaluation and engines call by name is what this table holds.
Another package adds its own by an entry point of the group `vidsieve.methods`, that names a function decorated so.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from inspect import cleandoc
from typing import Any, Literal, TypeVar

from vidsieve.checks import not_among
from vidsieve.errors import UnknownMethod, VidsieveError

GROUP = "vidsieve.methods"  # of entry points
# What attaches a method to a model, by the engine that runs it: named here, imported when it is asked for, so that
# methods know of no engine.
ENGINES = {"hf": "vidsieve.engines.hf:attach"}
Make = TypeVar("Make", bound=Callable[..., Any])


@dataclass(frozen=True)
class Method:
    """A method that has a name.

    make: makes it, given a share and options of its own.  keep_of: what that share is of, the video's "tokens" or the
    prefill's "FLOPs".  default_keep: the share that its paper is about.  inside: whether it acts inside the language
    model too, so that it needs one.  grows: with the video's length or its square.
    """

    name: str
    make: Callable[..., Any]
    keep_of: Literal["tokens", "FLOPs"] = "tokens"
    default_keep: float = 0.1
    inside: bool = False
    grows: Literal["linear", "square"] = "linear"

    def __call__(self, keep: float | None = None, **options: Any) -> Any:
        """The method at this share, its default if None."""
        return self.make(self.default_keep if keep is None else keep, **options)

    @property
    def summary(self) -> str:
        """The first line of what its docstring says."""
        return cleandoc(self.make.__doc__ or "").partition("\n")[0]

    @property
    def paper(self) -> str | None:
        """The numbers on arXiv that its docstring names."""
        return " ".join(re.findall(r"arXiv[: ]\d{4}\.\d{4,5}", self.make.__doc__ or "")) or None

    def to_dict(self) -> dict[str, Any]:
        names = ("name", "summary", "keep_of", "default_keep", "grows", "paper")
        return {name: getattr(self, name) for name in names}


# What is registered by now, by its name; `methods` is it and what other packages register. A test may patch it, so that
# what it registers goes when it ends.
REGISTERED: dict[str, Method] = {}


def register_method(
    name: str | None = None,
    *,
    keep_of: Literal["tokens", "FLOPs"] = "tokens",
    default_keep: float = 0.1,
    inside: bool = False,
    grows: Literal["linear", "square"] = "linear",
) -> Callable[[Make], Make]:
    """Put the decorated function, which makes a method given a share, into the table; its fields are those of `Method`.

    name: that of the function if None. Raises `VidsieveError` where the name is taken.
    """

    def put(make: Make) -> Make:
        method = Method(name or make.__name__, make, keep_of, default_keep, inside, grows)
        taken = REGISTERED.get(method.name)
        if taken is not None and (taken.make.__module__, taken.make.__qualname__) != (
            make.__module__,
            make.__qualname__,
        ):
            raise VidsieveError(
                f"there is a method {method.name!r} already, of {taken.make.__module__}; register this one by another "
                "name: @register_method('name')"
            )
        REGISTERED[method.name] = method
        return make

    return put


@cache
def _load_others() -> None:
    """Import what other packages register, once."""
    for entry in entry_points(group=GROUP):
        entry.load()
        if entry.name not in REGISTERED:
            raise VidsieveError(
                f"the entry point {entry.name!r} = {entry.value!r} of {GROUP} registers no method of that name; "
                f"decorate its function: @register_method({entry.name!r})"
            )


def methods(inside: bool | None = None) -> Mapping[str, Method]:
    """Every method by its name; only those that act inside the language model, or only the others, if that is given."""
    _load_others()
    return {name: method for name, method in REGISTERED.items() if inside is None or method.inside == inside}


def method(name: str) -> Method:
    """The method of this name; raises `UnknownMethod`, naming those there are."""
    found = methods().get(name)
    if found is None:
        raise UnknownMethod(f"no method {not_among(name, methods())}")
    return found


def engine(name: str) -> Callable[..., Any]:
    """The `attach(model, method, ...)` of an engine."""
    module, _, attach = ENGINES[name].partition(":")
    found: Callable[..., Any] = getattr(import_module(module), attach)
    return found
